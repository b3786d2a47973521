"""Everybody has an e-mail address"""

from alembic import op

revision = "r10"
down_revision = "r09"


def upgrade() -> None:
    op.execute(
        "update person set email = replace(lower(name), ' ', '.') || '@example.org' where email is null"
    )
    op.alter_column("person", "email", nullable=False)
