"""Minutes are minutes and their parts"""

from alembic import op

revision = "r09"
down_revision = "r08"


def upgrade() -> None:
    op.execute(
        "-- down: round(minutes_new)::integer\nalter table ticket alter column minutes type numeric(12, 2) using minutes::numeric(12, 2)"
    )
