"""What the plan of a schema change must know of the database, and how it says no."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from psycopg import sql

from syncagent.core.attachment import Attachment
from syncagent.core.batch import Table
from syncagent.core.forest import Bucket
from syncagent.core.schema import Step
from syncagent.storage import tables
from syncagent.storage.commands import Connection

if TYPE_CHECKING:
    from syncagent.storage.schema.pairs import Pairs

BRIEF = "ACCESS EXCLUSIVE, for a moment"
SHARED = "SHARE UPDATE EXCLUSIVE: reads and writes go on"
ROWS = "SHARE ROW EXCLUSIVE, for a moment"
READS = "ACCESS SHARE: reads and writes go on"


class Against(Exception):
    """Why a statement cannot be carried to every site, and a form that can."""

    def __init__(self, reason: str, form: str) -> None:
        super().__init__(reason)
        self.reason, self.form = reason, form


@dataclass(frozen=True)
class Known:
    """A table that a statement names. `new`: an earlier statement of the change has made it."""

    oid: int
    table: Table
    sql: str
    new: bool
    partitioned: bool


@dataclass
class Look:
    """The database while the statements before have been tried in it. `made` are tables of this change, `renamed` names that
    mean another column of a table, or none, before the old shape goes; `*`: the table has another name. `pairs` are columns that are
    written together, `version` the one that the change makes. What somebody has written is tried and computed as `role`; what we ask is
    asked as ourselves."""

    connection: Connection
    stride: int | None
    bucket: Bucket
    role: str | None = None
    made: set[int] = field(default_factory=set)
    notes: Mapping[str, str] = field(default_factory=dict)
    """What comments before the statement say."""
    version: str | None = None
    renamed: dict[int, set[str]] = field(default_factory=dict)
    pairs: dict[int, "Pairs"] = field(default_factory=dict)

    @contextmanager
    def as_asked(self) -> Iterator[None]:
        """With the role that the statements run as."""
        if self.role is None:
            yield
            return
        self.connection.execute(sql.SQL("set local role {}").format(sql.Identifier(self.role)))
        yield
        self.connection.execute("reset role")

    def run(self, text: str) -> None:
        """A statement of the change."""
        with self.as_asked():
            self.connection.execute(text.encode())

    def one(self, query: str, *values: object) -> Any:
        """The first column of the first row; None if there is none."""
        row = self.connection.execute(query.encode(), values or None).fetchone()
        return None if row is None else next(iter(row.values()))

    def named(self, relation: Any) -> str:
        """A RangeVar as SQL."""
        parts = [part for part in (relation.schemaname, relation.relname) if part]
        return sql.Identifier(*parts).as_string()

    def known(self, relation: Any) -> Known:
        """The attached table of this name."""
        name = self.named(relation)
        row = self.connection.execute(
            "select c.oid::bigint as oid, n.nspname as schema, c.relname as name, format('%%I.%%I', n.nspname, c.relname) as sql,"
            " c.relkind::text as kind, r.id is not null as attached, c.relispartition as part, c.relkind in ('r', 'p') as is_table"
            " from pg_class c join pg_namespace n on n.oid = c.relnamespace left join syncagent.replicated r on r.relation = c.oid"
            " where c.oid = to_regclass(%s)",
            (name,),
        ).fetchone()
        if row is None:
            raise Against(
                f"there is no table {name}", "name it with its schema, as it is called at every site"
            )
        if not row["is_table"]:
            raise Against(f"{name} is no table", "replace it as a whole: create or replace view")
        if row["oid"] not in self.made and not row["attached"]:
            form = (
                "alter the partitioned table"
                if row["part"]
                else f"syncagent attach {name}, or change it at each site by hand"
            )
            raise Against(f"{name} is not attached", form)
        return Known(
            row["oid"],
            Table(row["schema"], row["name"]),
            row["sql"],
            row["oid"] in self.made,
            row["kind"] == "p",
        )

    def is_key(self, table: Known, column: str) -> bool:
        return bool(
            self.one(
                "select %s::name = any (k.names) from syncagent._key(%s::bigint::oid) as k", column, table.oid
            )
        )

    def rename(self, table: Known, name: str) -> None:
        self.renamed.setdefault(table.oid, set()).add(name)

    def refuse_renamed(self, table: Known, *names: str) -> None:
        """What is done before the old shape goes cannot speak of names that are given then."""
        if self.renamed.get(table.oid, set()) & {"*", *names}:
            raise Against(
                "statements before it give a name another meaning, which it gets when the old shape goes, and this is done before",
                "put it before them, or into a change after",
            )

    def keys(self, table: Known) -> str:
        """The key columns of a table, as SQL."""
        return str(
            self.one(
                "select string_agg(quote_ident(k), ', ') from syncagent._key(%s::bigint::oid) as n cross join unnest(n.names) as k",
                table.oid,
            )
        )

    def columns(self, table: Known) -> list[str]:
        """Their names."""
        rows = self.connection.execute(
            "select a.attname::text as name from pg_attribute a where a.attrelid = %s::bigint::oid and a.attnum > 0 and not a.attisdropped"
            " order by a.attnum",
            (table.oid,),
        ).fetchall()
        return [row["name"] for row in rows]

    def path(self) -> str:
        """The search path of the change, as SQL."""
        found = self.one(
            "select string_agg(quote_ident(s), ', ' order by n) from unnest(current_schemas(false)) with ordinality as u (s, n)"
        )
        return str(found or "pg_catalog")

    def column(self, table: Known, name: str) -> dict[str, Any]:
        """Raises Against where there is none."""
        row = self.connection.execute(
            "select a.attnum, a.attnotnull as required, a.attgenerated <> '' as generated, a.attidentity <> '' as identity,"
            " format_type(a.atttypid, a.atttypmod) as type, format_type(syncagent._base_type(a.atttypid), -1) as base,"
            " pg_get_expr(d.adbin, d.adrelid) as preset, t.typdefault as of_domain"
            " from pg_attribute a join pg_type t on t.oid = a.atttypid"
            " left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum"
            " where a.attrelid = %s::bigint::oid and a.attname = %s and a.attnum > 0 and not a.attisdropped",
            (table.oid, name),
        ).fetchone()
        if row is None:
            raise Against(f"{table.sql} has no column {name}", "see its columns with \\d in psql")
        return row

    def refuse_by_column(self, table: Known) -> None:
        """What such a table remembers of each column is by the column's name."""
        if self.one(
            "select strategy <> 'lww' from syncagent.replicated where relation = %s::bigint::oid",
            table.oid,
        ):
            raise Against(
                f"{table.sql} is merged by column, and columns of such a table are only added so far",
                "detach it, change it at every site by hand, and attach it with --existing keep",
            )

    def bytes(self, table: Known) -> int:
        return int(
            self.one("select sum(pg_relation_size(n)) from syncagent._nodes(%s::bigint::oid) as n", table.oid)
            or 0
        )

    def volatile(self, names: set[str]) -> list[str]:
        """Of these functions, those that answer differently from one site to another."""
        rows = self.connection.execute(
            "select distinct p.proname::text as name from pg_proc p where p.proname = any (%s::name[]) and p.provolatile <> 'i'",
            (sorted(names),),
        ).fetchall()
        return [row["name"] for row in rows] + [name for name in names if name == "current_timestamp"]

    def attachment(self, oid: int, name: str) -> Attachment:
        """How a table that the change makes is attached."""
        (uuid,) = self.connection.execute(
            "select k.uuid, k.names is not null as given from syncagent._key(%s::bigint::oid) as k", (oid,)
        ).fetchall()
        derive = bool(uuid["given"]) and not uuid["uuid"]
        candidate = tables.candidate(self.connection, oid, derive=derive)
        if candidate.problems:
            raise Against(
                f"{name} could not be attached: {'; '.join(candidate.problems)}",
                "; ".join(candidate.hints) or "change it",
            )
        numbered = self.one(
            "select string_agg(a.attname, ', ') from pg_attribute a where a.attrelid = %s::bigint::oid and a.attnum > 0"
            " and (a.attidentity <> '' or exists (select from pg_depend d join pg_class s on s.oid = d.objid and s.relkind = 'S'"
            " where d.refobjid = a.attrelid and d.refobjsubid = a.attnum and d.deptype = 'a'))",
            oid,
        )
        if numbered and self.stride is None:
            raise Against(
                f"{name} draws numbers for {numbered}, and two sites would draw the same",
                "a uuid key (syncagent.uuid7()), or: syncagent schema apply --stride 16",
            )
        return Attachment(
            Table(candidate.schema, candidate.relname),
            derive,
            True,
            self.stride if numbered else None,
            self.bucket,
        )


def found_twice(table: Known, columns: list[str], what: str) -> Step:
    """The step that looks for values that are there twice."""
    listed = ", ".join(sql.Identifier(column).as_string() for column in columns)
    given = " and ".join(f"{sql.Identifier(column).as_string()} is not null" for column in columns)
    twice = f"select {listed}, count(*) as rows from {table.sql} where {given} group by {listed} having count(*) > 1"
    return Step(
        phase="expand",
        what=f"{what}: values that are there twice",
        locks=READS,
        statements=(twice,),
        manner="survey",
    )


def checked(
    table: Known, what: str, broken: str, add: str, constraint: str, locks: str = BRIEF
) -> tuple[Step, Step, Step]:
    """Looked at everywhere before it is asked of new rows anywhere; then proved for those that are there."""
    alter = f"alter table {table.sql}"
    return (
        Step(
            phase="expand",
            what=f"{what}: rows that stand against it",
            locks=READS,
            statements=(broken,),
            manner="survey",
        ),
        Step(
            phase="write-dual",
            what=f"{what}: for new rows",
            locks=locks,
            statements=(add,),
            undo=(f"{alter} drop constraint if exists {constraint}",),
            everybody=True,
        ),
        Step(
            phase="backfill",
            what=f"{what}: proved for every row",
            locks=SHARED,
            statements=(f"{alter} validate constraint {constraint}",),
            manner="alone",
        ),
    )
