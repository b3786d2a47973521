"""The one border where errors of a driver become ours.

Invariant: nothing above this package sees an exception of asyncpg or psycopg, and no message of ours
holds a password: drivers' own texts are passed on only where PostgreSQL wrote them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import asyncpg

from syncagent.errors import (
    ConstraintBroken,
    Contended,
    DatabaseError,
    DiskFull,
    Inexact,
    LacksPrivilege,
    RefusedError,
    SyncagentError,
    Unreachable,
)

_GONE = ("08", "53300", "57P01", "57P02", "57P03", "57P05")
_NO_SESSION = (
    asyncpg.InterfaceError,
    asyncpg.TargetServerAttributeNotMatched,
    asyncpg.InternalClientError,  # asked between PostgreSQL's last words and the end of the connection
)
_CONTENDED = ("40001", "40P01", "53200", "55P03", "57014", "SA101")
"""What another try may not meet: locks, memory, somebody who cancelled the statement."""

_BROKEN = ("22", "23", "38", "39", "P0", "42883")
"""As in syncagent._may_park: one row's doing. A CHECK calls functions, which raise, or miss what they call."""


def of_sqlstate(state: str, message: str, detail: str | None, hint: str | None) -> SyncagentError:
    """The error of ours that a SQLSTATE stands for."""
    if state.startswith(_GONE):
        return Unreachable("the connection to PostgreSQL was ended", detail=message)
    if state in _CONTENDED:
        return Contended(message, detail=detail, hint=hint)
    if state == "SA102":
        return Inexact(message, detail=detail, hint=hint)
    if state == "SA103":
        return Unreachable("this site's frontier moved under the agent", detail=message)
    if state in ("SA001", "SA002", "SA005"):
        return RefusedError(message, detail=detail, hint=hint)
    if state.startswith(_BROKEN):
        return ConstraintBroken(message, detail=detail, hint=hint)
    if state == "53100":
        return DiskFull(
            f"PostgreSQL has no space left: {message}",
            detail=detail,
            hint=hint or "free disk space at this server",
        )
    if state == "42501":
        return LacksPrivilege(
            message,
            detail=detail,
            hint=hint or "grant it to the role of the agent's dsn, see `syncagent doctor`",
        )
    if state in ("28P01", "28000"):
        return DatabaseError(
            "PostgreSQL refused the login",
            detail=message,
            hint="check user and password in the dsn, or use a password file",
        )
    if state == "3D000":
        return DatabaseError(message, hint="create the database first, or correct the dsn")
    return DatabaseError(message, detail=detail, hint=hint)


def _raise(error: asyncpg.PostgresError) -> NoReturn:
    ours = of_sqlstate(
        error.sqlstate or "XX000",
        str(error.args[0]) if error.args else type(error).__name__,
        getattr(error, "detail", None),
        getattr(error, "hint", None),
    )
    table = getattr(error, "table_name", None)
    if isinstance(ours, Contended) and error.sqlstate == "SA101" and table and ours.detail:
        ours.row = int(table), ours.detail
    raise ours from error


@contextmanager
def border() -> Iterator[None]:
    """Everything that talks to asyncpg runs inside."""
    try:
        yield
    except asyncpg.PostgresError as error:
        _raise(error)
    except (*_NO_SESSION, OSError) as error:
        raise Unreachable("no connection to the site's PostgreSQL", detail=_harmless(error)) from error


def _harmless(error: BaseException) -> str:
    """The text of a connection error; asyncpg and the system name hosts in it, never passwords."""
    return str(error) or type(error).__name__
