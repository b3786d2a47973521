"""The pages of docs/reference/, which are what the code says of itself:

    python -m tests.support.reference

writes them. The command line is read from the application, the SQL side from a database's catalogs and comments, the settings
from what `syncagent init` writes and from `core/limits.py`. A test says when one of them is not current.
"""

import ast
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Any, get_args
from uuid import UUID

import typer

from syncagent import settings as configuration
from syncagent.cli.app import PREFIX, app
from syncagent.core import limits
from syncagent.embedded import scratch
from syncagent.settings import Settings
from syncagent.storage import installation
from syncagent.storage.commands import connected
from tests.support.databases import Database, fresh_database
from tests.support.postgres import Servers

FOLDER = Path(__file__).parents[2] / "docs" / "reference"
_MADE = "<!-- Made by `python -m tests.support.reference`: change what it is made of. -->\n\n"


# ---- the command line


def commands(command: Any, path: tuple[str, ...] = ("syncagent",)) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every verb, in the order of `--help`."""
    below = getattr(command, "commands", None)
    if below is None:
        yield path, command
        return
    for name, verb in below.items():
        yield from commands(verb, (*path, name))


def verbs() -> list[tuple[tuple[str, ...], Any]]:
    return list(commands(typer.main.get_command(app)))


def _escaped(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _metavar(parameter: Any) -> str:
    """What a value looks like: words to choose from, or what kind of thing it is."""
    if parameter.metavar:
        return str(parameter.metavar)
    kinds = [parameter.type_descriptor.annotation]
    while inner := [part for kind in kinds for part in get_args(kind) if part is not NoneType]:
        kinds = inner
    if all(isinstance(kind, str) for kind in kinds):
        return "\\|".join(kinds)
    return _KINDS.get(kinds[0], "TEXT")


_KINDS = {int: "N", float: "NUMBER", Path: "PATH"}


def _default(parameter: Any) -> str:
    value = parameter.default
    if value is None or value is False or callable(value) or not parameter.show_default:
        return ""
    return f" Default: `{value:g}`." if isinstance(value, float) else f" Default: `{value}`."


def _parameter(path: tuple[str, ...], parameter: Any) -> str:
    help_ = _sentence(_escaped(parameter.help or ""))
    if parameter.param_type_name == "argument":
        return f"| `{parameter.name.upper()}` | {help_}{_default(parameter)} | |"
    form = ", ".join(parameter.opts) + ("" if parameter.is_flag else f" {_metavar(parameter)}")
    twin = parameter.envvar or "_".join((PREFIX, *path[1:], parameter.name)).upper().replace("-", "_")
    needed = " Required." if parameter.required else ""
    return f"| `{form}` | {help_}{needed}{_default(parameter)} | `{twin}` |"


def _verb(path: tuple[str, ...], command: Any) -> Iterator[str]:
    yield f"## {' '.join(path)}\n"
    yield from (" ".join(part.split()) + "\n" for part in (command.help or "").split("\n\n"))
    told = [parameter for parameter in command.params if parameter.name != "help"]
    if told:
        yield "| | | environment |\n|---|---|---|"
        yield "\n".join(_parameter(path, parameter) for parameter in told) + "\n"


def command_line() -> str:
    found = verbs()
    index = " · ".join(f"[{' '.join(path[1:])}](#{'-'.join(path)})" for path, _ in found)
    lines = [
        "# Command line\n",
        _MADE
        + "`syncagent VERB --help` says the same. The answer goes to stdout, talk to stderr; every read has `--json`; every flag can be given in",
        "the environment instead. Exit code 0: done; 1: refused, or unhealthy; 2: usage.\n",
        index + "\n",
        *(line for path, command in found for line in _verb(path, command)),
    ]
    return "\n".join(lines)


# ---- the SQL side

_VIEWS = """
    select c.relname, obj_description(c.oid, 'pg_class'),
           (select array_agg(a.attname || ' ' || format_type(a.atttypid, a.atttypmod) order by a.attnum)
            from pg_attribute a where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped)
    from pg_class c where c.relnamespace = 'syncagent'::regnamespace and c.relkind = 'v' order by 1
"""
_FUNCTIONS = """
    select p.proname, pg_get_function_arguments(p.oid), pg_get_function_result(p.oid), obj_description(p.oid, 'pg_proc'),
           has_function_privilege('public', p.oid, 'execute'), has_function_privilege('reading', p.oid, 'execute')
    from pg_proc p where p.pronamespace = 'syncagent'::regnamespace and p.proname !~ '^_'
    order by 1, 2
"""


def sql_side(database: Database) -> str:
    """Of an empty database, which is made a site."""
    with connected(database.dsn) as connection, connection.transaction():
        installation.settle(connection, "paris", 1)
    database.execute("create role reading; select syncagent.grant_reader('reading')")
    try:
        views, functions = database.execute(_VIEWS), database.execute(_FUNCTIONS)
    finally:
        database.execute("drop owned by reading; drop role reading")
    lines = [
        "# SQL: views and functions\n",
        _MADE
        + "All in schema `syncagent`. Who may: *all* is everybody, *readers* are roles that `grant_reader` was called for, *agent* is the role that",
        "owns the SQL side, and its members. Names that begin with an underscore are the agent's own. [Errors and rights](../../sql/README.md).\n",
        "## Views\n",
        "For readers.\n",
    ]
    for name, comment, columns in views:
        lines += [
            f"### {name}\n",
            f"{_sentence(comment)}\n",
            ", ".join(f"`{column}`" for column in columns) + "\n",
        ]
    lines += ["## Functions\n", "| function | | who may |", "|---|---|---|"]
    for name, arguments, result, comment, everybody, readers in functions:
        who = "all" if everybody else "readers" if readers else "agent"
        lines.append(f"| `{name}({arguments})` → `{result}` | {_escaped(_sentence(comment or ''))} | {who} |")
    return "\n".join(lines) + "\n"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "]", "?")) else "." * bool(text))


# ---- settings


def _limits() -> Iterator[str]:
    """The numbers of core/limits.py that say what they are: a constant, and the text below it."""
    body = ast.parse(Path(limits.__file__).read_text(encoding="utf-8")).body
    waiting: list[str] = []
    for node in body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)]):
                waiting.append(name)
            case ast.Expr(value=ast.Constant(value=str(text))) if waiting:
                values = ", ".join(f"`{name}` = {_number(getattr(limits, name))}" for name in waiting)
                yield f"| {values} | {_escaped(text)} |"
                waiting = []
            case _:
                waiting = []


def _number(value: Any) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:g}"


def settings() -> str:
    """What `init` writes, and what nobody sets."""
    with tempfile.TemporaryDirectory() as home:
        example = Settings(
            home=Path(home),
            name="berlin",
            node=1,
            site=UUID("01900000-0000-7000-8000-000000000001"),
            incarnation=UUID("6f1d4a10-0000-4000-8000-000000000001"),
            dsn="postgresql://agent@localhost/shop",
            listen="0.0.0.0:7400",
            advertise="berlin.example.org:7400",
        )
        text = configuration.write(example).read_text(encoding="utf-8")
    fixed = "\n".join(_limits())
    return f"""# Settings

{_MADE}A site's home holds its `config.toml` (`--home`, `SYNCAGENT_HOME`; default `/var/lib/syncagent` for root, else
`~/.local/share/syncagent`). `syncagent init` and `join` write it, and the agent reads it when it starts; a key that is not known stops it, with
the place and the remedy. What all sites must agree on (members, tables and how they are attached) is not in it: the cluster knows that.

```toml
{text.strip()}
```

Every flag of every verb has a twin in the environment, which the [command line](cli.md) lists. Beside them the agent reads `NOTIFY_SOCKET`,
`WATCHDOG_USEC` and `WATCHDOG_PID`, which [systemd](../deploy.md#systemd) sets; libpq's own (`PGPASSFILE`, `PGSSLROOTCERT`, …) hold for the dsn.

## What is not set

Sizes in bytes, times in seconds.

| | |
|---|---|
{fixed}
"""


PURE = {"cli.md": command_line, "settings.md": settings}
"""Pages that need no server."""


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, made in PURE.items():
        (FOLDER / name).write_text(made(), encoding="utf-8")
    with scratch("syncagent-reference-") as folder:
        servers = Servers(folder)
        try:
            with fresh_database(servers.of(18)) as database:
                (FOLDER / "sql.md").write_text(sql_side(database), encoding="utf-8")
        finally:
            servers.stop()


if __name__ == "__main__":
    main()
