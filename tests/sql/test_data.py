"""Rows arrive as they were: types, names, keys, columns. Between servers of different versions."""

import asyncpg
import pytest
from psycopg.sql import SQL

from tests.sql.conftest import Pair, Sites
from tests.support.lab import Site, exchange, key, same

TYPES = {
    "numeric": ["'NaN'", "'Infinity'", "1.0", "1.00", "-0.00001", "1e-16383", "1e131071"],
    "numeric(8,3)": ["1.5", "'NaN'"],
    "real": ["'-0'", "'NaN'", "1.17549435e-38", "0.1"],
    "double precision": ["'-0'", "'NaN'", "'Infinity'", "'-Infinity'", "0.1", "5e-324"],
    "money": ["'-1234.56'"],
    "date": ["'infinity'", "'-infinity'", "'4714-11-24 BC'", "'5874897-12-31'"],
    "timestamp": ["'infinity'", "'2000-01-01 23:59:59.999999'"],
    "timestamptz": ["'-infinity'", "'2024-03-31 02:30:00+01'", "'1883-11-18 12:03:58 America/New_York'"],
    "timetz": ["'24:00:00+15:59'"],
    "interval": ["'1 mon -1 day 00:00:00.000001'", "'-178000000 years'", "'24:00:00'", "'1 day'"],
    "text": ["''", "e'\\n\\t\\\\'", "'\\N'", "'日本語 \U0001f600'", "repeat('x', 100000)"],
    "varchar(3)": ["'ab '"],
    "char(5)": ["'ab'", "''"],
    '"char"': ["'x'"],
    "name": ["'n'"],
    "bytea": ["''", "'\\x00ff'"],
    "bit(5)": ["b'10101'"],
    "varbit": ["b''", "b'1'"],
    "boolean": ["true"],
    "json": ['\'{"a":1, "a":2,  "b" : [ ]}\''],
    "jsonb": [
        '\'{"a": 1.00, "b": null}\'',
        '\'{"a": 1, "b": {"c": 2, "c": 3}, "a": -0.0}\'',
        "'\"\\u00e9\"'",
    ],
    "uuid": ["'ffffffff-ffff-ffff-ffff-ffffffffffff'"],
    "inet": ["'::1/64'", "'10.0.0.1'"],
    "macaddr8": ["'08:00:2b:01:02:03:04:05'"],
    "point": ["'(-0,1e300)'"],
    "polygon": ["'((0,0),(1,1),(1,0))'"],
    "tsvector": ["'a:1A b:2'"],
    "tsquery": ["'a & !b <2> c'"],
    "int4range": ["'empty'", "'[1,)'"],
    "tstzmultirange": ["'{[2020-01-01 00:00+00,2020-01-02 00:00+00),[2021-01-01 00:00+00,)}'"],
    "int[]": ["'{}'", "'{1,null}'", "'[0:1][2:3]={{1,2},{3,4}}'"],
    "text[]": ["""'{"",null,"null","a\\"b"}'"""],
    "mood": ["'so so'"],
    "mood[]": ["'{happy,null}'"],
    "positive": ["1"],
    "positive[]": ["'{1,2}'"],
    "pair": ["row(1, 'happy', '{2}')"],
    "pair[]": ["array[row(1, 'happy', null)::pair, null]"],
    "moods": ["'[sad,happy)'"],
}
DEFINITIONS = """
    create schema kinds;
    create type kinds.mood as enum ('sad', 'so so', 'happy');
    create domain kinds.positive as int check (value > 0);
    create type kinds.pair as (n int, m kinds.mood, p kinds.positive[]);
    create type kinds.moods as range (subtype = kinds.mood);
    set search_path = public, kinds;
"""


def table_of_types() -> str:
    columns = ", ".join(f"c{number} {name}" for number, name in enumerate(TYPES))
    return f"{DEFINITIONS} create table item (id uuid primary key, {columns})"


async def write_types(site: Site) -> None:
    """A row per value, the others null; a row of nulls."""
    await site.do("set search_path = public, kinds", f"insert into item values ('{key(0)}')")
    number = 0
    for column, values in enumerate(TYPES.values()):
        for value in values:
            number += 1
            await site.do(f"insert into item (id, c{column}) values ('{key(number)}', {value})")


async def test_every_type(sites: Sites, pair: Pair) -> None:
    # The numbers that the application's own types have inside the server differ from site to site.
    pair[1].execute(SQL("create type drift as (number int)"))
    a, b = await sites(table_of_types(), *pair)
    number = "select 'kinds.mood'::regtype::oid::text"
    assert await a.one(number) != await b.one(number)
    await write_types(a)
    await exchange(a, b)
    assert len(await same("item", a, b)) > 70

    await b.do("set search_path = public, kinds", "update item set c0 = 0")
    for column, values in enumerate(TYPES.values()):
        await b.do(f"update item set c{column} = {values[-1]}")
    await exchange(a, b)

    await same("item", a, b)
    assert await a.parked() == await b.parked() == []


# ---- names

NAMES = [
    "select",
    "Mixed Case",
    'quo"te',
    "it's",
    "{id}",
    "a{key}b}",
    "$$",
    "$1 %s \\",
    "größe 日本",
    "n" * 63,
    "v_rows",
    "t",
    "changed",
]


async def test_odd_names(sites: Sites, pair: Pair) -> None:
    def quoted(name: str) -> str:
        return '"' + name.replace('"', '""') + '"'

    columns = ", ".join(
        f"{quoted(name)} int" for name in [*NAMES, "s", "x", "d", "v", "k", "l", "f", "old", "_key", "c1"]
    )
    tables = [f"{quoted('s ' + name[:40])}.{quoted(name)}" for name in NAMES]
    schemas = ";".join(f"create schema {quoted('s ' + name[:40])}" for name in NAMES)
    creates = ";".join(
        f"create table {table} ({quoted(key_name)} uuid primary key, {columns.replace(quoted(key_name) + ' int, ', '')})"
        for table, key_name in zip(tables, NAMES, strict=True)
    )
    a, b = await sites(f"{schemas}; {creates}", *pair)

    for table, name in zip(tables, NAMES, strict=True):
        await a.do(f"insert into {table} ({quoted(name)}, x) values ('{key(1)}', 1), ('{key(2)}', 2)")
    await exchange(a, b)
    for table, name in zip(tables, NAMES, strict=True):
        await a.do(
            f"update {table} set x = 3 where {quoted(name)} = '{key(1)}'", f"delete from {table} where x = 2"
        )
        await b.do(f"update {table} set x = 4 where {quoted(name)} = '{key(1)}'")
    await exchange(a, b)

    for table in tables:
        assert len(await same(table, a, b)) == 1
    assert await a.conflicts() or await b.conflicts()


# ---- columns


async def test_large_values_that_did_not_change(sites: Sites, pair: Pair) -> None:
    a, b = await sites("create table item (id uuid primary key, value int, body text, raw bytea)", *pair)
    await a.do("alter table item alter raw set storage external")
    body = "(select string_agg(md5(n::text), '') from generate_series(1, 50000) n)"
    await a.do(f"insert into item values ('{key(1)}', 1, {body}, {body}::bytea)")
    await exchange(a, b)

    await a.do("update item set value = 2")
    await exchange(a, b)

    assert await b.one("select length(body) + length(raw) + value from item") == 3_200_002
    await same("item", a, b)


async def test_generated_and_identity_columns(sites: Sites, pair: Pair) -> None:
    schema = """create table item (
        id uuid primary key, value int, twice int generated always as (value * 2) stored unique deferrable,
        own int generated always as identity, other int generated by default as identity)"""
    a, b = await sites(schema, *pair)
    await b.do("alter table item alter own restart 100")
    await a.do(f"insert into item values ('{key(1)}', 1), ('{key(2)}', 2)")
    await exchange(a, b)

    await a.do(
        "update item set value = 3 - value",  # twice is unique, and passes between the two
        "update item set own = default",
    )
    await exchange(a, b)
    await b.do(f"delete from item where id = '{key(1)}'", f"insert into item values ('{key(1)}', 5)")
    await exchange(a, b)

    await same("item", a, b)
    assert await a.parked() == await b.parked() == []


async def test_columns_in_another_order_and_with_gaps(sites: Sites, pair: Pair) -> None:
    a, b = await sites("create table item (id uuid primary key, one text, two int)", *pair)
    for site, statements in (
        (a, ["alter table item drop one", "alter table item add one text"]),
        (b, ["alter table item add gap int", "alter table item drop gap"]),
    ):
        await site.do(
            "select syncagent._detach('item')", *statements, "select syncagent._attach('item', false, false)"
        )

    await a.do(f"insert into item (id, one, two) values ('{key(1)}', 'x', 1)")
    await exchange(a, b)
    await b.do("update item set one = 'y', two = 2")
    await exchange(a, b)

    assert (
        await a.rows("select one, two from item") == await b.rows("select one, two from item") == [("y", 2)]
    )


async def test_many_columns(sites: Sites, pair: Pair) -> None:
    columns = ", ".join(f"c{number} smallint" for number in range(1590))
    a, b = await sites(f"create table item (id uuid primary key, {columns})", *pair)
    await a.do(f"insert into item (id, c1) values ('{key(1)}', 1)")
    await exchange(a, b)

    await a.do("update item set c1589 = 2")
    await b.do("update item set c1588 = 3")
    await exchange(a, b)

    await same("item", a, b)


# ---- keys that are not one uuid

KEYS = {
    "integer": ("n bigint", "n", ["1", "-9223372036854775808", "42"]),
    "two columns": ("n int, t text", "n, t", ["1, 'a'", "1, 'a,\"b\"'", "2, ''"]),
    "many kinds": (
        "d date, m numeric, x timestamptz, i interval, b bytea, f double precision",
        "d, m, x, i, b, f",
        [
            "'2024-02-03', 1.50, '2024-03-31 02:30+01', '1 day -1 second', '\\x00ff', 0.1",
            "'infinity', 'NaN', '-infinity', '1 year', '', '-Infinity'",
        ],
    ),
    "custom": ("m mood, c char(3)", "m, c", ["'sad', 'a'", "'so so', 'abc'"]),
}


@pytest.mark.parametrize("kind", KEYS)
async def test_derived_keys(sites: Sites, pair: Pair, kind: str) -> None:
    # What the application has set for its session does not change which row is meant.
    columns, primary, rows = KEYS[kind]
    schema = f"{DEFINITIONS} create table item ({columns}, value int, primary key ({primary}))"
    a, b = await sites(schema, *pair)
    odd = await a.session(
        datestyle="SQL, DMY",
        timezone="Asia/Kolkata",
        intervalstyle="iso_8601",
        extra_float_digits="-10",
        bytea_output="escape",
        search_path="kinds, public",
    )
    for row in rows:
        await odd.execute(
            f"set datestyle = 'ISO'; insert into item values ({row}, 1); set datestyle = 'SQL, DMY'"
        )
    await exchange(a, b)
    assert len(await same("item", a, b)) == len(rows)

    await b.do("update item set value = 2")
    await exchange(a, b)
    await odd.execute("update item set value = value + 1")
    await exchange(a, b)
    assert await b.conflicts() == []
    await a.do("update item set value = 10")
    await b.do("update item set value = 20")
    await exchange(a, b)
    assert await b.rows("select distinct value from item") == [(20,)]
    await odd.execute("delete from item")
    await exchange(a, b)
    assert await same("item", a, b) == []
    await odd.execute(f"set datestyle = 'ISO'; insert into item values ({rows[0]}, 9)")
    await exchange(a, b)
    assert len(await same("item", a, b)) == 1


EQUAL = {
    "numeric": ["1.0", "1.00"],
    "numeric(5,2)": ["1", "1.00"],
    "double precision": ["'-0'", "0"],
    "real": ["0", "'-0'"],
    "bpchar": ["'a'", "'a  '"],
    "interval": ["'24 hours'", "'1 day'"],
    "timestamptz": ["'2024-01-01 12:00+00'", "'2024-01-01 14:00+02'"],
}


@pytest.mark.parametrize("kind", EQUAL)
async def test_equal_keys_that_look_different(sites: Sites, pair: Pair, kind: str) -> None:
    a, b = await sites(f"create table item (n {kind} primary key, value int)", *pair)
    one, other = EQUAL[kind]
    await a.do(f"insert into item values ({one}, 1)")
    await b.do(f"insert into item values ({other}, 2)")

    first, second = await a.batch(b), await b.batch(a)
    await b.apply(first)
    await a.apply(second)
    await exchange(a, b)

    assert len(await same("item", a, b)) == 1
    assert await a.one("select value from item") == 2
    assert await a.conflicts() == await b.conflicts() == ["update/update"]


@pytest.mark.parametrize("plain", [True, False])
async def test_a_deleted_row_of_a_domain_that_refuses_null(sites: Sites, pair: Pair, plain: bool) -> None:
    """It has no values; everything else goes on with it."""
    schema = """create domain given as text not null; create domain known as int check (value is not null);
        create table item (id uuid primary key, name given, number known); create table other (id uuid primary key)"""
    a, b = await sites(schema, *pair)
    await a.do(f"insert into item values ('{key(1)}', 'x', 1), ('{key(2)}', 'y', 2)")
    await exchange(a, b, plain=plain)

    await a.do(
        f"delete from item where id = '{key(1)}'",
        "update item set name = 'z'",
        f"insert into other values ('{key(3)}')",
    )
    await exchange(a, b, plain=plain)

    assert [row[0] for row in await b.rows("select name::text from item")] == ["z"]
    await same("item", a, b)
    await same("other", a, b)


@pytest.mark.parametrize("kind", ["jsonb", "numeric[]", "int4range", "free"])
async def test_key_of_a_type_that_is_spelled_freely_is_refused(sites: Sites, pair: Pair, kind: str) -> None:
    (a,) = await sites("select", pair[0])
    await a.do("create domain free as nummultirange", f"create table item (n {kind} primary key)")

    with pytest.raises(asyncpg.PostgresError, match="whose equal values can be written in different ways"):
        await a.do("select syncagent._attach('item', true, true)")
