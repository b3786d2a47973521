"""Freeze `sql/` into the newest revision, as long as that is not released:

    python -m tests.support.freeze

From its release on a revision stays as it is, and a change of `sql/` takes a new one.
"""

from pathlib import Path

from syncagent import resources

HEADER = "-- Made by `python -m tests.support.freeze` of {names}. Frozen once released.\n\n"


def present() -> str:
    """The SQL side as it is now, in one text."""
    files = sorted(resources.sql().glob("*.sql"))
    return HEADER.format(names=", ".join(file.name for file in files)) + "\n".join(
        file.read_text() for file in files
    )


def newest() -> Path:
    return max((resources.migrations() / "versions").glob("[0-9]*.sql"))


if __name__ == "__main__":
    newest().write_text(present())
    print(f"wrote {newest()}")  # noqa: T201
