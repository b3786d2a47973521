"""Tickets have a priority"""

import sqlalchemy as sa
from alembic import op

revision = "r03"
down_revision = "r02"


def upgrade() -> None:
    op.add_column("ticket", sa.Column("priority", sa.Integer, nullable=False, server_default="3"))
