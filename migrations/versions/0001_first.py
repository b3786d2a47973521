"""The first SQL side: it is in the file beside this one, and frozen once released."""

from syncagent.storage.migrations import run_script_beside

revision = "0001"
down_revision = None


def upgrade() -> None:
    run_script_beside(__file__)
