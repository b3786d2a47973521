"""${message}: the SQL is in the file beside this one, and frozen once released."""

from syncagent.storage.migrations import run_script_beside

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}


def upgrade() -> None:
    run_script_beside(__file__)
