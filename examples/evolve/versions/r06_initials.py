"""The initials of a person, worked out in Python"""

import sqlalchemy as sa
from alembic import op

revision = "r06"
down_revision = "r05"


def upgrade() -> None:
    op.add_column("person", sa.Column("initials", sa.Text))
    bind = op.get_bind()
    for key, name in bind.execute(sa.text("select id, name from person where initials is null")).all():
        initials = "".join(word[0].upper() for word in name.split())
        bind.execute(
            sa.text("update person set initials = :initials where id = :id"),
            {"initials": initials, "id": key},
        )
