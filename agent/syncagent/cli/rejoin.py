"""`syncagent rejoin`: a site whose database was restored becomes a member again."""

from typing import TYPE_CHECKING, Annotated

import typer

from syncagent.cli import render
from syncagent.cli.join import RateOption, TimeoutOption
from syncagent.cli.options import DsnOption, HomeOption, JsonOption, home_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from syncagent.returning import Request
    from syncagent.services.surveyor import Survey

PeerOption = Annotated[
    str | None,
    typer.Option(
        help="Name or address of the member to compare with. [default: whoever answers]",
        show_default=False,
    ),
]


def rejoin(
    *,
    peer: PeerOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Compare, and change nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    timeout: TimeoutOption = "60s",  # type: ignore[assignment]
    max_rate: RateOption = None,
    home: HomeOption = None,
    dsn: DsnOption = None,
    as_json: JsonOption = False,
) -> None:
    """Come back after the database was restored or cloned: another number, and what the others have. Given again, it goes on."""
    from syncagent.returning import Request

    come_back(
        Request(home=home_of(home), peer=peer, dsn=dsn, seconds=timeout, max_rate=max_rate),
        ("equal", "come", "are replaced", "are deleted here", "own, sent to all"),
        "Rows that are only here are deleted, rows that differ are replaced. Go on?",
        dry_run=dry_run,
        yes=yes,
        as_json=as_json,
    )


def come_back(
    request: "Request", headings: "Sequence[str]", question: str, *, dry_run: bool, yes: bool, as_json: bool
) -> None:
    """Show what it would do, ask, and do it."""
    from syncagent import returning
    from syncagent.cli.join import Talk, show_survey
    from syncagent.cli.run import talk_on_stderr

    talk_on_stderr(as_json=as_json, only_trouble=True)
    talk = Talk(quiet=as_json)
    seen: list[Survey] = []

    def agree(survey: "Survey") -> bool:
        seen.append(survey)
        if not as_json and survey.tables:  # a witness has none
            show_survey(survey, headings)
        if not (dry_run or yes):
            render.confirm(question)
        return not dry_run

    settings = returning.rejoin(request, talk, agree)
    talk.close()
    if as_json:
        import msgspec

        render.json(
            {
                "node": settings.node if settings else None,
                "name": settings.name if settings else None,
                "survey": msgspec.to_builtins(seen[0]) if seen else None,
            }
        )
    elif settings is not None:
        render.show(f"Site {settings.name} is node {settings.node} of the cluster. Now: syncagent run")
