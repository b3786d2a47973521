"""Taking the blueprint of tables, at the donor.

Invariant: it only reads. One look at the catalog is not one snapshot of it: the caller keeps the schema still,
or takes the blueprint in the transaction whose snapshot the rows are read from.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from syncagent.errors import RefusedError, UsageError
from syncagent.storage.blueprint import belongings, objects, relations, versions
from syncagent.storage.blueprint.parts import (
    Blueprint,
    Column,
    Extension,
    Function,
    Name,
    Need,
    Role,
    Step,
    Table,
    Type,
    pinned,
)
from syncagent.storage.blueprint.reach import Node, Reach, reach
from syncagent.storage.commands import Connection, border

PLAIN = {
    "search_path": "",
    "datestyle": "ISO, MDY",
    "intervalstyle": "postgres",
    "extra_float_digits": "1",
    "bytea_output": "hex",
}
"""With an empty search path the server writes every name with its schema."""
_QUOTING = {"quote_all_identifiers": "on"}
"""A word that is reserved only in another version is quoted too."""

_ROOTS = """
    select c.oid::bigint, c.relkind::text as kind, c.relispartition as partition, u.number,
           exists (select from pg_inherits i where c.oid in (i.inhrelid, i.inhparent)) as inherits
    from unnest(%(schemas)s::text[], %(names)s::text[]) with ordinality as u (schema, name, number)
    left join (pg_class c join pg_namespace n on n.oid = c.relnamespace) on (n.nspname, c.relname) = (u.schema, u.name)
    order by u.number
"""
_NODES = """
    select distinct on (x.oid) x.oid::bigint, u.oid::bigint as root, c.relkind::text as kind, c.relpersistence::text as persistence,
           n.nspname || '.' || c.relname as name
    from unnest(%(roots)s::bigint[]::oid[]) as u (oid)
    cross join lateral (select u.oid union select p.relid from pg_partition_tree(u.oid) as p) as x
    join pg_class c on c.oid = x.oid join pg_namespace n on n.oid = c.relnamespace order by x.oid
"""
_COUNTS = (
    "select s.sequence::oid::bigint as sequence, min(s.before) as before from syncagent.stride s group by 1"
)

_TYPES = ("enum", "composite", "domain", "range")
_UNQUOTED = re.compile(r'"([a-z_][a-z0-9_$]*)"')


def take(connection: Connection, tables: Sequence[tuple[str, str]]) -> Blueprint:
    """The blueprint of these tables, given by schema and name, with their partitions.

    Raises UsageError for a table that is not there, RefusedError for one that cannot be brought along.
    """
    names = list(dict.fromkeys(Name(*table) for table in tables))
    with border(), connection.transaction(), pinned(connection, PLAIN):
        roots = _roots(connection, names)
        root_of = _nodes(connection, roots)
        found = reach(connection, list(root_of))
        types = _types(connection, found)
        facts = [Table(names[n], *facts_of(connection, oid)) for n, oid in enumerate(roots)]
        functions = [
            Function(row["name"], row["quoted"], row["digest"])
            for row in connection.execute(belongings.DIGESTS.encode(), {"oids": found.of("function")})
        ]
        needs = _needs(connection, found)
        with pinned(connection, _QUOTING):
            return _Taker(connection, found, root_of).blueprint(facts, types, functions, needs)


def facts_of(connection: Connection, oid: int) -> tuple[tuple[Column, ...], tuple[str, ...]]:
    """What is compared of a table: its columns, and its key."""
    columns = tuple(
        Column(row["name"], row["type"], row["not_null"], row["collation"], row["generated"])
        for row in connection.execute(belongings.COLUMNS.encode(), {"tables": [oid]})
        if row["name"] is not None
    )
    key = connection.execute(belongings.KEYS.encode(), {"tables": [oid]}).fetchone()
    return columns, tuple(key["key"]) if key else ()


def shapes_of(connection: Connection, oids: Sequence[int]) -> dict[int, Type]:
    """What is compared of types."""
    rows = connection.execute(belongings.SHAPES.encode(), {"oids": list(oids)})
    return {row["oid"]: Type(row["name"], row["quoted"], tuple(row["shape"])) for row in rows}


def _roots(connection: Connection, names: Sequence[Name]) -> list[int]:
    rows = connection.execute(
        _ROOTS.encode(), {"schemas": [n.schema for n in names], "names": [n.name for n in names]}
    ).fetchall()
    for name, row in zip(names, rows, strict=True):
        if row["oid"] is None:
            raise UsageError(f"there is no table {name}")
        if row["kind"] not in ("r", "p"):
            raise RefusedError(f"{name} cannot be brought along: it is not a table")
        if row["partition"]:
            raise RefusedError(
                f"{name} cannot be brought along: it is a partition",
                hint="name the table it is a partition of",
            )
        if row["inherits"] and row["kind"] == "r":
            raise RefusedError(
                f"{name} cannot be brought along: it inherits, or others inherit from it",
                hint="plain inheritance cannot be replicated",
            )
    return [row["oid"] for row in rows]


def _nodes(connection: Connection, roots: Sequence[int]) -> dict[int, int]:
    """All tables with their partitions, and of each the root."""
    rows = connection.execute(_NODES.encode(), {"roots": list(roots)}).fetchall()
    for row in rows:
        if row["kind"] not in ("r", "p") or row["persistence"] == "t":
            what = "temporary" if row["persistence"] == "t" else "a foreign table"
            raise RefusedError(f"{row['name']} cannot be brought along: it is {what}")
    return {row["oid"]: row["root"] for row in rows}


def _types(connection: Connection, found: Reach) -> list[Type]:
    return list(shapes_of(connection, found.of(*_TYPES)).values())


def _needs(connection: Connection, found: Reach) -> list[Need]:
    rows = connection.execute(
        objects.NEEDS.encode(),
        {"classes": [need[0] for need in found.needs], "oids": [need[1] for need in found.needs]},
    )
    return [Need(row["what"], row["type"], tuple(row["names"]), tuple(row["arguments"])) for row in rows]


def _step(row: dict[str, Any]) -> Step:
    """A row of one of the queries; words for people lose the quotes that nobody needs."""
    fields = {name: value for name, value in row.items() if name in Step.__struct_fields__}
    roles = zip(row.get("role_names", ()), row.get("role_idents", ()), strict=True)
    root = fields.pop("root", None)
    return Step(
        **fields | {"what": _UNQUOTED.sub(r"\1", row["what"])},
        root=Name(*root) if root else None,
        roles=tuple(Role(*role) for role in roles),
    )


class _Taker:
    def __init__(self, connection: Connection, found: Reach, root_of: dict[int, int]) -> None:
        self._connection = connection
        self._found = found
        tables = found.of("table")
        self._arguments: dict[str, Any] = {
            "tables": tables,
            "roots": [root_of[table] for table in tables],
            "counts": json.dumps(self._counts()),
            "wanted": list(found.wanted),
            "rules": found.rules,
        }

    def blueprint(
        self,
        tables: Iterable[Table],
        types: Iterable[Type],
        functions: Iterable[Function],
        needs: Iterable[Need],
    ) -> Blueprint:
        return Blueprint(
            self._connection.info.server_version,
            tuple(tables),
            tuple(types),
            tuple(functions),
            self._extensions(),
            tuple(needs),
            before=tuple(self._before()),
            keys=tuple(self._keys()),
            after=tuple(self._after()),
            notes=tuple(self._notes()),
        )

    def _counts(self) -> dict[int, int]:
        """Increments of sequences as they were before they were given a stride."""
        if not self._has("syncagent.stride"):
            return {}
        return {row["sequence"]: row["before"] for row in self._connection.execute(_COUNTS)}

    def _has(self, table: str) -> bool:
        found = self._connection.execute("select to_regclass(%s) is not null as there", (table,)).fetchone()
        return found is not None and bool(found["there"])

    def _extensions(self) -> tuple[Extension, ...]:
        rows = self._connection.execute(
            "select x.oid::bigint, x.extname, n.nspname, x.extversion from pg_extension x join pg_namespace n on n.oid = x.extnamespace"
            " where x.oid = any (%s::bigint[]::oid[]) order by 2",
            (self._found.of("extension"),),
        )
        return tuple(
            Extension(row["extname"], row["nspname"], row["extversion"], row["oid"] in self._found.wanted)
            for row in rows
        )

    def _steps(self, query: str, **more: object) -> Iterator[Step]:
        for row in self._connection.execute(query.encode(), self._arguments | more).fetchall():
            yield _step(row)

    def _before(self) -> Iterator[Step]:
        steps: dict[Node, Step] = {}
        for kind, query in (*objects.KINDS.items(), ("table", relations.TABLES)):
            arguments = self._arguments | {"oids": self._found.of(kind)}
            for row in self._connection.execute(query.encode(), arguments).fetchall():
                steps[kind, row["oid"]] = _step(row)
        yield from (steps[node] for node in self._found.order if node in steps)
        yield from self._steps(objects.DOMAIN_DEFAULTS, oids=self._found.of("domain"))
        for query in (
            relations.TYPED,
            relations.PARTITIONS,
            relations.PARTITION_IDENTITIES,
            relations.OWNED,
            relations.DEFAULTS,
            relations.COLUMN_OPTIONS,
            relations.TABLE_OPTIONS,
        ):
            yield from self._steps(query)

    def _keys(self) -> Iterator[Step]:
        yield from self._steps(relations.INDEXED, kinds=["p"])
        yield from self._steps(relations.INDEX_PARTITIONS, primary=True)

    def _after(self) -> Iterator[Step]:
        yield from self._steps(relations.INDEXED, kinds=["u", "x"])
        yield from self._steps(relations.INDEXES)
        yield from self._steps(relations.INDEX_PARTITIONS, primary=False)
        for query in (
            relations.INDEX_OPTIONS,
            relations.CHECKS,
            relations.LATE_NOT_NULL,
            relations.FOREIGN_KEYS,
            relations.STATISTICS,
            relations.TRIGGERS,
            relations.TRIGGER_STATES,
            relations.RULES,
            relations.POLICIES,
            relations.SETTINGS,
        ):
            yield from self._steps(query)
        found = self._found
        commented = [
            *(("pg_type", oid) for oid in found.of(*_TYPES)),
            *(("pg_proc", oid) for oid in found.of("function")),
            *(("pg_class", oid) for oid in found.of("sequence")),
            *(("pg_constraint", oid) for oid in found.of("check")),
            *(("pg_collation", oid) for oid in found.of("collation")),
            *(("pg_namespace", oid) for oid in found.of("schema")),
        ]
        owned = {
            "sequences": found.of("sequence"),
            "functions": found.of("function"),
            "types": found.of(*_TYPES),
            "schemas": found.of("schema"),
            "collations": found.of("collation"),
        }
        yield from self._steps(
            belongings.COMMENTS, classes=[c for c, _ in commented], oids=[o for _, o in commented], **owned
        )
        yield from self._steps(belongings.GRANTS, **owned)
        yield from self._steps(belongings.OWNERS, **owned)
        if self._has("syncagent.app_version"):
            yield from self._steps(versions.VERSIONS)
            yield from self._steps(versions.RIGHTS)
            yield from self._steps(versions.OWNERS)

    def _notes(self) -> Iterator[str]:
        yield from self._found.notes
        for query in (
            relations.FOREIGN_KEYS_LEFT_OUT,
            belongings.INVALID,
            belongings.LABELS,
            belongings.SPACES,
        ):
            for row in self._connection.execute(query.encode(), self._arguments).fetchall():
                yield _UNQUOTED.sub(r"\1", row["note"])
