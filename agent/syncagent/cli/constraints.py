"""`syncagent constraints`: what is done about two rows with one value, and about rows whose parent is gone."""

from typing import Annotated

import typer

from syncagent.cli import render
from syncagent.cli.options import DsnOption, HomeOption, JsonOption, dsn_of

_SECONDS = 30.0
"""How long other sites may take to follow."""

OnUniqueOption = Annotated[
    list[str] | None,
    typer.Option(
        "--on-unique",
        envvar="SYNCAGENT_ON_UNIQUE",
        metavar="CONSTRAINT=POLICY",
        help="Two sites have written rows with one value. keep-both: the row of the larger key yields it, and both live;"
        " merge: that row is deleted, and rows that refer to it are given to the other one;"
        " report: the one that comes later waits, parked. [default: keep-both]",
        show_default=False,
    ),
]
OnForeignKeyOption = Annotated[
    list[str] | None,
    typer.Option(
        "--on-foreign-key",
        envvar="SYNCAGENT_ON_FOREIGN_KEY",
        metavar="CONSTRAINT=POLICY",
        help="One site has deleted a row to which another one refers. restore-parent: it comes back, everywhere; cascade: what"
        " refers to it is deleted, too; report: it is gone, and a conflict says so. [default: restore-parent]",
        show_default=False,
    ),
]


def constraints(
    table: Annotated[str, typer.Argument(help="An attached table, named as in SQL.")],
    *,
    on_unique: OnUniqueOption = None,
    on_foreign_key: OnForeignKeyOption = None,
    home: HomeOption = None,
    dsn: DsnOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show, or choose for all sites, what is done where rows of two sites break a unique, exclusion or foreign key constraint."""
    from syncagent.storage import attaching, inspection
    from syncagent.storage import constraints as storage
    from syncagent.storage import tables as attached
    from syncagent.storage.commands import site_of
    from syncagent.storage.requests import ask

    chosen = storage.choices(on_unique or [], on_foreign_key or [])
    missing: dict[str, str] = {}
    with site_of(dsn_of(home, dsn)) as connection:
        tables = attached.attached(connection, [table])
        (oid,) = tables
        if chosen:
            storage.refuse_unfit(connection, tables, chosen)
            storage.refuse_nothing_to_yield(connection, oid, chosen)
            (named,) = attaching.named(connection, [table])
            asked = {
                "table": (named.schema, named.name),
                "policies": chosen,
                "timeout": _SECONDS,
            }
            missing = ask(connection, "constrain", asked, seconds=_SECONDS)["missing"]
        found = inspection.constraints(connection, table)
    if as_json:
        render.json(found)
    elif not found:
        render.say(f"{table} has no constraint that rows of two sites could break")
    else:
        rows = [
            (row["constraint_name"], row["kind"], row["policy"], row["column_name"], row["becomes"])
            for row in found
        ]
        render.show(
            render.grid(rows, ("constraint", "kind", "on collision", "column that yields", "becomes"))
        )
    for site, why in missing.items():
        render.say(f"not changed yet at {site}: {why}")
