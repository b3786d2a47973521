"""What is made, replaced, renamed and dropped as a whole: how each statement becomes steps."""

from collections.abc import Callable

from postgast import pg_query_pb2 as grammar
from psycopg import sql

from syncagent.core.batch import Table
from syncagent.core.schema import Step
from syncagent.storage.schema import reading
from syncagent.storage.schema.looking import BRIEF, SHARED, Against, Look, found_twice
from syncagent.storage.schema.reading import Statement

NONE = "none of a table"
_MAX_NAME = 63

Rule = Callable[[Look, Statement], list[Step]]


def _name(*parts: str) -> str:
    return sql.Identifier(*parts).as_string()


def create_table(look: Look, statement: Statement) -> list[Step]:
    relation = statement.node.relation
    if relation.relpersistence != "p":
        raise Against("it would be there for a session, or until a crash", "a permanent table")
    name = look.named(relation)
    look.run(statement.text)
    oid = look.one("select to_regclass(%s)::oid::bigint", name)
    look.made.add(oid)
    row = look.connection.execute(
        "select format('%%I.%%I', n.nspname, c.relname) as sql, c.relispartition as part from pg_class c"
        " join pg_namespace n on n.oid = c.relnamespace where c.oid = %s::bigint::oid",
        (oid,),
    ).fetchone()
    assert row is not None
    quoted = row["sql"]
    attach = () if row["part"] else (look.attachment(oid, quoted),)
    what = f"partition {quoted}" if row["part"] else f"table {quoted}, attached"
    locks = "ACCESS EXCLUSIVE of the partitioned table, for a moment" if row["part"] else NONE
    undo = (f"drop table if exists {quoted}",)
    return [
        Step(phase="expand", what=what, locks=locks, statements=(statement.text,), undo=undo, attach=attach)
    ]


def create_index(look: Look, statement: Statement) -> list[Step]:
    node = statement.node
    table = look.known(node.relation)
    look.refuse_renamed(table, *(part.index_elem.name for part in node.index_params))
    if not node.idxname:
        columns = [part.index_elem.name or "expr" for part in node.index_params]
        node.idxname = "_".join((table.table.name, *columns, "idx"))[:_MAX_NAME]
    index = _name(table.table.schema, node.idxname)
    if look.one("select to_regclass(%s)::text", index):
        raise Against(f"there is an index {index} already", "another name")
    what = f"index {node.idxname} of {table.sql}"
    if table.new:
        node.concurrent = False
        text = reading.written("index_stmt", node)
        look.run(text)
        return [Step(phase="expand", what=f"{what}, which is new", locks=NONE, statements=(text,))]
    if table.partitioned:
        raise Against(
            "an index of a partitioned table cannot be made beside writes", "make it at each site by hand"
        )
    node.concurrent, node.if_not_exists = True, False
    made = Step(
        phase="write-dual" if node.unique else "expand",
        what=what,
        locks=SHARED,
        statements=(reading.written("index_stmt", node),),
        undo=(f"drop index concurrently if exists {index}",),
        manner="alone",
        index=index,
        everybody=bool(node.unique),
    )
    columns = [part.index_elem.name for part in node.index_params]
    plain = all(columns) and not node.HasField("where_clause")
    return [found_twice(table, columns, what), made] if node.unique and plain else [made]


def comment(look: Look, statement: Statement) -> list[Step]:
    before = _comments(look)
    look.run(statement.text)
    undo: tuple[str, ...] = ()
    if changed := dict(_comments(look).items() ^ before.items()):
        statement.node.comment = before.get(next(iter(changed)), "")  # none: `is null`
        undo = (reading.written("comment_stmt", statement.node),)
    return [Step(phase="expand", what="comment", locks=NONE, statements=(statement.text,), undo=undo)]


def _comments(look: Look) -> dict[tuple[int, int, int], str]:
    rows = look.connection.execute(
        "select classoid::bigint as class, objoid::bigint as object, objsubid as part, description from pg_description"
        " union all select classoid::bigint, objoid::bigint, -1, description from pg_shdescription"
    ).fetchall()
    return {(row["class"], row["object"], row["part"]): row["description"] for row in rows}


def function(look: Look, statement: Statement) -> list[Step]:
    name = statement.node.funcname[-1].string.sval
    query = (
        "select p.oid::bigint as oid, p.oid::regprocedure::text as signature, p.prokind::text as kind, pg_get_functiondef(p.oid) as made"
        " from pg_proc p where p.proname = %s and p.prokind in ('f', 'p', 'w') and p.pronamespace <> 'pg_catalog'::regnamespace"
    )
    before = {row["oid"]: row["made"] for row in look.connection.execute(query.encode(), (name,)).fetchall()}
    look.run(statement.text)
    undo = []
    for row in look.connection.execute(query.encode(), (name,)).fetchall():
        if row["oid"] not in before:
            undo.append(
                f"drop {'procedure' if row['kind'] == 'p' else 'function'} if exists {row['signature']}"
            )
        elif before[row["oid"]] != row["made"]:
            undo.append(before[row["oid"]])
    return [
        Step(
            phase="expand",
            what=f"function {name}",
            locks=NONE,
            statements=(statement.text,),
            undo=tuple(undo),
        )
    ]


def view(look: Look, statement: Statement) -> list[Step]:
    name = look.named(statement.node.view)
    before = look.one(
        "select pg_get_viewdef(c.oid) from pg_class c where c.oid = to_regclass(%s) and c.relkind = 'v'", name
    )
    look.run(statement.text)
    undo = [f"drop view if exists {name}"]
    if before is not None:
        undo.append(f"create view {name} as {before}")
    return [
        Step(
            phase="expand",
            what=f"view {name}",
            locks=f"{BRIEF}, of the view",
            statements=(statement.text,),
            undo=tuple(undo),
        )
    ]


def enum_value(look: Look, statement: Statement) -> list[Step]:
    """For itself: the transaction that adds a value cannot use it."""
    node = statement.node
    name = _name(*(part.string.sval for part in node.type_name))
    if node.old_val:
        look.run(statement.text)
        undo = f"alter type {name} rename value {_text(node.new_val)} to {_text(node.old_val)}"
        what = f"value {node.old_val} of {name} is {node.new_val}"
        return [
            Step(
                phase="contract",
                what=what,
                locks=NONE,
                statements=(statement.text,),
                undo=(undo,),
                strict=True,
            )
        ]
    if not look.one("select to_regtype(%s)::text", name):
        raise Against(f"there is no type {name}", "name it with its schema")
    look.run(statement.text)
    added = (
        statement.text
        if node.skip_if_new_val_exists
        else statement.text.replace(" value ", " value if not exists ", 1)
    )
    return [
        Step(
            phase="expand",
            what=f"value {node.new_val} of {name}",
            locks=NONE,
            statements=(added,),
            manner="alone",
        )
    ]


def _text(value: str) -> str:
    return sql.Literal(value).as_string()


_DROPS = {
    "create_enum_stmt": ("type", "type_name"),
    "composite_type_stmt": ("type", "typevar"),
    "create_domain_stmt": ("domain", "domainname"),
    "create_seq_stmt": ("sequence", "sequence"),
    "create_schema_stmt": ("schema", "schemaname"),
}


def made(look: Look, statement: Statement) -> list[Step]:
    """A type, a domain, a sequence, a schema: nothing is there that could be in the way."""
    kind, field = _DROPS[statement.kind]
    value = getattr(statement.node, field)
    if kind == "sequence" and value.relpersistence != "p":
        raise Against("it would be there for a session", "a permanent sequence")
    if kind == "schema" and statement.node.schema_elts:
        raise Against(
            "tables inside of CREATE SCHEMA", "create schema, then create table: statements of their own"
        )
    if isinstance(value, str):
        name = _name(value)
    else:
        name = (
            look.named(value) if hasattr(value, "relname") else _name(*(part.string.sval for part in value))
        )
    look.run(statement.text)
    undo = (f"drop {kind} if exists {name}",)
    return [Step(phase="expand", what=f"{kind} {name}", locks=NONE, statements=(statement.text,), undo=undo)]


def trigger(look: Look, statement: Statement) -> list[Step]:
    table = look.known(statement.node.relation)
    look.run(statement.text)
    name = statement.node.trigname
    undo = (f"drop trigger if exists {_name(name)} on {table.sql}",)
    what = f"trigger {name} of {table.sql}"
    return [
        Step(
            phase="expand",
            what=what,
            locks="SHARE ROW EXCLUSIVE, for a moment",
            statements=(statement.text,),
            undo=undo,
        )
    ]


def grant(look: Look, statement: Statement) -> list[Step]:
    before = _rights(look)
    look.run(statement.text)
    after = _rights(look)
    undo = [f"revoke {right} on {what} from {whom}" for right, what, whom, _ in sorted(after - before)]
    undo += [
        f"grant {right} on {what} to {whom}{' with grant option' if passes else ''}"
        for right, what, whom, passes in sorted(before - after)
    ]
    return [Step(phase="expand", what="rights", locks=NONE, statements=(statement.text,), undo=tuple(undo))]


def _rights(look: Look) -> set[tuple[str, str, str, bool]]:
    """Right, on what, of whom, and whether it can be passed on; for all that rights can be given of in a database."""
    rows = look.connection.execute("""
        select a.privilege_type || coalesce(o.part, '') as right, o.what, a.is_grantable as passes,
               case a.grantee when 0 then 'public' else quote_ident(pg_get_userbyid(a.grantee)) end as whom
        from (
            select case c.relkind when 'S' then 'sequence ' else 'table ' end || c.oid::regclass as what, null as part,
                   coalesce(c.relacl, acldefault(case c.relkind when 'S' then 's' else 'r' end::"char", c.relowner)) as rights
            from pg_class c where c.relkind in ('r', 'p', 'v', 'm', 'f', 'S')
            union all
            select 'table ' || t.attrelid::regclass, format(' (%I)', t.attname), t.attacl
            from pg_attribute t where t.attacl is not null and not t.attisdropped
            union all
            select 'routine ' || p.oid::regprocedure, null, coalesce(p.proacl, acldefault('f', p.proowner)) from pg_proc p
            union all
            select 'schema ' || n.oid::regnamespace, null, coalesce(n.nspacl, acldefault('n', n.nspowner)) from pg_namespace n
            union all
            select 'type ' || t.oid::regtype, null, coalesce(t.typacl, acldefault('T', t.typowner)) from pg_type t
        ) o cross join aclexplode(o.rights) a
    """).fetchall()
    return {(row["right"], row["what"], row["whom"], row["passes"]) for row in rows}


def rename(look: Look, statement: Statement) -> list[Step]:
    node = statement.node
    kind = reading.object_kind(node.rename_type)
    if kind not in ("COLUMN", "TABLE"):
        raise Against(
            f"the name of a {kind.lower()} is not changed at all sites", "do it at each site by hand"
        )
    table = look.known(node.relation)
    if kind == "COLUMN":
        look.refuse_by_column(table)
        look.column(table, node.subname)
    look.run(statement.text)
    look.rename(table, node.newname if kind == "COLUMN" else "*")
    if kind == "COLUMN":
        columns = ((table.table, node.subname, node.newname),)
        what = f"column {node.subname} of {table.sql} is {node.newname}"
        return [
            Step(
                phase="contract",
                what=what,
                locks=BRIEF,
                statements=(statement.text,),
                strict=True,
                columns=columns,
            )
        ]
    renamed = ((table.table, Table(table.table.schema, node.newname)),)
    what = f"table {table.sql} is {node.newname}"
    return [
        Step(
            phase="contract",
            what=what,
            locks=BRIEF,
            statements=(statement.text,),
            strict=True,
            renamed=renamed,
        )
    ]


_DROPPED = {
    "TABLE": "table",
    "VIEW": "view",
    "FUNCTION": "function",
    "PROCEDURE": "procedure",
    "TYPE": "type",
    "DOMAIN": "domain",
    "SEQUENCE": "sequence",
    "TRIGGER": "trigger",
    "SCHEMA": "schema",
}


def drop(look: Look, statement: Statement) -> list[Step]:
    kind = reading.object_kind(statement.node.remove_type)
    if kind == "INDEX":
        return _drop_index(look, statement)
    if kind not in _DROPPED:
        raise Against(f"DROP {kind} is not carried to all sites", "do it at each site by hand")
    if statement.node.behavior == grammar.DROP_CASCADE:
        raise Against(
            "CASCADE takes what hangs on it, which may differ from site to site",
            "a statement for each of them",
        )
    gone = []
    if kind == "TABLE":
        for one in statement.node.objects:
            names = [part.string.sval for part in one.list.items]
            relation = grammar.RangeVar(relname=names[-1], schemaname="".join(names[:-1]))
            table = look.known(relation)
            look.connection.execute("select syncagent._detach(%s::bigint::oid)", (table.oid,))
            gone.append(table.table)
    look.run(statement.text)
    locks = BRIEF if kind in ("TABLE", "TRIGGER") else NONE
    what = f"drop {_DROPPED[kind]}" + (f" {', '.join(map(str, gone))}" if gone else "")
    return [
        Step(
            phase="contract",
            what=what,
            locks=locks,
            statements=(statement.text,),
            strict=bool(gone),
            gone=tuple(gone),
        )
    ]


def _drop_index(look: Look, statement: Statement) -> list[Step]:
    steps = []
    for one in statement.node.objects:
        name = _name(*(part.string.sval for part in one.list.items))
        before = look.one("select pg_get_indexdef(to_regclass(%s))", name)
        if before is None:
            raise Against(f"there is no index {name}", "name it with its schema")
        undo = before.replace(" INDEX ", " INDEX CONCURRENTLY ", 1)
        quoted = look.one(
            "select format('%%I.%%I', n.nspname, c.relname) from pg_class c join pg_namespace n on n.oid = c.relnamespace"
            " where c.oid = to_regclass(%s)",
            name,
        )
        steps.append(
            Step(
                phase="expand",
                what=f"drop index {name}",
                locks=SHARED,
                statements=(f"drop index concurrently if exists {quoted}",),
                undo=(undo,),
                manner="alone",
                index=quoted,
            )
        )
    return steps


RULES: dict[str, Rule] = {
    "create_stmt": create_table,
    "index_stmt": create_index,
    "comment_stmt": comment,
    "create_function_stmt": function,
    "view_stmt": view,
    "alter_enum_stmt": enum_value,
    **dict.fromkeys(_DROPS, made),
    "create_trig_stmt": trigger,
    "grant_stmt": grant,
    "rename_stmt": rename,
    "drop_stmt": drop,
}
