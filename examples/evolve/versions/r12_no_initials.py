"""Initials are not needed any more"""

from alembic import op

revision = "r12"
down_revision = "r11"


def upgrade() -> None:
    op.drop_column("person", "initials")
