"""Urgent tickets go to the first team"""

import sqlalchemy as sa
from alembic import op

revision = "r05"
down_revision = "r04"


def upgrade() -> None:
    op.add_column("ticket", sa.Column("team", sa.Uuid))
    op.execute(
        "update ticket set team = (select id from team order by id limit 1) where priority = 3 and team is null"
    )
