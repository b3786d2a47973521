"""Fingerprints of rows: equal for equal rows on every server, different for different ones."""

from psycopg.sql import SQL

from tests.sql.conftest import Pair, Sites
from tests.sql.test_data import DEFINITIONS, TYPES, table_of_types, write_types
from tests.support.lab import Site, exchange, key

Lanes = tuple[int, int, int]
_LARGEST = 2**63


async def fingerprint(site: Site, table: str = "item", where: str = "true") -> Lanes:
    (found,) = await site.rows(
        "select f.* from syncagent._fingerprint($1::text::regclass,"
        " array(select name from syncagent._copied_columns($1::text::regclass)), $2) as f",
        table,
        where,
    )
    return found


async def test_of_every_type_between_versions(sites: Sites, pair: Pair) -> None:
    pair[1].execute(SQL("create type drift_2 as (number int)"))
    a, b = await sites(table_of_types(), *pair)
    await write_types(a)
    await exchange(a, b)
    keys = [row[0] for row in await a.rows("select id from item order by id")]
    assert len(keys) > 70

    of_rows = {(await fingerprint(a, where=f"t.id = '{row}'"))[1:] for row in keys}
    assert len(of_rows) == len(keys)
    for row in keys:
        where = f"t.id = '{row}'"
        assert await fingerprint(a, where=where) == await fingerprint(b, where=where)
    total = await fingerprint(a)
    assert total == await fingerprint(b)
    assert total[0] == len(keys)


# value, another one that must not look the same
NEAR = {
    "numeric": ("1.0", "1.00"),
    "double precision": ("'-0'", "0"),
    "real": ("'NaN'", "'Infinity'"),
    "text": ("''", "null"),
    "varchar": ("'a'", "'a '"),
    "bpchar": ("'a'", "'a '"),
    "json": ("'{\"a\":1}'", "'{\"a\": 1}'"),
    "jsonb": ("'1.0'", "'1.00'"),
    "interval": ("'24:00:00'", "'1 day'"),
    "timestamptz": ("'infinity'", "'-infinity'"),
    "int[]": ("'{1}'", "'[0:0]={1}'"),
    "text[]": ("'{null}'", "'{\"null\"}'"),
    "pair": ("row(null, null, null)", "null"),
    "bytea": ("'\\x00'", "'\\x0000'"),
    "box": ("'(0,0),(1,4)'", "'(0,0),(2,2)'"),
    "inet": ("'10.0.0.1'", "'10.0.0.1/8'"),
}


async def test_of_values_that_are_nearly_the_same(sites: Sites, pair: Pair) -> None:
    columns = ", ".join(f"c{number} {kind}" for number, kind in enumerate(NEAR))
    (a,) = await sites(f"{DEFINITIONS} create table item (id uuid primary key, {columns})", pair[0])
    await a.do("set search_path = public, kinds", f"insert into item values ('{key(1)}')")
    for number, values in enumerate(NEAR.values()):
        seen = set()
        for value in values:
            await a.do(f"update item set c{number} = {value}")
            seen.add((await fingerprint(a))[1:])
        assert len(seen) == 2, values


async def test_known_answers(sites: Sites, pair: Pair) -> None:
    """They never change: sites of different versions compare them, and later ones are stored."""
    for site in await sites(
        "create table item (id uuid primary key, n integer, name text, at timestamptz, x double precision, d numeric)",
        *pair,
    ):
        await site.do(
            "set timezone = 'Asia/Kolkata'", "set datestyle = 'SQL, DMY'", "set extra_float_digits = -5"
        )
        assert await fingerprint(site) == (0, 0, 0)
        await site.do(
            f"insert into item values ('{key(1)}', -7, e'it''s \\\\ \u00e9', '2024-02-03 04:05:06.7+00', 0.1, 1.50)"
        )
        assert await fingerprint(site) == KNOWN_ONE
        await site.do(
            "insert into item (id) select ('01900000-0000-7000-8000-' || lpad(n::text, 12, '0'))::uuid from generate_series(10, 1009) n"
        )
        assert await fingerprint(site) == KNOWN_ALL


KNOWN_ONE = (1, 8174459629416142897, -8665476690203423358)
KNOWN_ALL = (1001, -8300227690253279356, 2077694052501334700)


async def test_sums_add_up_and_do_not_cancel(sites: Sites, pair: Pair) -> None:
    (a,) = await sites(
        "create table item (id uuid primary key, value int); create table bare (value int, id uuid primary key)",
        pair[0],
    )
    await a.do("select syncagent._detach('bare')", "alter table bare drop constraint bare_pkey")
    await a.do(f"insert into item values ('{key(1)}', 1), ('{key(2)}', 2), ('{key(3)}', 3)")

    one, rest = await fingerprint(a, where="t.value = 1"), await fingerprint(a, where="t.value > 1")
    total = await fingerprint(a)
    assert total == (one[0] + rest[0], wrapped(one[1] + rest[1]), wrapped(one[2] + rest[2]))
    # values that change places between rows, and one row twice
    await a.do("update item set value = 4 - value where value <> 2")
    assert await fingerprint(a) != total
    await a.do("insert into bare select value, id from item", "insert into bare select value, id from item")
    twice = await fingerprint(a, "bare")
    single = await fingerprint(a)
    assert twice == (6, wrapped(2 * single[1]), wrapped(2 * single[2]))
    assert twice[1] != 0


async def test_columns_that_are_null_or_elsewhere_change_nothing(sites: Sites, pair: Pair) -> None:
    (a,) = await sites(
        "create table item (id uuid primary key, value int, note text); create table other (note text, more int, id uuid primary key, value int)",
        pair[0],
    )
    row = f"('{key(1)}', 1, 'x,''y''')"
    await a.do(
        f"insert into item (id, value, note) values {row}",
        f"insert into other (id, value, note) values {row}",
    )
    assert await fingerprint(a) == await fingerprint(a, "other")
    await a.do("update other set more = 0")
    assert await fingerprint(a) != await fingerprint(a, "other")


async def test_many_columns(sites: Sites, pair: Pair) -> None:
    columns = ", ".join(f"c{number} smallint" for number in range(1590))
    (a,) = await sites(f"create table item (id uuid primary key, {columns})", pair[0])
    await a.do(f"insert into item (id, c1, c1589) values ('{key(1)}', 1, 1)")
    before = await fingerprint(a)
    await a.do("update item set c1589 = 2")
    assert await fingerprint(a) != before


def wrapped(number: int) -> int:
    """Modulo 2^64, signed."""
    return (number + _LARGEST) % (2 * _LARGEST) - _LARGEST


assert set(NEAR) - {"box"} <= set(TYPES) | {"varchar", "bpchar"}
