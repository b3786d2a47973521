"""`syncagent join`: a database becomes one more site of a cluster."""

from typing import TYPE_CHECKING, Annotated

import typer

from syncagent.cli import render
from syncagent.cli.options import (
    AdvertiseOption,
    HomeOption,
    JsonOption,
    ListenOption,
    NameOption,
    home_of,
    seconds,
)
from syncagent.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rich.progress import TaskID

    from syncagent.services.joiner import CopyProgress
    from syncagent.services.surveyor import Survey


def _rate(text: str) -> float:
    from syncagent.core.pace import rate

    try:
        return rate(text)
    except UsageError as error:
        raise typer.BadParameter(f"{error.message}: {error.hint}") from None


PeerOption = Annotated[str, typer.Option(help="HOST:PORT of a member, whose agent runs.")]
DatabaseOption = Annotated[
    str,
    typer.Option(
        envvar="SYNCAGENT_DSN",
        help="The new site's database, as postgresql://user:password@host:5432/database.",
    ),
]
TokenOption = Annotated[
    str | None,
    typer.Option(
        envvar="SYNCAGENT_TOKEN",
        help="What `syncagent invite` printed at a member. The environment keeps it out of process lists.",
        show_default=False,
    ),
]
TimeoutOption = Annotated[
    float, typer.Option(parser=seconds, metavar="TIME", help="How long to wait for other sites at each step.")
]
RateOption = Annotated[
    float | None,
    typer.Option(
        parser=_rate,
        metavar="RATE",
        help="Bytes a second for the copy, at most: 500kB, 10MB.",
        show_default=False,
    ),
]


def join(
    *,
    peer: PeerOption,
    dsn: DatabaseOption,
    name: NameOption,
    listen: ListenOption,
    token: TokenOption = None,
    advertise: AdvertiseOption = None,
    timeout: TimeoutOption = "60s",  # type: ignore[assignment]
    max_rate: RateOption = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Do not ask about tables that hold rows already.")
    ] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Become a site of a member's cluster: identity, copy, what was written meanwhile. Given again, it goes on."""
    from syncagent import joining
    from syncagent import settings as configuration
    from syncagent.cli.run import talk_on_stderr
    from syncagent.core.invitation import Token

    configuration.site_name(name)
    configuration.listen_address(listen)
    configuration.address(peer)
    if advertise is not None:
        configuration.address(advertise)
    folder = home_of(home)
    _refuse_used(folder)
    talk_on_stderr(as_json=as_json, only_trouble=True)
    talk = Talk(quiet=as_json)
    request = joining.Request(
        peer=peer,
        token=None if token is None else Token.read(token),
        dsn=dsn,
        name=name,
        listen=listen,
        advertise=advertise,
        home=folder,
        seconds=timeout,
        max_rate=max_rate,
        agree=lambda survey: agree(survey, yes=yes, quiet=as_json),
    )
    settings = joining.join(request, talk)
    talk.close()
    if as_json:
        render.json({"node": settings.node, "name": settings.name, "home": str(settings.home)})
    else:
        render.show(f"Site {settings.name} is node {settings.node} of the cluster. Now: syncagent run")


def agree(survey: "Survey", *, yes: bool, quiet: bool) -> bool:
    """Show what would become of the rows that are here, and ask."""
    if not quiet:
        show_survey(survey, ("equal", "come", "differ", "only here, sent to all", "written just now"))
    if not yes:
        render.confirm(
            "Where rows differ the larger stamp or content wins, the other is kept as a conflict. Go on?"
        )
    return True


def show_survey(survey: "Survey", headings: "Sequence[str]") -> None:
    for note in survey.notes:
        render.say(note)
    rows = [
        (
            table.table,
            *(f"{n:,}" for n in (table.equal, table.lacking, table.changed, table.extra, table.own)),
        )
        for table in survey.tables
    ]
    render.show(render.grid(rows, ("table", *(f">{heading}" for heading in headings))))


def _refuse_used(home: "Path") -> None:
    from syncagent.cli.init import refuse_used
    from syncagent.joining import DRAFT

    if not (home / DRAFT).exists():
        refuse_used(home)


class Talk:
    """A bar while rows come, if somebody looks; else a line now and then."""

    def __init__(self, *, quiet: bool) -> None:
        import sys

        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("copying"),
            BarColumn(),
            TextColumn("{task.completed:,.0f} of about {task.total:,.0f} rows"),
            TextColumn("{task.fields[rate]:,.0f}/s"),
            TimeRemainingColumn(),
            console=render.console(stderr=True),
            disable=quiet or not sys.stderr.isatty(),
        )
        self._task: TaskID | None = None
        self._quiet, self._said, self._trouble = quiet, 0, ""

    def say(self, text: str) -> None:
        render.say(text)

    def progress(self, progress: "CopyProgress") -> None:
        if self._bar.disable:
            self._line(progress)
        elif self._task is None:
            self._bar.start()
            self._task = self._bar.add_task("", total=progress.rows_expected, rate=0.0)
        else:
            self._bar.update(
                self._task, total=progress.rows_expected, completed=progress.rows, rate=progress.rate
            )
            if progress.ranges == progress.ranges_expected:
                self._bar.stop()
        if progress.trouble and progress.trouble != self._trouble:
            render.say(progress.trouble)
        self._trouble = progress.trouble or ""

    def _line(self, progress: "CopyProgress") -> None:
        tenth = 10 * progress.rows // max(progress.rows_expected, 1)
        if not self._quiet and tenth > self._said:
            self._said = tenth
            eta = "" if progress.eta is None else f", {render.span(progress.eta)} to go"
            render.say(f"copying: {progress.rows:,} of about {progress.rows_expected:,} rows{eta}")

    def close(self) -> None:
        self._bar.stop()
