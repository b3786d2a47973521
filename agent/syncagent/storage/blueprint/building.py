"""Building the tables of a blueprint, at the new site.

Invariant: building again does only what is not there yet. `before` is made whole or not at all; of keys
and of what follows each step stands for itself, for an index may take an hour.
"""

from collections.abc import Callable, Iterable

import psycopg

from syncagent.errors import DatabaseError, LacksPrivilege, RefusedError
from syncagent.storage.blueprint.comparing import obstacles, other_functions
from syncagent.storage.blueprint.parts import Blueprint, Role, Step, pinned
from syncagent.storage.commands import Connection, border

OnStep = Callable[[str], None]

_SETTINGS = {
    "search_path": "",
    "check_function_bodies": "off",  # a body may name what is made later
    "client_min_messages": "warning",
    "default_tablespace": "",
    "default_table_access_method": "heap",
    "datestyle": "ISO, MDY",
    "intervalstyle": "postgres",
    "standard_conforming_strings": "on",
    "row_security": "on",
    "xmloption": "content",
}
_BROKEN = ("22", "23", "38", "39", "P0", "42883")
"""Rows against a foreign key or a CHECK, or against a function that it calls."""
_CANNOT = ("0A", "0L", "22", "2B", "3F", "42", "55006", "58")
"""This server does not know it, has not got it, or does not let this role."""


def build_before(connection: Connection, blueprint: Blueprint, *, tell: OnStep | None = None) -> list[str]:
    """Types, functions, sequences, tables: all that rows need. Returns what was left out here.

    Raises RefusedError for what this server cannot have; then nothing was made.
    """
    if found := obstacles(connection, blueprint):
        raise RefusedError(
            "the tables cannot be made here",
            detail="\n".join(found),
            hint="mend that, then give the same command again: nothing was made",
        )
    notes = other_functions(connection, blueprint)
    with border(), connection.transaction():
        return notes + _Builder(connection, tell).run(blueprint.before)


def build_keys(connection: Connection, blueprint: Blueprint, *, tell: OnStep | None = None) -> list[str]:
    """Primary keys."""
    with border():
        return _Builder(connection, tell).run(blueprint.keys)


def build_after(connection: Connection, blueprint: Blueprint, *, tell: OnStep | None = None) -> list[str]:
    """Everything else, when the rows are there. Rows that break a constraint at the donor break it here too:
    then it holds for new rows only, and a note says so."""
    with border():
        return _Builder(connection, tell).run(blueprint.after)


class _Builder:
    def __init__(self, connection: Connection, tell: OnStep | None) -> None:
        self._connection = connection
        self._tell = tell or (lambda _: None)
        self._major = connection.info.server_version // 10000
        self._roles: set[str] = set()
        self._notes: list[str] = []
        self._absent: dict[str, list[str]] = {}

    def run(self, steps: Iterable[Step]) -> list[str]:
        """Runs them in order; returns notes."""
        self._roles = {
            row["rolname"] for row in self._connection.execute("select rolname from pg_roles").fetchall()
        }
        with pinned(self._connection, _SETTINGS):
            for step in steps:
                self._step(step)
        for role, whats in self._absent.items():
            self._notes.append(f"there is no role {role} here; left out: {', '.join(dict.fromkeys(whats))}")
        return self._notes

    def _step(self, step: Step) -> None:
        if step.done and self._connection.execute(step.done.encode()).rowcount:
            return
        if not _suits(step, self._major):  # what may not be left out was refused before
            self._notes.append(
                f"{step.what} is left out: PostgreSQL {self._major} does not know {step.feature}"
            )
            return
        roles = [role for role in step.roles if not role.name or role.name in self._roles]
        for role in step.roles:
            if role not in roles:
                self._absent.setdefault(role.name, []).append(step.what)
        if step.roles and not roles:
            return
        self._tell(step.what)
        try:
            self._run(_statement(step, roles))
        except psycopg.Error as error:
            self._failed(step, error)

    def _run(self, statement: str) -> None:
        with self._connection.transaction():
            self._connection.execute(statement.encode())

    def _failed(self, step: Step, error: psycopg.Error) -> None:
        state = error.sqlstate
        if self._connection.closed or state is None:
            raise error
        reason = error.diag.message_primary or str(error)
        if step.loose and state.startswith(_BROKEN):
            try:
                self._run(step.loose)
            except psycopg.Error as second:
                if second.sqlstate is None:
                    raise
                self._notes.append(
                    f"{step.what} is left out: {reason}; when the rows are mended: {step.sql};"
                )
            else:
                self._notes.append(f"{step.what} is not valid for all rows, as at the donor: {reason}")
        elif step.optional and state.startswith(_CANNOT):
            self._notes.append(f"{step.what} is left out: {reason}")
        elif state == "42501":
            raise LacksPrivilege(
                f"{step.what} cannot be made here: {reason}",
                hint=f"let a role that may make it: {step.sql};",
            ) from error
        elif state.startswith(_CANNOT):
            raise DatabaseError(f"{step.what} cannot be made here: {reason}", detail=step.sql) from error
        else:
            raise error


def _suits(step: Step, major: int) -> bool:
    return step.since <= major and (not step.until or major <= step.until)


def _statement(step: Step, roles: Iterable[Role]) -> str:
    if not step.roles:
        return step.sql
    return f"{step.sql} {', '.join(role.quoted for role in roles)}{step.tail}"
