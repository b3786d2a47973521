"""The team of a ticket exists"""

from alembic import op

revision = "r08"
down_revision = "r07"


def upgrade() -> None:
    op.create_foreign_key("ticket_team", "ticket", "team", ["team"], ["id"])
