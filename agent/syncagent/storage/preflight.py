"""What attaching would meet: every table with its verdict, and what lies between those that go and those that stay.

Invariant: it only reads; a table goes exactly if attach would take it. What triggers write is told from
the text of their functions: a hint for people, which nothing relies on.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from syncagent.storage import migrations, tables
from syncagent.storage.commands import Connection
from syncagent.storage.drift import Finding
from syncagent.storage.tables import Candidate

T = TypeVar("T")
_FEW = 3
Verdict = Literal["attached", "excluded", "goes", "stays"]


@dataclass(frozen=True)
class Judged:
    """A table, what becomes of it, and what to know about it."""

    candidate: Candidate
    verdict: Verdict
    numbered: bool = False
    """Every site numbers its rows for itself."""
    others: tuple[Finding, ...] = ()
    numbers: tuple[Finding, ...] = ()
    """What its numbers mean, at most one: for most tables of an application it is the same."""

    @property
    def notes(self) -> tuple[Finding, ...]:
        return (*self.others, *self.numbers)


def whole(connection: Connection, schema: str | None, exclude: Sequence[str]) -> list[Judged]:
    """Every table of the database. Where the SQL side is not installed it is, until the look is over."""
    if migrations.installed(connection) is not None:
        migrations.require_current(connection)
        return _whole(connection, schema, exclude)
    with connection.transaction(force_rollback=True):
        migrations.upgrade(connection)
        return _whole(connection, schema, exclude)


def _whole(connection: Connection, schema: str | None, exclude: Sequence[str]) -> list[Judged]:
    judged = []
    for table in tables.listed(connection, schema, exclude):
        candidate = tables.candidate(connection, table.oid, derive=True)
        verdict: Verdict = (
            "attached"
            if table.attached
            else "excluded"
            if table.excluded
            else "stays"
            if candidate.problems
            else "goes"
        )
        judged.append(Judged(candidate, verdict))
    return _noted(connection, judged)


def of(connection: Connection, chosen: Sequence[Candidate], *, strided: bool) -> list[Judged]:
    """The same for tables that were chosen; strided if their numbers will be each site's own."""
    return _noted(connection, [Judged(c, "stays" if c.problems else "goes") for c in chosen], strided=strided)


def _noted(connection: Connection, judged: Sequence[Judged], *, strided: bool = False) -> list[Judged]:
    going = [j.candidate.oid for j in judged if j.verdict == "goes"]
    notes: dict[int, list[Finding]] = {}
    for find in (_references, _always, _writes):
        for oid, finding in find(connection, going):
            notes.setdefault(oid, []).append(finding)
    numbers = dict(_numbers(connection, going))
    return [
        Judged(
            j.candidate,
            j.verdict,
            j.candidate.oid in numbers,
            tuple(notes.get(j.candidate.oid, ())),
            (numbers[j.candidate.oid],) if j.candidate.oid in numbers and not strided else (),
        )
        for j in judged
    ]


def gathered(judged: Sequence[Judged]) -> list[Finding]:
    """All notes for a person: what is the same for many tables is said once, with their names."""
    notes = [finding for table in judged for finding in table.others]
    numbered = [table for table in judged if table.numbers]
    if len(numbered) <= _FEW:
        return [*notes, *(finding for table in numbered for finding in table.numbers)]
    severities = {finding.severity for table in numbered for finding in table.numbers}
    names = ", ".join(table.candidate.name for table in numbered)
    what = f"{len(numbered)} tables are numbered at each site for itself: two sites draw the same numbers\n{names}"
    return [
        *notes,
        Finding("warning" if "warning" in severities else "note", what, "syncagent attach --stride N ..."),
    ]


def _numbers(connection: Connection, going: Sequence[int]) -> Iterator[tuple[int, Finding]]:
    """Tables whose rows get a number from a sequence, one finding each."""
    for row in connection.execute(
        """
        select g.oid, format('%%I.%%I', n.nspname, c.relname) as name, bool_or(x.is_unique) as is_unique,
               string_agg(quote_ident(x.column_name), ', ') as columns
        from unnest(%s::bigint[]) as g (oid) join pg_class c on c.oid = g.oid join pg_namespace n on n.oid = c.relnamespace
        cross join lateral syncagent._numbered(c.oid) as x where x.counts group by 1, 2 order by 2
        """,
        (list(going),),
    ).fetchall():
        yield (
            row["oid"],
            Finding(
                "warning" if row["is_unique"] else "note",
                f"{row['name']} is numbered at each site for itself ({row['columns']}): two sites draw the same numbers",
                f"syncagent attach --stride N {row['name']}",
            ),
        )


_OURS = "select relation::oid::bigint from syncagent.replicated union all select unnest(%(going)s::bigint[])"


def _references(connection: Connection, going: Sequence[int]) -> Iterator[tuple[int, Finding]]:
    """Foreign keys between what goes, or is attached, and what stays."""
    for row in connection.execute(
        f"""
        with ours as ({_OURS})
        select format('%%I', k.conname) as name, k.conrelid::bigint as oid, k.confrelid::bigint as other,
               format('%%I.%%I', fn.nspname, f.relname) as referring, format('%%I.%%I', tn.nspname, t.relname) as referred,
               k.conrelid in (select * from ours) as outward, k.confdeltype in ('c', 'n', 'd') as cascades
        from pg_constraint k
        join pg_class f on f.oid = k.conrelid join pg_namespace fn on fn.oid = f.relnamespace
        join pg_class t on t.oid = k.confrelid join pg_namespace tn on tn.oid = t.relnamespace
        where k.contype = 'f' and k.conparentid = 0 and (k.conrelid in (select * from ours)) <> (k.confrelid in (select * from ours))
          and (k.conrelid = any (%(going)s::bigint[]) or k.confrelid = any (%(going)s::bigint[]))
        order by 4, 1
        """.encode(),
        {"going": list(going)},
    ).fetchall():
        if row["outward"]:
            what = (
                f"{row['referring']} refers to {row['referred']} ({row['name']}), which stays:"
                " at other sites the rows it refers to may be missing"
            )
            mend = (
                f"syncagent attach {row['referred']}\n"
                f"or, without the promise: alter table {row['referring']} drop constraint {row['name']};\n"
                "or leave it: rows that arrive are not checked, so keep those it refers to the same at every site"
            )
            yield row["oid"], Finding("warning", what, mend)
        else:
            follows = " nor does its ON DELETE happen," if row["cascades"] else ""
            what = (
                f"{row['referring']}, which stays, refers to {row['referred']} ({row['name']}):"
                f" deletes that arrive are not checked,{follows} and leave its rows behind"
            )
            mend = (
                f"syncagent attach {row['referring']}\n"
                f"or, without the promise: alter table {row['referring']} drop constraint {row['name']};"
            )
            yield row["other"], Finding("warning", what, mend)


def _always(connection: Connection, going: Sequence[int]) -> Iterator[tuple[int, Finding]]:
    """Triggers that fire where rows are applied."""
    for row in _triggers(connection, going):
        if row["state"] in ("A", "R"):
            how = "always" if row["state"] == "A" else "for replicas"
            yield (
                row["oid"],
                Finding(
                    "warning",
                    f"trigger {row['name']} of {row['relation']} is enabled {how}: it fires again where rows are applied",
                    f"alter table {row['relation']} enable trigger {row['name']};",
                ),
            )


def _triggers(connection: Connection, going: Sequence[int]) -> list[dict[str, Any]]:
    """Triggers of the application; a partition's belong to its root."""
    return connection.execute(
        """
        select g.oid, format('%%I', t.tgname) as name, format('%%I.%%I', n.nspname, c.relname) as relation, t.tgenabled::text as state,
               t.tgfoid::bigint as function, t.tgfoid::regproc::text as called
        from unnest(%s::bigint[]) as g (oid) cross join lateral syncagent._nodes(g.oid::oid::regclass) as x (node)
        join pg_trigger t on t.tgrelid = x.node and not t.tgisinternal and t.tgname !~ '^syncagent_' and t.tgparentid = 0
        join pg_class c on c.oid = t.tgrelid join pg_namespace n on n.oid = c.relnamespace
        order by 3, 2
        """,
        (list(going),),
    ).fetchall()


# ---- what triggers write, as far as text tells

_NAME = r'(?:"(?:[^"]|"")+"|[^\W\d][\w$]*)'
_WRITE = re.compile(
    rf"\b(?:insert\s+into|update(?:\s+only)?|delete\s+from(?:\s+only)?|merge\s+into)\s+((?:{_NAME}\s*\.\s*)?{_NAME})",
    re.IGNORECASE,
)
_CALL = re.compile(rf"((?:{_NAME}\s*\.\s*)?{_NAME})\s*\(")
_COMMENT = re.compile(r"--[^\n]*|/\*.*?\*/", re.DOTALL)


@dataclass(frozen=True)
class _Source:
    names: tuple[str, str]
    text: str


def _writes(connection: Connection, going: Sequence[int]) -> Iterator[tuple[int, Finding]]:
    """Triggers whose functions, or what those call, write to tables that stay."""
    found = [row for row in _triggers(connection, going) if row["state"] != "D"]
    if not found:
        return
    sources = {
        row["oid"]: _Source((row["schema"], row["name"]), _COMMENT.sub(" ", row["text"]))
        for row in connection.execute(
            """
            select p.oid::bigint as oid, n.nspname as schema, p.proname as name, coalesce(pg_get_function_sqlbody(p.oid), p.prosrc) as text
            from pg_proc p join pg_namespace n on n.oid = p.pronamespace join pg_language l on l.oid = p.prolang
            where l.lanname in ('plpgsql', 'sql') and n.nspname not in ('pg_catalog', 'information_schema', 'syncagent')
            """
        )
    }
    staying = {
        (row["schema"], row["name"]): row["title"]
        for row in connection.execute(
            f"""
            select n.nspname as schema, c.relname as name, format('%%I.%%I', n.nspname, c.relname) as title
            from pg_class c join pg_namespace n on n.oid = c.relnamespace
            where c.relkind in ('r', 'p', 'f') and n.nspname <> all ('{{pg_catalog,information_schema,syncagent}}')
              and coalesce(pg_partition_root(c.oid)::oid, c.oid)::bigint not in ({_OURS})
            """.encode(),
            {"going": list(going)},
        )
    }
    for row in found:
        texts = list(_reached(sources, row["function"]))
        for title in sorted({title for text in texts for title in _named(_WRITE, text, staying)}):
            yield (
                row["oid"],
                Finding(
                    "warning",
                    f"trigger {row['name']} of {row['relation']} ({row['called']}) writes to {title}, which stays:"
                    " at other sites it does not fire",
                    f"syncagent attach {title}\nor leave it, if {title} is to hold what was done at its own site",
                ),
            )
        if any(re.search(r"\bexecute\b", text, re.IGNORECASE) for text in texts):
            yield (
                row["oid"],
                Finding(
                    "note",
                    f"trigger {row['name']} of {row['relation']} ({row['called']}) puts SQL together as it runs:"
                    " look what it writes",
                ),
            )


def _reached(sources: dict[int, _Source], function: int) -> Iterator[str]:
    """The texts of a function and of all it calls."""
    names = {source.names: oid for oid, source in sources.items()}
    seen, todo = set(), [function]
    while todo:
        oid = todo.pop()
        if oid in seen or oid not in sources:
            continue
        seen.add(oid)
        yield sources[oid].text
        todo += _named(_CALL, sources[oid].text, names)


def _named(pattern: re.Pattern[str], text: str, known: Mapping[tuple[str, str], T]) -> list[T]:
    """What is known under the names that a pattern finds; a name without a schema is looked for in all."""
    found = []
    for match in pattern.findall(text):
        parts = [
            part[1:-1].replace('""', '"') if part.startswith('"') else part.lower()
            for part in re.findall(_NAME, match)
        ]
        found += [
            value
            for (schema, name), value in known.items()
            if name == parts[-1] and (len(parts) == 1 or schema == parts[0])
        ]
    return found
