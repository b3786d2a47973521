"""A priority is from 1 to 5"""

from alembic import op

revision = "r07"
down_revision = "r06"


def upgrade() -> None:
    op.create_check_constraint("priority_is_known", "ticket", "priority between 1 and 5")
