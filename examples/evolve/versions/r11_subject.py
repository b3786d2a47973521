"""A title is called subject"""

from alembic import op

revision = "r11"
down_revision = "r10"


def upgrade() -> None:
    op.alter_column("ticket", "title", new_column_name="subject")
