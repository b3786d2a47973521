"""How answers look: JSON for programs, tables for people, and errors with what to do.

Invariant: the answer alone goes to stdout; everything else goes to stderr.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from syncagent.errors import SyncagentError, UsageError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from syncagent.storage.drift import Finding

_WIDE = 1000
"""Where nobody looks at a terminal, lines are as long as they are."""


def json(answer: object, *, line: bool = False) -> None:
    """One JSON document, on one line if it is one of many. Times are ISO 8601."""
    import msgspec

    text = msgspec.json.format(msgspec.json.encode(answer), indent=-1 if line else 2).decode()
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def csv(rows: Iterable[Mapping[str, object]], columns: Sequence[str]) -> None:
    """A line of headings, and one for each row; what is not plain is written as JSON."""
    import csv as writer

    import msgspec

    lines = writer.writer(sys.stdout, lineterminator="\n")
    lines.writerow(columns)
    for row in rows:
        values = [row[column] for column in columns]
        lines.writerow(
            [msgspec.json.encode(v).decode() if isinstance(v, dict | list) else plain(v) for v in values]
        )
    sys.stdout.flush()


def console(*, stderr: bool = False) -> "Console":
    from rich.console import Console

    file = sys.stderr if stderr else sys.stdout
    return Console(file=file, highlight=False, width=None if file.isatty() else _WIDE)


def show(*parts: "RenderableType") -> None:
    """Print to stdout."""
    screen = console()
    for part in parts:
        screen.print(part)


def line(text: str) -> None:
    """Print to stdout, as it is, however narrow the screen."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def say(text: str) -> None:
    """Talk: to stderr, as it is."""
    sys.stderr.write(text + "\n")


def confirm(question: str) -> None:
    """Ask before what destroys; UsageError if nobody is there."""
    if not sys.stdin.isatty():
        raise UsageError("this destroys, and there is nobody to ask", hint="repeat it with --yes")
    import typer

    typer.confirm(question, abort=True, err=True)


def grid(rows: Iterable[Sequence[object]], headings: Sequence[str]) -> "RenderableType":
    """A table; a heading that starts with `>` is for numbers. What is in cells is never read as markup."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in headings:
        right = heading.startswith(">")
        table.add_column(heading.lstrip(">"), justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(plain(cell)) for cell in row))
    return table


def facts(values: Mapping[str, object]) -> "RenderableType":
    """Names and values, one a line."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in values.items():
        table.add_row(name, value if isinstance(value, Text) else Text(plain(value)))
    return table


def findings(found: "Sequence[Finding]") -> "RenderableType":
    """What a check found, and what mends it."""
    from rich.text import Text

    colours = {"error": "bold red", "warning": "yellow", "note": "dim"}
    rows = [
        (
            Text(f.severity, colours[f.severity]),
            Text(f.what) if f.mend is None else Text.assemble(f.what, "\n", (f.mend, "cyan")),
        )
        for f in found
    ]
    return grid(rows, ("", "what is found, and what mends it"))


def plain(value: object) -> str:
    """A value as a person reads it."""
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.3g}"
        case datetime():
            return value.astimezone().isoformat(" ", "milliseconds")
        case dict() | list():
            import msgspec

            return msgspec.json.encode(value).decode()
        case _:
            return str(value)


def size(count: int | None) -> str:
    """Bytes as a person reads them."""
    if count is None:
        return ""
    value, units = float(count), ["TB", "GB", "MB", "kB", "B"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop()
    return f"{value:.1f} {units[-1]}" if 0 < value < 10 and units[-1] != "B" else f"{value:.0f} {units[-1]}"


def error(problem: SyncagentError) -> None:
    """What happened, where, and what to do."""
    from rich.text import Text

    screen = console(stderr=True)
    screen.print(Text.assemble(("error: ", "bold red"), problem.message))
    for line in (problem.detail or "").splitlines():
        screen.print(Text(f"  {line}"))
    for line in (problem.hint or "").splitlines():
        screen.print(Text.assemble(("hint: ", "bold cyan"), line))


def span(seconds: float | None) -> str:
    """A time span as a person reads it."""
    if seconds is None:
        return ""
    for limit, unit, name in ((60, 1, "s"), (3600, 60, "min"), (86400, 3600, "h")):
        if seconds < limit:
            return f"{max(seconds, 0) / unit:.1f} {name}"
    return f"{seconds / 86400:.1f} d"


def counted(number: int, one: str, many: str | None = None) -> str:
    """`1 row`, `2 rows`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


class Progress:
    """The last thing the agent said, on stderr: in place at a terminal, else nowhere."""

    def __init__(self, *, quiet: bool) -> None:
        from rich.status import Status

        screen = console(stderr=True)
        self._status = None if quiet or not screen.is_terminal else Status("asking the agent", console=screen)

    def __enter__(self) -> "Progress":
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()

    def __call__(self, said: str) -> None:
        if self._status is not None:
            from rich.markup import escape

            self._status.update(escape(said))
