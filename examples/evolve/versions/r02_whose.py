"""Tickets of a person are found fast"""

from alembic import op

revision = "r02"
down_revision = "r01"


def upgrade() -> None:
    op.create_index("ticket_person", "ticket", ["person"])
