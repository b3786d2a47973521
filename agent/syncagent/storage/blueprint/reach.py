"""What tables are made of: everything that has to be there before they can be, found along pg_depend.

PostgreSQL knows of every object what it needs, but for functions whose bodies are text: those are read for the
names they call. Invariant: what belongs to syncagent is not followed, and not brought along.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush

from syncagent.storage.commands import Connection

_RANKS = (
    "schema",
    "extension",
    "collation",
    "enum",
    "composite",
    "domain",
    "range",
    "through",
    "function",
    "check",
    "sequence",
    "table",
)
"""What is made first if the choice is free; `through` (array types and the like) comes by itself."""

Node = tuple[str, int]
"""Kind and oid."""
_Source = tuple[str, int]
"""Catalog and oid: a node of the catalog is looked at through one or more of them."""

_REFERENCES = """
    with refs as (
        select distinct w.class as from_class, w.oid as from_oid, c.relname as class,
               d.refobjid as oid, d.refclassid,
               case c.relname when 'pg_extension' then d.refobjid else (
                   select e.refobjid from pg_depend e where e.classid = d.refclassid and e.objid = d.refobjid
                   and e.deptype = 'e' and e.refclassid = 'pg_extension'::regclass) end as extension
        from unnest(%(classes)s::text[], %(oids)s::bigint[]::oid[]) as w (class, oid)
        join pg_depend d on d.classid = w.class::regclass and d.objid = w.oid
        join pg_class c on c.oid = d.refclassid
        where d.refobjid >= 16384 and d.deptype <> 'e'
          and c.relname <> all ('{pg_attrdef,pg_constraint,pg_trigger,pg_rewrite,pg_policy,pg_statistic_ext}')
    ), met as (
        select r.from_class, r.from_oid, r.refclassid,
               case when r.extension is not null then 'extension'
                    when r.class = 'pg_namespace' then 'schema'
                    when r.class = 'pg_collation' then 'collation'
                    when r.class = 'pg_proc' then case when p.prokind = 'a' then 'need' else 'function' end
                    when r.class = 'pg_class' then case
                        when c.relkind = 'S' then 'sequence'
                        when c.relkind = 'c' then 'composite'
                        when c.relkind in ('i', 'I') or c.oid = any (%(tables)s::bigint[]::oid[]) then 'table'
                        else 'need' end
                    when r.class = 'pg_type' then case
                        when t.typtype = 'e' then 'enum' when t.typtype = 'd' then 'domain' when t.typtype = 'r' then 'range'
                        when t.typtype = 'c' then case when tc.relkind = 'c' then 'composite' else 'through' end
                        when t.typtype = 'm' or exists (select from pg_type a where a.typarray = t.oid) then 'through'
                        else 'need' end
                    else 'need' end as kind,
               case when r.extension is not null then r.extension
                    when c.relkind = 'c' then c.reltype
                    when c.relkind in ('i', 'I') then (select i.indrelid from pg_index i where i.indexrelid = c.oid)
                    else r.oid end as oid, r.oid as met
        from refs r
        left join pg_class c on r.class = 'pg_class' and c.oid = r.oid
        left join pg_type t on r.class = 'pg_type' and t.oid = r.oid
        left join pg_class tc on tc.oid = t.typrelid
        left join pg_proc p on r.class = 'pg_proc' and p.oid = r.oid
    )
    select distinct m.from_class, m.from_oid::bigint, m.kind, m.oid::bigint,
           case m.kind when 'need' then m.refclassid::bigint end as class
    from met m left join pg_extension x on m.kind = 'extension' and x.oid = m.oid
    cross join lateral pg_identify_object(m.refclassid, m.met, 0) as i
    where x.extname is distinct from 'syncagent' and i.schema is distinct from 'syncagent'
      and not (m.kind = 'schema' and i.name = 'syncagent')
"""

# What belongs to a table, is made after it, and has needs of its own; `early` is a part of CREATE TABLE.
_PARTS = """
    select 'pg_attrdef' as class, d.oid::bigint, d.adrelid::bigint as owner, a.attgenerated <> '' as early
    from pg_attrdef d join pg_attribute a on a.attrelid = d.adrelid and a.attnum = d.adnum where d.adrelid = any (%(tables)s::bigint[]::oid[])
    union all
    select 'pg_constraint', k.oid::bigint, k.conrelid::bigint, false from pg_constraint k
    where k.conrelid = any (%(tables)s::bigint[]::oid[]) and k.contype in ('c', 'p', 'u', 'x')
    union all
    select 'pg_class', i.indexrelid::bigint, i.indrelid::bigint, false from pg_index i
    where i.indrelid = any (%(tables)s::bigint[]::oid[]) and (i.indisvalid or exists (select from pg_class c where c.oid = i.indrelid and c.relkind = 'p'))
    union all
    select 'pg_trigger', g.oid::bigint, g.tgrelid::bigint, false
    from pg_trigger g join pg_proc p on p.oid = g.tgfoid join pg_namespace n on n.oid = p.pronamespace
    where g.tgrelid = any (%(tables)s::bigint[]::oid[]) and not g.tgisinternal and n.nspname <> 'syncagent'
    union all
    select 'pg_policy', p.oid::bigint, p.polrelid::bigint, false from pg_policy p where p.polrelid = any (%(tables)s::bigint[]::oid[])
    union all
    select 'pg_rewrite', r.oid::bigint, r.ev_class::bigint, false from pg_rewrite r where r.oid = any (%(rules)s::bigint[]::oid[])
    union all
    select 'pg_statistic_ext', s.oid::bigint, s.stxrelid::bigint, false from pg_statistic_ext s where s.stxrelid = any (%(tables)s::bigint[]::oid[])
"""

_SEQUENCES = """
    select distinct d.objid::bigint as oid from pg_depend d join pg_class s on s.oid = d.objid and s.relkind = 'S'
    where d.classid = 'pg_class'::regclass and d.refclassid = 'pg_class'::regclass and d.deptype = 'a'
      and d.refobjid = any (%(tables)s::bigint[]::oid[]) and d.refobjsubid > 0
"""

_RULES = """
    select r.oid::bigint, format('%%I of %%I.%%I', r.rulename, n.nspname, c.relname) as name, x.others
    from pg_rewrite r join pg_class c on c.oid = r.ev_class join pg_namespace n on n.oid = c.relnamespace
    cross join lateral (
        select string_agg(distinct format('%%I.%%I', on_.nspname, o.relname), ', ') as others
        from pg_depend d join pg_class o on o.oid = d.refobjid and o.relkind <> 'S' join pg_namespace on_ on on_.oid = o.relnamespace
        where d.classid = 'pg_rewrite'::regclass and d.objid = r.oid and d.refclassid = 'pg_class'::regclass
          and o.oid <> all (%(tables)s::bigint[]::oid[])
    ) as x
    where r.ev_class = any (%(tables)s::bigint[]::oid[]) and r.rulename <> '_RETURN' order by 2
"""

_BODIES = """
    select p.oid::bigint, p.oid::regprocedure::text as name, p.prosrc as text from pg_proc p join pg_language l on l.oid = p.prolang
    where p.oid = any (%(functions)s::bigint[]::oid[]) and l.lanname not in ('c', 'internal') and to_jsonb(p) ->> 'prosqlbody' is null
"""

_CALLED = """
    select distinct case when e.refobjid is null then 'function' else 'extension' end as kind, coalesce(e.refobjid, p.oid)::bigint as oid
    from pg_proc p join pg_namespace n on n.oid = p.pronamespace
    left join pg_depend e on e.classid = 'pg_proc'::regclass and e.objid = p.oid and e.deptype = 'e' and e.refclassid = 'pg_extension'::regclass
    where p.oid >= 16384 and p.prokind <> 'a' and n.nspname <> all ('{pg_catalog,information_schema,syncagent}')
      and (p.proname = any (%(bare)s::text[]) or (n.nspname, p.proname) in (select * from unnest(%(schemas)s::text[], %(names)s::text[])))
"""

_MENTIONED = """
    select format('%%I.%%I', n.nspname, c.relname) as name from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where c.relkind in ('r', 'p', 'v', 'm', 'f') and n.nspname <> all ('{pg_catalog,information_schema,syncagent}') and n.nspname !~ '^pg_'
      and c.oid <> all (%(tables)s::bigint[]::oid[])
      and (c.relname = any (%(bare)s::text[]) or (n.nspname, c.relname) in (select * from unnest(%(schemas)s::text[], %(names)s::text[])))
    order by 1
"""

_CHECKS = "select k.oid::bigint, k.contypid::bigint as domain from pg_constraint k where k.contypid = any (%(domains)s::bigint[]::oid[]) and k.contype = 'c'"
_RELATIONS = "select t.oid::bigint, t.typrelid::bigint as relation from pg_type t where t.oid = any (%(composites)s::bigint[]::oid[])"

_IDENTIFIER = r'(?:"(?:[^"]|"")+"|[^\W\d][\w$]*)'
_CALL = re.compile(rf"((?:{_IDENTIFIER}\s*\.\s*)?{_IDENTIFIER})\s*\(")
_RELATION = re.compile(
    rf"\b(?:from|join|into|update|delete\s+from|using)\s+(?:only\s+)?((?:{_IDENTIFIER}\s*\.\s*)?{_IDENTIFIER})",
    re.IGNORECASE,
)
_COMMENT = re.compile(r"--[^\n]*|/\*.*?\*/", re.DOTALL)
_CATALOG = {
    "schema": "pg_namespace",
    "extension": "pg_extension",
    "collation": "pg_collation",
    "function": "pg_proc",
    "check": "pg_constraint",
    "sequence": "pg_class",
    "table": "pg_class",
}


@dataclass
class Reach:
    """All that was reached; `order` is one in which it can be made."""

    order: list[Node] = field(default_factory=list)
    needs: list[tuple[int, int]] = field(default_factory=list)
    """Objects that are not brought along: the oid of their catalog, and their own."""
    rules: list[int] = field(default_factory=list)
    wanted: set[int] = field(default_factory=set)
    """Extensions that only a function's text calls."""
    notes: list[str] = field(default_factory=list)

    def of(self, *kinds: str) -> list[int]:
        """The oids of these kinds, in order."""
        return [oid for kind, oid in self.order if kind in kinds]


class _Walk:
    def __init__(self, connection: Connection, tables: Sequence[int]) -> None:
        self._connection = connection
        self._tables = list(tables)
        self._needs_of: dict[Node, set[Node]] = {}
        self._todo: list[tuple[_Source, Node | None]] = []
        self.others: set[tuple[int, int]] = set()
        self.hard: set[Node] = set()
        self.wanted: set[int] = set()
        self.notes: list[str] = []

    def run(self, rules: Sequence[int]) -> list[Node]:
        for table in self._tables:
            self._meet(("table", table))
        arguments = {"tables": self._tables, "rules": list(rules)}
        for row in self._connection.execute(_PARTS.encode(), arguments):
            self._todo.append(((row["class"], row["oid"]), ("table", row["owner"]) if row["early"] else None))
        for row in self._connection.execute(_SEQUENCES.encode(), arguments):
            self._meet(("sequence", row["oid"]))
        read: set[int] = set()
        while True:
            self._follow()
            unread = {oid for kind, oid in self._needs_of if kind == "function"} - read
            if not unread:
                return list(_sorted(self._needs_of))
            self._read(unread)
            read |= unread

    def _meet(self, *nodes: Node) -> None:
        """Look at nodes that are new."""
        new = [node for node in nodes if node not in self._needs_of]
        for node in new:
            self._needs_of[node] = set()
            kind, oid = node
            self._todo.append(((_CATALOG.get(kind, "pg_type"), oid), node))
        if composites := [oid for kind, oid in new if kind == "composite"]:
            for row in self._connection.execute(_RELATIONS.encode(), {"composites": composites}):
                self._todo.append((("pg_class", row["relation"]), ("composite", row["oid"])))
        if domains := [oid for kind, oid in new if kind == "domain"]:
            for row in self._connection.execute(_CHECKS.encode(), {"domains": domains}).fetchall():
                self._meet(("check", row["oid"]))
                self._needs_of["check", row["oid"]].add(("domain", row["domain"]))

    def _follow(self) -> None:
        while self._todo:
            batch, self._todo = self._todo, []
            rows = self._connection.execute(
                _REFERENCES.encode(),
                {
                    "classes": [source[0] for source, _ in batch],
                    "oids": [source[1] for source, _ in batch],
                    "tables": self._tables,
                },
            ).fetchall()
            found: dict[_Source, list[Node]] = {}
            for row in rows:
                if row["kind"] == "need":
                    self.others.add((row["class"], row["oid"]))
                else:
                    found.setdefault((row["from_class"], row["from_oid"]), []).append(
                        (row["kind"], row["oid"])
                    )
            for source, node in batch:
                nodes = found.get(source, [])
                if node is not None and node[0] == "sequence":  # it belongs to a column, but does not need it
                    nodes = [n for n in nodes if n[0] == "schema"]
                if node is not None:
                    self._needs_of[node] |= set(nodes) - {node}
                self.hard |= set(nodes)
                self._meet(*nodes)

    def _read(self, functions: Collection[int]) -> None:
        """What the text of functions calls, and what tables it speaks of."""
        for row in self._connection.execute(_BODIES.encode(), {"functions": list(functions)}).fetchall():
            text = _COMMENT.sub(" ", row["text"])
            for called in self._connection.execute(_CALLED.encode(), _names(_CALL.findall(text))).fetchall():
                if called["kind"] == "extension":
                    self.wanted.add(called["oid"])
                self._meet((called["kind"], called["oid"]))
            tables = self._connection.execute(
                _MENTIONED.encode(), {**_names(_RELATION.findall(text)), "tables": self._tables}
            ).fetchall()
            if tables:
                names = ", ".join(table["name"] for table in tables)
                self.notes.append(
                    f"function {row['name']} speaks of {names}, which is not brought along: make sure that it is there"
                )


def _names(found: Iterable[str]) -> dict[str, list[str]]:
    """Names as written: those alone, and those with a schema."""
    bare, schemas, names = set(), [], []
    for text in found:
        parts = [
            part[1:-1].replace('""', '"') if part.startswith('"') else part.lower()
            for part in re.findall(_IDENTIFIER, text)
        ]
        if len(parts) == 1:
            bare.add(parts[0])
        else:
            schemas.append(parts[0])
            names.append(parts[1])
    return {"bare": sorted(bare), "schemas": schemas, "names": names}


def _sorted(needs_of: dict[Node, set[Node]]) -> Iterator[Node]:
    """Each node after what it needs. Where they need each other, the first by rank goes first."""

    def rank(node: Node) -> tuple[int, int]:
        return _RANKS.index(node[0]), node[1]

    left = {node: needs & needs_of.keys() for node, needs in needs_of.items()}
    needed_by: dict[Node, list[Node]] = {}
    for node, needs in left.items():
        for need in needs:
            needed_by.setdefault(need, []).append(node)
    ready = [(rank(node), node) for node, needs in left.items() if not needs]
    heapify(ready)
    while left:
        _, node = heappop(ready) if ready else min((rank(node), node) for node in left)
        if left.pop(node, None) is None:
            continue
        yield node
        for other in needed_by.get(node, []):
            if other in left:
                left[other].discard(node)
                if not left[other]:
                    heappush(ready, (rank(other), other))


def reach(connection: Connection, tables: Sequence[int]) -> Reach:
    """All that these tables, given with their partitions, are made of."""
    rules, notes = [], []
    for row in connection.execute(_RULES.encode(), {"tables": list(tables)}).fetchall():
        if row["others"]:
            notes.append(
                f"rule {row['name']} is left out: it speaks of {row['others']}, which is not attached"
            )
        else:
            rules.append(row["oid"])
    walk = _Walk(connection, tables)
    order = walk.run(rules)
    hard = {oid for kind, oid in walk.hard if kind == "extension"}
    return Reach(order, sorted(walk.others), rules, walk.wanted - hard, notes + walk.notes)
