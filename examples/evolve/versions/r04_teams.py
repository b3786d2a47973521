"""Teams, with those that there are"""

import uuid

import sqlalchemy as sa
from alembic import op

revision = "r04"
down_revision = "r03"


def upgrade() -> None:
    team = op.create_table(
        "team", sa.Column("id", sa.Uuid, primary_key=True), sa.Column("name", sa.Text, nullable=False)
    )
    op.bulk_insert(
        team,
        [
            {"id": uuid.UUID(f"01900000-0000-7000-8000-{number:012}"), "name": name}
            for number, name in enumerate(("printers", "networks", "accounts"), 1)
        ],
    )
