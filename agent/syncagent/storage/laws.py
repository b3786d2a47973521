"""Whether a function is fit to merge a column: asked of values, which law it breaks.

Invariant: a law holds if no pair or triple of the samples breaks it; what is compared is text, to the letter, as sites compare.
"""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, LiteralString

from psycopg import sql

from syncagent.errors import RefusedError, UsageError
from syncagent.storage import merges, tables
from syncagent.storage.commands import Connection, site_of
from syncagent.storage.session import PINNED

Value = str | None
Pair = tuple[Value, Value]

MOST = 14
"""Samples: so many to the third are the calls of one law."""
_OF_TABLE = 8
_ELSEWHERE = {
    "timezone": "Asia/Kathmandu",
    "datestyle": "SQL, DMY",
    "intervalstyle": "sql_standard",
    "extra_float_digits": "0",
    "bytea_output": "escape",
}
"""Settings of another session, which must not matter."""
EDGES: dict[str, Sequence[str]] = {
    "S": ("", "a", "A", "b", "ä"),
    "N": ("0", "1", "-1", "7"),
    "B": ("true", "false"),
    "D": ("2026-01-01", "1969-12-31", "2026-07-01 12:00"),
    "R": ("empty", "(,)"),
    "A": ("{}",),
}
"""Values of a kind of types, as pg_type.typcategory has it."""
EDGES_OF: dict[str, Sequence[str]] = {
    "smallint": ("32767", "-32768"),
    "integer": ("2147483647", "-2147483648"),
    "bigint": ("9223372036854775807", "-9223372036854775808"),
    "numeric": ("0.10", "0.1", "NaN"),
    "double precision": ("NaN", "Infinity", "-0"),
    "real": ("NaN", "Infinity", "-0"),
    "jsonb": ("null", "{}", "[]", '{"a": 1}', '{"a": 2}', '{"b": [1]}', "7"),
    "int4range": ("[1,2)", "[3,5)"),
    "int8range": ("[1,2)", "[3,5)"),
    "integer[]": ("{1}", "{2,1}", "{NULL}"),
    "text[]": ("{a}", "{b,a}", "{NULL}"),
    "uuid": ("00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff"),
}


@dataclass(frozen=True)
class Asked:
    """A function, the type it is asked for, and the values."""

    called: str
    type: str
    strict: bool
    owner: str
    samples: tuple[Value, ...]


@dataclass(frozen=True)
class Law:
    """What must hold; `example`: the smallest values for which it does not, and what came of them."""

    law: str
    holds: bool
    example: str | None = None


def for_column(connection: Connection, function: str, table: str, column: str) -> Asked:
    """RefusedError if it cannot merge that column at all."""
    (candidate,) = tables.named(connection, [table], derive=True)
    merges.refuse_unknown(connection, {candidate.oid: candidate.name}, ((column, function),))
    row = connection.execute(
        "select * from syncagent._merge_function(%s::bigint::oid::regclass, %s, 'function:' || %s)",
        (candidate.oid, column, function),
    ).fetchone()
    assert row is not None
    if row["problem"]:
        raise RefusedError(
            f"{function} cannot merge {table}.{column}", detail=row["problem"], hint=row["hint"]
        )
    found = connection.execute(
        sql.SQL(
            "select array_agg(x.v order by md5(x.v)) as found from (select distinct v.{}::text as v from (select {} from {} limit 10000) as v"
            " where v.{} is not null limit {}) as x"
        ).format(
            *(sql.Identifier(column),) * 2,
            sql.SQL(candidate.name),
            sql.Identifier(column),
            sql.Literal(_OF_TABLE),
        )
    ).fetchone()
    assert found is not None
    samples = [*(found["found"] or ()), *_edges(connection, row["type"])]
    return Asked(row["called"], row["type"], row["is_strict"], row["owner"], _several(samples))


def of_samples(connection: Connection, function: str, samples: Iterable[Value]) -> Asked:
    """The values of a file; of the type that the function takes."""
    rows = connection.execute(
        "select format('%%I.%%I', n.nspname, p.proname) as called, format_type(p.proargtypes[0], -1) as type, p.proisstrict as strict, current_user::text as owner"
        " from pg_proc p join pg_namespace n on n.oid = p.pronamespace join pg_type t on t.oid = p.proargtypes[0]"
        " where array[n.nspname, p.proname]::text[] = parse_ident(%s) and p.pronargs = 2 and p.prokind = 'f' and not p.proretset"
        " and p.proargtypes[0] = p.proargtypes[1] and p.prorettype = p.proargtypes[0] and t.typtype <> 'p'",
        (function,),
    ).fetchall()
    if len(rows) != 1:
        raise RefusedError(
            f"there {'are several functions' if rows else 'is no function'} {function} of two values of one type, which returns one",
            hint="name it with its schema; and say for which column: --table, --column",
        )
    (row,) = rows
    return Asked(row["called"], row["type"], row["strict"], row["owner"], _several(samples))


def read(lines: Iterable[str]) -> list[Value]:
    """A value a line, as PostgreSQL writes it; \\N is null."""
    return [None if line == r"\N" else line for line in (line.rstrip("\n") for line in lines)]


def _several(samples: Iterable[Value]) -> tuple[Value, ...]:
    found = tuple(dict.fromkeys([None, *samples]))[:MOST]
    if len(found) < 3:
        raise UsageError(
            "there are too few values to ask it for", hint="give some: --samples FILE, a value a line"
        )
    return found


def _edges(connection: Connection, name: str) -> list[str]:
    row = connection.execute(
        "select t.typcategory::text as category, array(select e.enumlabel::text from pg_enum e where e.enumtypid = t.oid order by e.enumsortorder limit 6) as labels"
        " from pg_type t where t.oid = to_regtype(%s)",
        (name,),
    ).fetchone()
    assert row is not None
    return [*row["labels"], *EDGES_OF.get(name, ()), *EDGES.get(row["category"], ())]


# ---- the laws


def laws(dsn: str, asked: Asked, seconds: float) -> list[Law]:
    """Each law, and whether the samples break it."""
    with ExitStack() as stack:
        here, there = (_session(stack.enter_context(site_of(dsn)), seconds) for _ in range(2))
        samples = _spelled(here, asked)
        pairs = [(one, other) for one in samples for other in samples]
        made = _made(here, asked, pairs)
        found = [_answers(made)]
        if not found[0].holds:
            return found
        found.append(
            _always(asked, made, _made(here, asked, pairs[::-1]), _made(there, asked, pairs, _ELSEWHERE))
        )
        values = {pair: value for pair, (value, _) in made.items()}
        found.append(_not_null(values))
        found.append(
            _first(
                "commutative",
                (
                    (_call(p, values[p]), _call(p[::-1], values[p[::-1]]))
                    for p in pairs
                    if values[p] != values[p[::-1]]
                ),
            )
        )
        found.append(
            _first("idempotent", ((_call((v, v), values[v, v]),) for v in samples if values[v, v] != v))
        )
        found.append(_associative(here, asked, samples, values))
    return found


def _session(connection: Connection, seconds: float) -> Connection:
    for name in _ELSEWHERE:
        connection.execute("select set_config(%s, %s, false)", (name, PINNED[name]))
    connection.execute("select set_config('statement_timeout', %s, false)", (f"{int(seconds * 1000)}ms",))
    return connection


def _spelled(connection: Connection, asked: Asked) -> list[Value]:
    """The samples as the type writes them."""
    try:
        rows = connection.execute(
            sql.SQL(
                "select u.v::{}::text as v from unnest(%s::text[]) with ordinality as u (v, n) order by u.n"
            ).format(sql.SQL(asked.type)),
            (list(asked.samples),),
        ).fetchall()
    except Exception as error:
        raise UsageError(
            f"not every sample is a {asked.type}",
            detail=str(error).splitlines()[0],
            hint="write them as PostgreSQL does",
        ) from error
    return list(dict.fromkeys(row["v"] for row in rows))


_ASK: LiteralString = (
    "select u.n, {} as value, a.reason from unnest(%(one)s::text[], %(other)s::text[]) with ordinality as u (one, other, n)"
    " cross join lateral syncagent._tried(%(called)s, %(type)s, %(strict)s, %(owner)s, u.one, u.other) as a"
)


def _made(
    connection: Connection, asked: Asked, pairs: Sequence[Pair], settings: dict[str, str] | None = None
) -> dict[Pair, tuple[Value, str | None]]:
    """What the function makes of each pair, or says instead; under other settings it is read under these again."""
    typed = sql.SQL(_ASK).format(sql.SQL(f"a.value::{asked.type}"))
    given: dict[str, Any] = {
        "one": [one for one, _ in pairs],
        "other": [other for _, other in pairs],
        "called": asked.called,
        "type": asked.type,
        "strict": asked.strict,
        "owner": asked.owner,
    }
    for name, value in (settings or {}).items():
        connection.execute("select set_config(%s, %s, false)", (name, value))
    connection.execute("drop table if exists pg_temp.made")
    connection.execute(f"create temp table made (n bigint, value {asked.type}, reason text)".encode())
    connection.execute(sql.SQL("insert into pg_temp.made {}").format(typed), given)
    for name in settings or ():
        connection.execute("select set_config(%s, %s, false)", (name, PINNED[name]))
    rows = connection.execute("select value::text as value, reason from pg_temp.made order by n").fetchall()
    return {pair: (row["value"], row["reason"]) for pair, row in zip(pairs, rows, strict=True)}


def _answers(made: dict[Pair, tuple[Value, str | None]]) -> Law:
    return _first(
        "answers",
        (
            (_call(pair, reason),)
            for pair, (_, reason) in made.items()
            if reason and reason != "not asked any more"
        ),
    )


def _always(asked: Asked, made: dict[Pair, Any], again: dict[Pair, Any], there: dict[Pair, Any]) -> Law:
    return _first(
        "the same each time",
        (
            (
                _call(pair, made[pair][0]),
                _call(pair, other[pair][0] if other[pair][1] is None else other[pair][1]),
            )
            for pair in made
            for other in (again, there)
            if other[pair] != made[pair]
        ),
    )


def _not_null(values: dict[Pair, Value]) -> Law:
    return _first(
        "makes a value of values",
        ((_call(pair, None),) for pair, value in values.items() if value is None and None not in pair),
    )


def _associative(
    connection: Connection, asked: Asked, samples: Sequence[Value], values: dict[Pair, Value]
) -> Law:
    wanted = {(values[a, b], c) for a in samples for b in samples for c in samples} | {
        (a, values[b, c]) for a in samples for b in samples for c in samples
    }
    missing = sorted(wanted - values.keys(), key=str)
    made = {
        pair: value if reason is None else f"({reason})"
        for pair, (value, reason) in _made(connection, asked, missing).items()
    }
    known = values | made
    return _first(
        "associative",
        (
            (
                f"f({_call((a, b))}, {_word(c)}) = {_word(known[values[a, b], c])}",
                f"f({_word(a)}, {_call((b, c))}) = {_word(known[a, values[b, c]])}",
            )
            for a in samples
            for b in samples
            for c in samples
            if known[values[a, b], c] != known[a, values[b, c]]
        ),
    )


def _first(law: str, broken: Iterable[tuple[str, ...]]) -> Law:
    """The smallest example, if there is one."""
    example = min(broken, key=lambda parts: (sum(map(len, parts)), parts), default=None)
    return Law(law, example is None, None if example is None else "; but ".join(example))


def _call(pair: Pair, *result: Value) -> str:
    one, other = map(_word, pair)
    return f"f({one}, {other})" + "".join(f" = {_word(value)}" for value in result)


def _word(value: Value) -> str:
    return "null" if value is None else "'" + value.replace("'", "''") + "'"
