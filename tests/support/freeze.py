"""Freeze `sql/` into the first revision, as long as that is not released:

    python -m tests.support.freeze

From its release on it stays as it is, and a change of `sql/` takes a revision of its own, which changes what the one before has made.
"""

import sys
from pathlib import Path

from syncagent import resources
from syncagent.storage import migrations
from tests.support.releases import released

HEADER = "-- Made by `python -m tests.support.freeze` of {names}. Frozen once released.\n\n"


def present() -> str:
    """The SQL side as it is now, in one text."""
    files = sorted(resources.sql().glob("*.sql"))
    return HEADER.format(names=", ".join(file.name for file in files)) + "\n".join(
        file.read_text() for file in files
    )


def first() -> Path:
    return min((resources.migrations() / "versions").glob("[0-9]*.sql"))


def main() -> None:
    if released():
        sys.exit(
            f"{first().name} is released: what is new in sql/ goes into the revision after {migrations.newest()}"
        )
    first().write_text(present())
    print(f"wrote {first()}")  # noqa: T201


if __name__ == "__main__":
    main()
