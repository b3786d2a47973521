"""Where the files that are not Python lie: `sql/`, `migrations/` and `bench/`.

Invariant: a wheel carries them in `syncagent/_bundled/`, a checkout has them at its top, and nothing
else asks which of the two it is. (`importlib.resources` does not see them in an editable install.)
"""

from pathlib import Path

from syncagent.errors import SyncagentError

_PACKAGE = Path(__file__).resolve().parent


def _folder(name: str) -> Path:
    for place in (_PACKAGE / "_bundled", _PACKAGE.parents[1]):
        if (place / name).is_dir():
            return place / name
    raise SyncagentError(
        f"the folder {name}/ of syncagent is missing",
        detail=f"It is neither in {_PACKAGE / '_bundled'} nor in {_PACKAGE.parents[1]}.",
        hint="Install syncagent again.",
    )


def sql() -> Path:
    """The SQL side as it is now; its files apply in the order of their names."""
    return _folder("sql")


def migrations() -> Path:
    """Alembic's environment: how an older SQL side becomes the present one."""
    return _folder("migrations")


def bench() -> Path:
    """The benchmarks behind `syncagent bench`."""
    return _folder("bench")
