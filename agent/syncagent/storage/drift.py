"""What `syncagent db check` finds: the SQL side against what it should be.

Invariant: an object is right if it is there and its body stands, to the letter, in the SQL that makes it;
comments and hashes only say which of the two moved.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from syncagent import resources
from syncagent.errors import RefusedError
from syncagent.storage import migrations
from syncagent.storage.commands import Connection

Severity = Literal["error", "warning", "note"]

_FUNCTION = re.compile(r"^create function syncagent\.(\w+)\(", re.MULTILINE)
_RELATION = re.compile(r"^create (?:table|view|sequence) syncagent\.(\w+)\b(?!\{)", re.MULTILINE)
_MADE = r"^create function syncagent\.{name}\(.*?\bas (\$\w*\$).*?\1;"
_TRIGGERS = (
    "syncagent_insert",
    "syncagent_update",
    "syncagent_delete",
    "syncagent_key",
    "syncagent_truncate",
)
_REGENERATE = "syncagent db upgrade"
_SHOWN = 4


@dataclass(frozen=True)
class Fix:
    """What `doctor --fix` does about a finding, and to what: a file, a trigger of a table, a function."""

    kind: Literal["make private", "make anew", "enable", "restore"]
    name: str = ""
    trigger: str = ""


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be, and the command that mends it. Without a `fix` that is a decision."""

    severity: Severity
    what: str
    mend: str | None = None
    fix: Fix | None = None


_ANEW = Fix("make anew")


def version(connection: Connection) -> list[Finding]:
    try:
        migrations.require_current(connection)
    except RefusedError as error:
        return [Finding("error", error.message, error.hint)]
    return []


def drift(connection: Connection, *, by_hand: bool = False) -> list[Finding]:
    """Everything that differs from this version; the version itself is right already. Tables that were changed `by_hand`: what was done to
    them, and not only what the SQL side minds."""
    return [*_fixed(connection), *_generated(connection, by_hand=by_hand)]


def _fixed(connection: Connection) -> Iterator[Finding]:
    """The objects that every site has."""
    text = _text()
    mend = "restore it from `syncagent db sql`"
    relations = {
        row["relname"]
        for row in connection.execute(
            "select relname from pg_class where relnamespace = 'syncagent'::regnamespace"
        )
    }
    for name in sorted(set(_RELATION.findall(text)) - relations):
        yield Finding("error", f"syncagent.{name} is missing", mend)
    bodies = _bodies(connection)
    wanted = sorted(set(_FUNCTION.findall(text)))
    changed = [
        name
        for name in wanted
        if name in bodies and not _stands_in(text, bodies[name]["prosrc"], "$$", "$template$")
    ]
    yield from _together([name for name in wanted if name not in bodies], "", "missing", mend)
    yield from _together(
        changed, "", "not as this version has made it", mend, Fix("restore", " ".join(changed))
    )


def _together(names: list[str], of: str, how: str, mend: str, fix: Fix | None = None) -> Iterator[Finding]:
    """One finding for functions that share a fate."""
    if not names:
        return
    shown = ", ".join(f"syncagent.{name}" for name in names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    one = len(names) == 1
    yield Finding(
        "error", f"function{'' if one else 's'} {shown}{more}{of} {'is' if one else 'are'} {how}", mend, fix
    )


def _text() -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted(resources.sql().glob("*.sql")))


def restoring(name: str) -> list[str]:
    """The statements that make a function of every site what it should be, whatever it is."""
    found = _MADE.format(name=re.escape(name))
    return [
        made[0].replace("create function", "create or replace function", 1)
        for made in re.finditer(found, _text(), re.DOTALL | re.MULTILINE)
    ]


def _bodies(connection: Connection) -> dict[str, dict[str, Any]]:
    rows = connection.execute(
        "select p.proname, p.prosrc, obj_description(p.oid, 'pg_proc') as comment"
        " from pg_proc p where p.pronamespace = 'syncagent'::regnamespace"
    )
    return {row["proname"]: row for row in rows}


def _stands_in(text: str, body: str, *quotes: str) -> bool:
    return any(f"{quote}{body}{quote}" in text for quote in quotes)


def _generated(connection: Connection, *, by_hand: bool) -> Iterator[Finding]:
    """The objects that each attached table has."""
    bodies = _bodies(connection)
    for table in connection.execute(
        """
        select r.id, r.text_hash, r.relation::oid::bigint as oid, format('%I.%I', r.schema_name, r.table_name) as attached_as,
               case when c.oid is not null then format('%I.%I', n.nspname, c.relname) end as name, c.oid is null as dropped,
               to_regclass(format('syncagent.version_%s', r.id)) is null as lost
        from syncagent.replicated r
        left join pg_class c on c.oid = r.relation left join pg_namespace n on n.oid = c.relnamespace order by r.id
        """
    ).fetchall():
        if table["dropped"]:
            yield Finding(
                "warning",
                f"{table['attached_as']} is attached, but the application has dropped it",
                f"syncagent detach {table['attached_as']}",
            )
            continue
        if table["name"] != table["attached_as"]:
            yield Finding(
                "error",
                f"{table['attached_as']} was renamed to {table['name']} after it was attached",
                f"give it its name back, or: {_again(table['name'])}",
            )
            continue
        if table["lost"]:
            yield Finding(
                "error",
                f"syncagent.version_{table['id']} of {table['name']} is missing",
                _again(table["name"]),
            )
            continue
        columns = list(_columns(connection, table["id"], table["name"]))
        yield from (list(_typed(connection, table["id"])) if by_hand else []) or columns
        if not any(finding.severity == "error" for finding in columns):
            yield from _functions(connection, table, bodies)
        yield from _merging(connection, table["id"])
        yield from _triggers(connection, table["id"])
    for row in connection.execute(
        "select s.node::text as node, r.relation::text as root, s.gone,"
        " format('%I.%I', r.schema_name, r.table_name) as name from syncagent._strays() s"
        " join syncagent.replicated r on r.id = s.relation join pg_class c on c.oid = r.relation"
        " where s.gone or c.relkind = 'r' order by 1"
    ):
        what = (
            f"{row['node']} is no partition of {row['root']} any more, and still has its triggers"
            if row["gone"]
            else f"{row['name']} has got a trigger before updates: a key that it sets would not be seen"
        )
        yield Finding("warning", what, _REGENERATE, _ANEW)


def _typed(connection: Connection, relation: int) -> Iterator[Finding]:
    """What somebody has made of the table by hand, whether the agent has noted it or not."""
    for row in connection.execute(
        """
        select format('%%I.%%I', r.schema_name, r.table_name) as name, syncagent._typed_text(d.kind, d.name, d.agreed, d.now, d.became) as what,
               t.role::text as role, t.since, d.kind, d.agreed is null as added, d.agreed ->> 'kind' = 'p' as keyed, array_to_string(q.back, '; ') as back, q.forth is not null as carried
        from syncagent._typed_now(%(id)s) d join syncagent.replicated r on r.id = d.relation
        left join syncagent.typed_record t on (t.relation, t.kind, t.name) = (d.relation, d.kind, d.name)
        cross join lateral syncagent._typed_sql(d.relation, d.kind, d.name, d.agreed, d.now, d.became) as q
        where t.epoch is null order by d.kind, d.name
        """,
        {"id": relation},
    ).fetchall():
        breaks = row["keyed"] or (row["kind"] == "column" and not row["added"])
        who = f", by {row['role']}, {row['since']:%F %T}" if row["role"] else ""
        mend = ["syncagent schema adopt"] if row["carried"] else []
        yield Finding(
            "error" if breaks else "note" if row["kind"] == "index" else "warning",
            f"{row['name']} was changed by hand here: {row['what']}{who}",
            "\n".join([*mend, *([f"or take it back: {row['back']};"] if row["back"] else [])]) or None,
        )


def _columns(connection: Connection, relation: int, name: str) -> Iterator[Finding]:
    """Columns of now against those of the time it was attached."""
    again = _again(name)
    for row in connection.execute(
        """
        select coalesce(t.name, a.attname) as name, a.attname is null as dropped, t.name is null as added,
               format_type(syncagent._base_type(a.atttypid), -1) as now, t.type as before
        from (
            select u.name, format_type(k.atttypid, -1) as type
            from syncagent.replicated r cross join lateral unnest(r.columns) with ordinality as u (name, n)
            left join pg_attribute k on k.attrelid = to_regclass(format('syncagent.row_%%s', r.id)) and k.attnum = u.n
            where r.id = %(id)s
        ) as t
        full join (
            select a.attname, a.atttypid from pg_attribute a join syncagent.replicated r on r.relation = a.attrelid
            where r.id = %(id)s and a.attnum > 0 and not a.attisdropped and a.attgenerated = ''
        ) as a on a.attname = t.name
        """,
        {"id": relation},
    ):
        if row["dropped"]:
            yield Finding("error", f"column {row['name']} of {name} was dropped after it was attached", again)
        elif row["added"]:
            yield Finding(
                "warning",
                f"column {row['name']} of {name} was added after it was attached, and is not replicated",
                again,
            )
        elif row["now"] != row["before"]:
            yield Finding(
                "error",
                f"column {row['name']} of {name} is {row['now']} now, and was {row['before']} when it was attached",
                again,
            )
    key = connection.execute(
        """
        select r.key_columns::text[] as before,
               array(select unnest(k.names)::text from syncagent._key(r.relation) as k) as now
        from syncagent.replicated r where r.id = %s
        """,
        (relation,),
    ).fetchone()
    if key and key["now"] != key["before"]:
        yield Finding(
            "error",
            f"the primary key of {name} is ({', '.join(key['now'])}) now, and was ({', '.join(key['before'])})",
            again,
        )


def _functions(
    connection: Connection, table: dict[str, Any], bodies: dict[str, dict[str, Any]]
) -> Iterator[Finding]:
    text = connection.execute("select (syncagent._text(%s)).*", (table["id"],)).fetchone()
    assert text is not None
    if text["hash"] != table["text_hash"]:
        yield Finding(
            "error",
            f"the functions of {table['name']} were made for another version or for other constraints",
            _REGENERATE,
            _ANEW,
        )
        return
    wanted = _FUNCTION.findall(text["functions"])
    changed = [
        name
        for name in wanted
        if name in bodies
        and not (
            bodies[name]["comment"] == f"syncagent {table['text_hash']}"
            and _stands_in(text["functions"], bodies[name]["prosrc"], "$syncagent$")
        )
    ]
    of = f" of {table['name']}"
    lost = [name for name in wanted if name not in bodies]
    yield from _together(lost, of, "missing", _REGENERATE, _ANEW)
    yield from _together(changed, of, "not as this version has made it", _REGENERATE, _ANEW)


def _merging(connection: Connection, relation: int) -> Iterator[Finding]:
    """Functions of the application that merge columns, which are gone, or others than was agreed on."""
    for row in connection.execute(
        """
        select format('%%I.%%I', r.schema_name, r.table_name) as name, e.key as column_name, f.problem, f.hint
        from syncagent.replicated r cross join lateral jsonb_each_text(r.merges) as e
        cross join lateral syncagent._merge_function(r.relation, e.key::name, e.value) as f
        where r.id = %s and e.value like 'function:%%' and f.problem is not null order by e.key
        """,
        (relation,),
    ):
        yield Finding("error", f"column {row['column_name']} of {row['name']}: {row['problem']}", row["hint"])


def _triggers(connection: Connection, relation: int) -> Iterator[Finding]:
    """The triggers of an attached table, and of every partition of it."""
    nodes: dict[str, dict[str, str]] = {}
    for row in connection.execute(
        """
        select format('%%I.%%I', s.nspname, c.relname) as node, t.tgname, t.tgenabled::text as state
        from syncagent.replicated r cross join lateral syncagent._nodes(r.relation) as n (node)
        join pg_class c on c.oid = n.node and c.relkind <> 'f' join pg_namespace s on s.oid = c.relnamespace
        left join pg_trigger t on t.tgrelid = c.oid and not t.tgisinternal and t.tgname ~ '^syncagent_'
          and (t.tgname = 'syncagent_truncate' or t.tgfoid = any (array[
              to_regproc(format('syncagent.capture_%%s', r.id)), to_regproc(format('syncagent.capture_%%s_key', r.id)),
              to_regproc(format('syncagent.capture_%%s_columns', r.id))]::oid[]))
        where r.id = %s order by n.node = r.relation desc, 1
        """,
        (relation,),
    ):
        nodes.setdefault(row["node"], {})[row["tgname"]] = row["state"]
    for name, found in nodes.items():
        missing = [trigger for trigger in _TRIGGERS if trigger not in found]
        for trigger in missing:
            what = f"trigger {trigger} of {name} is missing: writes are not replicated"
            yield Finding("error", what, _REGENERATE, _ANEW)
        for trigger in _TRIGGERS:
            how = {
                "D": "disabled: writes are not replicated",
                "R": "enabled for replicas only",
                "A": "enabled always",
            }.get(found.get(trigger, "O"))
            if how is not None:
                yield Finding(
                    "error",
                    f"trigger {trigger} of {name} is {how}",
                    f"alter table {name} enable trigger {trigger}",
                    Fix("enable", name, trigger),
                )


def stale(connection: Connection) -> list[tuple[int, int, str]]:
    """Attached tables whose generated functions are not what they should be: relation, oid, name."""
    wrong = []
    bodies = _bodies(connection)
    for table in connection.execute(
        "select r.id, r.text_hash, r.relation::oid::bigint as oid, format('%I.%I', n.nspname, c.relname) as name"
        " from syncagent.replicated r join pg_class c on c.oid = r.relation join pg_namespace n on n.oid = c.relnamespace"
        " where (r.schema_name, r.table_name) = (n.nspname, c.relname) order by r.id"
    ).fetchall():
        if any(finding.severity == "error" for finding in _columns(connection, table["id"], table["name"])):
            continue
        missing = [f for f in _triggers(connection, table["id"]) if f.mend == _REGENERATE]
        if missing or any(_functions(connection, table, bodies)):
            wrong.append((table["id"], table["oid"], table["name"]))
    return wrong


def _again(name: str) -> str:
    return f"syncagent detach {name} && syncagent attach --existing keep {name}"
