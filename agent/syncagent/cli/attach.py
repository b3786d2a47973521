"""`syncagent attach`: from now on these tables are replicated."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from syncagent.cli import render
from syncagent.cli.constraints import OnForeignKeyOption, OnUniqueOption
from syncagent.cli.options import DsnOption, HomeOption, JsonOption, dsn_of, seconds
from syncagent.errors import RefusedError, UsageError

if TYPE_CHECKING:
    from syncagent.storage.commands import Connection
    from syncagent.storage.preflight import Judged
    from syncagent.storage.tables import Attached, Candidate, Terms

_SECONDS = 30.0
"""How long other sites may take to answer, and then to attach."""

LockTimeoutOption = Annotated[
    float,
    typer.Option(parser=seconds, metavar="TIME", help="How long to keep trying for a lock that others hold."),
]
StrideOption = Annotated[
    int | None,
    typer.Option(
        min=2,
        metavar="N",
        help="Serial and identity columns: draw every Nth number, so that no two sites draw the same."
        " More than there will ever be sites, and the same at each.",
        show_default=False,
    ),
]
BucketOption = Annotated[
    Literal["minute", "hour", "day"],
    typer.Option(
        help="How much time of keys a bucket of the Merkle forest holds: a day for tables of a few rows an hour, a minute"
        " for those of thousands a second. The same at each site."
    ),
]
StrategyOption = Annotated[
    Literal["lww", "lww-column", "merge"],
    typer.Option(
        help="What becomes of a row that two sites write at once: the later write wins the row, or each of its columns,"
        " or the columns are merged."
    ),
]
MergeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--merge",
        envvar="SYNCAGENT_ATTACH_MERGE",
        metavar="COLUMN=HOW",
        help="With --strategy merge: how a column is merged that two sites write at once. counter: what both added; set: members"
        " that were added stay, those that were removed go; append, max, min: what is shown of both values; function:SCHEMA.NAME:"
        " what this function makes of them. Other columns show the latest, and keep the other value.",
        show_default=False,
    ),
]
EveryOption = Annotated[
    bool, typer.Option("--all", envvar="SYNCAGENT_ATTACH_ALL", help="Every table that is not attached.")
]
SchemaOption = Annotated[
    str | None, typer.Option(help="With --all: only tables of this schema.", show_default=False)
]
DeriveOption = Annotated[
    bool, typer.Option("--derive-key", help="Accept primary keys that are not one uuid column.")
]
ExcludeOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATTERN",
        help="With --all: leave out, as in 'audit_*' or 'billing.*'.",
        show_default=False,
    ),
]
ExistingOption = Annotated[
    Literal["ship", "keep"],
    typer.Option(help="Rows that are there: ship them to the others, or keep them, for every site has them."),
]


def attach(
    tables: Annotated[
        list[str] | None, typer.Argument(help="Tables, named as in SQL.", show_default=False)
    ] = None,
    *,
    every: EveryOption = False,
    schema: SchemaOption = None,
    exclude: ExcludeOption = None,
    derive_key: DeriveOption = False,
    stride: StrideOption = None,
    strategy: StrategyOption = "lww",
    merge: MergeOption = None,
    bucket: BucketOption = "hour",
    on_unique: OnUniqueOption = None,
    on_foreign_key: OnForeignKeyOption = None,
    existing: ExistingOption = "ship",
    lock_timeout: LockTimeoutOption = "30s",  # type: ignore[assignment]
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    home: HomeOption = None,
    dsn: DsnOption = None,
    as_json: JsonOption = False,
) -> None:
    """Replicate tables from now on, at every site: all of those named, or none if one of them cannot be."""
    from syncagent.storage import constraints, merges, preflight
    from syncagent.storage import tables as storage
    from syncagent.storage.commands import site_of

    if bool(tables) == every:
        raise UsageError("name tables, or use --all" if not tables else "name tables or use --all, not both")
    if not every and (schema or exclude):
        raise UsageError("--schema and --exclude choose among --all tables")
    terms = storage.Terms(
        derive=derive_key,
        ship=existing == "ship",
        stride=stride,
        bucket=bucket,
        policies=constraints.choices(on_unique or [], on_foreign_key or []),
        strategy=strategy,
        merges=merges.choices(merge or [], strategy),
    )
    with site_of(dsn_of(home, dsn)) as connection:
        storage.refuse_witness(connection)
        chosen = (
            storage.every(connection, schema, exclude or [], derive=derive_key)
            if every
            else storage.named(connection, tables or [], derive=derive_key)
        )
        names = {table.oid: table.name for table in chosen}
        constraints.refuse_unfit(connection, names, terms.policies)
        merges.refuse_unknown(connection, names, terms.merges)
        chosen = merges.judged(connection, chosen, terms.merges)
        judged = preflight.of(connection, chosen, strided=stride is not None)
        others = _ask_others(connection, chosen, terms)
        if dry_run:
            foretell(judged, as_json, others)
            return
        storage.refuse_obstacles(chosen)
        _refuse_elsewhere(others)
        done = storage.attach(
            connection,
            chosen,
            terms,
            patience=lock_timeout,
            on_wait=lambda held: render.say(f"waiting: {held}"),
        )
        missing = _await_others(connection, chosen) if done else {}
    _tell(done, as_json)
    _tell_of_others(missing)
    for finding in (finding for table in judged for finding in table.notes):
        render.say(f"{finding.severity}: {finding.what}")


def _ask_others(connection: "Connection", chosen: "list[Candidate]", terms: "Terms") -> list[dict[str, Any]]:
    """What every other site says about it; nothing if no agent runs here."""
    from syncagent.storage import merges
    from syncagent.storage.commands import agent_runs
    from syncagent.storage.requests import ask

    if not agent_runs(connection):
        return []
    asked = [
        {
            "table": (table.schema, table.relname),
            "derive": terms.derive,
            "ship": terms.ship,
            "stride": terms.stride,
            "bucket": terms.bucket,
            "strategy": terms.strategy,
            "merges": list(merges.of_table(connection, table.oid, terms.merges).items()),
        }
        for table in chosen
    ]
    found: list[dict[str, Any]] = ask(connection, "inspect", {"tables": asked}, seconds=_SECONDS)["sites"]
    return found


def _await_others(connection: "Connection", chosen: "list[Candidate]") -> dict[str, str] | None:
    """Which sites have not attached them in time, and why; None if no agent runs here."""
    from syncagent.storage.commands import agent_runs
    from syncagent.storage.requests import ask

    if not agent_runs(connection):
        return None
    asked = {"tables": [(table.schema, table.relname) for table in chosen], "timeout": _SECONDS}
    missing: dict[str, str] = ask(connection, "attached", asked, seconds=_SECONDS)["missing"]
    return missing


def _refuse_elsewhere(others: list[dict[str, Any]]) -> None:
    """One error for all that other sites have against it."""
    reasons = [
        f"{name(found['table'])} at {site['site']}: {'; '.join(found['problems'])}"
        for site in others
        for found in site["tables"]
        if found["problems"]
    ]
    if reasons:
        hints = {hint for site in others for found in site["tables"] for hint in found["hints"]}
        raise RefusedError(
            "not every site can attach this, so none does",
            detail="\n".join(reasons),
            hint="\n".join(sorted(hints)),
        )
    for site in others:
        if site["error"]:
            render.say(f"{site['site']} was not asked: {site['error']}")


def name(table: list[str]) -> str:
    """A table of another site, for people."""
    return ".".join(table)


def _tell_of_others(missing: dict[str, str] | None) -> None:
    if missing is None:
        render.say("the other sites attach them once the agent of this one runs")
        return
    for site, why in missing.items():
        render.say(f"not attached yet at {site}: {why}")


def foretell(judged: "list[Judged]", as_json: bool, others: "list[dict[str, Any]] | None" = None) -> None:
    """The preflight, as a table; exit 1 if a table that was asked for cannot go."""
    from syncagent.storage import preflight

    if as_json:
        render.json(
            [
                {
                    "table": table.candidate.name,
                    "verdict": table.verdict,
                    "key": table.candidate.key,
                    "derived": table.candidate.derived,
                    "problems": table.candidate.problems,
                    "hints": table.candidate.hints,
                    "notes": table.notes,
                }
                for table in judged
            ]
        )
    else:
        rows = [
            (
                table.candidate.name,
                ", ".join(table.candidate.key) + (" (derived)" if table.candidate.derived else ""),
                _VERDICTS[table.verdict],
                "" if table.verdict == "attached" else "; ".join(table.candidate.problems),
                "" if table.verdict == "attached" else "\n".join(table.candidate.hints),
            )
            for table in judged
        ]
        render.show(render.grid(rows, ("table", "key", "verdict", "why", "what mends it")))
        elsewhere = [
            (name(found["table"]), site["site"], "; ".join(found["problems"]), "\n".join(found["hints"]))
            for site in others or ()
            for found in site["tables"]
            if found["problems"]
        ]
        if elsewhere:
            render.show("", render.grid(elsewhere, ("table", "at", "why not", "what mends it")))
        if notes := preflight.gathered(judged):
            render.show("", render.findings(notes))
    troubled = any(found["problems"] for site in others or () for found in site["tables"])
    if troubled or any(table.verdict == "stays" for table in judged):
        raise typer.Exit(1)


_VERDICTS = {
    "attached": "is attached",
    "excluded": "excluded",
    "goes": "can be attached",
    "stays": "cannot be attached",
}


def _tell(done: "list[Attached]", as_json: bool) -> None:
    if as_json:
        render.json(done)
        return
    if not done:
        render.say("nothing to attach: every table is attached, or excluded")
        return
    rows = [
        (
            a.table,
            ", ".join(a.key) + (" (derived)" if a.derived else ""),
            "kept" if a.shipped is None else f"{a.shipped:,}",
            ", ".join(a.numbered),
        )
        for a in done
    ]
    render.show(render.grid(rows, ("attached", "key", ">rows to ship", "own numbers")))
