"""What a new site needs before rows can come: the attached tables, and all they are made of, as SQL of the donor.

The way: `take` at the donor, send the Blueprint, then at the new site `missing`, `differences`, `obstacles`,
`blueprint.only(...)` for the tables that are missing, `build_before`, rows, `build_keys`, `build_after`.
"""

import msgspec

from syncagent.errors import ProtocolError, RefusedError
from syncagent.storage.blueprint.building import build_after, build_before, build_keys
from syncagent.storage.blueprint.comparing import differences, missing, obstacles
from syncagent.storage.blueprint.parts import Blueprint
from syncagent.storage.blueprint.taking import take
from syncagent.storage.commands import Connection, site_of

__all__ = [
    "Blueprint",
    "build_after",
    "build_before",
    "build_keys",
    "decode",
    "differences",
    "missing",
    "obstacles",
    "of_attached",
    "refuse_typed",
    "take",
]


def of_attached(dsn: str) -> bytes:
    """The blueprint of every attached table of a site, as it travels."""
    with site_of(dsn) as connection:
        refuse_typed(connection)
        rows = connection.execute(
            "select n.nspname as schema, c.relname as name from syncagent.replicated r"
            " join pg_class c on c.oid = r.relation join pg_namespace n on n.oid = c.relnamespace order by r.id"
        ).fetchall()
        return msgspec.msgpack.encode(take(connection, [(row["schema"], row["name"]) for row in rows]))


def refuse_typed(connection: Connection) -> None:
    """The new site would have what only this one has, and send it to the others; or let rows in that they refuse. An index is its own affair,
    unless it is unique."""
    found = connection.execute(
        """
        select format('%I.%I', r.schema_name, r.table_name) as table_name, syncagent._typed_text(d.kind, d.name, d.agreed, d.now, d.became) as what
        from syncagent._typed_now() d join syncagent.replicated r on r.id = d.relation
        left join syncagent.typed_record t on (t.relation, t.kind, t.name) = (d.relation, d.kind, d.name)
        where t.epoch is null and (d.kind <> 'index' or coalesce(d.now - 'invalid', d.agreed) ->> 'definition' ~ '^CREATE UNIQUE ') limit 1
        """
    ).fetchone()
    if found is not None:
        raise RefusedError(
            f"{found['table_name']} was changed by hand at the site that is to give its copy: {found['what']}",
            hint="there: `syncagent schema adopt`, or take it back; or join at another site",
        )


def decode(data: bytes) -> Blueprint:
    try:
        return msgspec.msgpack.decode(data, type=Blueprint)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError("a blueprint is malformed", detail=str(error)) from error
