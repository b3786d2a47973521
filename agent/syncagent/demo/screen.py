"""What a person sees: the story scrolls by, and under it three sites side by side, moving.

Invariant: everything goes to stderr. Without a terminal, or if asked to be plain, every event is one line
without a single escape code, and nothing is repeated faster than every few seconds.
"""

import re
import sys
import time
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.panel import Panel
from rich.rule import Rule
from rich.text import Text

from syncagent.demo.watch import Sight

_PLAIN_SECONDS = 2.5
_WIDE_GAP = re.compile(r" {3,}")
_STEPS = " ▁▂▃▄▅▆▇█"
_HISTORY = 40
_LATE_SECONDS = 1.0
"""Behind by more than this is worth a colour."""


class Screen:
    """`with` it, tell it what happens and show it the sites."""

    def __init__(self, *, plain: bool, acts: int) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._moving = not plain and self._console.is_terminal and not self._console.is_dumb_terminal
        self._live = Live(console=self._console, auto_refresh=False)
        self._began = time.monotonic()
        self._act, self._acts, self._title = 0, acts, ""
        self._writes: dict[str, deque[float]] = {}
        self._sights: Sequence[Sight] = ()
        self._shown = 0.0

    def __enter__(self) -> Self:
        if self._moving:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._moving:
            self._live.stop()
            self._console.print()  # what follows starts a line of its own, after the last escape code

    # ---- the story

    def act(self, title: str, *told: str) -> None:
        """The next act, and what it is about."""
        self._act, self._title = self._act + 1, title
        if self._moving:
            self._console.print()
            self._console.print(Text(f" {self._act}  {title}", "bold cyan"))
            if self._sights:
                self._live.update(self._picture(self._sights), refresh=True)
        else:
            self._line(f"act {self._act} of {self._acts}: {title}")
        for text in told:
            self.say(text)

    def say(self, text: str) -> None:
        """A line of narration."""
        if self._moving:
            self._tell(Text(text), 4)
        else:
            self._line(text)

    def command(self, site: str, command: str) -> None:
        """What is typed at a site."""
        if self._moving:
            self._tell(Text.assemble((f"{site} $ ", "green"), (command, "bold")), 4)
        else:
            self._line(f"{site} $ {command}")

    def answer(self, text: str, *, whole: bool = False) -> None:
        """What a command said, as it said it; at a terminal long lines end at its edge, unless `whole`."""
        for said in text.strip("\n").splitlines():
            line = said.rstrip()
            if not self._moving:
                self._line(f"  {line}".rstrip())
            elif whole:
                self._tell(Text(_WIDE_GAP.sub("  ", line), "dim"), 6)
            else:
                self._console.print(Text(f"      {line}", "dim"), no_wrap=True, overflow="ellipsis")

    def _tell(self, text: Text, indent: int) -> None:
        self._console.print(Padding(text, (0, 0, 0, indent)))

    def _line(self, text: str) -> None:
        sys.stderr.write(f"{time.monotonic() - self._began:6.1f} s  {text}\n")
        sys.stderr.flush()

    # ---- the sites

    def show(self, sights: Sequence[Sight]) -> None:
        """The sites as they are now."""
        for sight in sights:
            self._writes.setdefault(sight.name, deque(maxlen=_HISTORY)).append(sight.writes)
        if self._moving:
            self._sights = sights
            self._live.update(self._picture(sights), refresh=True)
        elif time.monotonic() - self._shown > _PLAIN_SECONDS:
            self._shown = time.monotonic()
            self._line("; ".join(map(_in_words, sights)))

    def _picture(self, sights: Sequence[Sight]) -> RenderableType:
        seconds = time.monotonic() - self._began
        title = Text.assemble(
            (f"{self._act} of {self._acts}: {self._title}", "bold"), (f"  {seconds:.0f} s", "dim")
        )
        width = self._console.width // len(sights)
        panels = [self._panel(sight, width) for sight in sights]
        return Group(Rule(title, align="left", style="dim"), Columns(panels, padding=0, width=width))

    def _panel(self, sight: Sight, width: int) -> Panel:
        late = sight.seconds > _LATE_SECONDS
        writes = f"{sight.writes:4.0f}"
        facts = {
            "rows": Text(f"{sight.rows:,}"),
            "orders": Text(f"{sight.purchases:,}"),
            "writes/s": self._trace(sight.name, width - 18) + Text(writes),
            "lag": Text(f"{sight.behind:,} sales {sight.seconds:.1f} s", "bold yellow" if late else ""),
            "conflicts": Text(f"{sight.conflicts:,}"),
            "links": _links(sight),
        }
        inner = width - 4
        lines = [Text(name.ljust(inner - fact.cell_len), "dim") + fact for name, fact in facts.items()]
        colour = "red" if sight.cut_off or not sight.agent else "yellow" if late else "green"
        state = "agent is dead" if not sight.agent else "cut off" if sight.cut_off else "agent runs"
        return Panel(
            Text("\n").join(lines),
            title=Text(sight.name, f"bold {colour}"),
            subtitle=Text(state, colour),
            border_style=colour,
            width=width,
        )

    def _trace(self, name: str, width: int) -> Text:
        """The last rates as a line of blocks."""
        recent = list(self._writes[name])[-max(width, 1) :]
        top = max(*recent, 1.0)
        blocks = (_STEPS[round(rate / top * (len(_STEPS) - 1))] for rate in recent)
        return Text("".join(blocks), "cyan")


def _links(sight: Sight) -> Text:
    parts = [
        Text.assemble(("●", "green") if up else ("✗", "bold red"), f" {name}")
        for name, up in sight.links.items()
    ]
    return Text(" ").join(parts)


def _in_words(sight: Sight) -> str:
    state = ", agent dead" if not sight.agent else ", cut off" if sight.cut_off else ""
    return (
        f"{sight.name} {sight.rows} rows {sight.writes:.0f} writes/s {sight.seconds:.1f} s behind"
        f" {sight.conflicts} conflicts{state}"
    )
