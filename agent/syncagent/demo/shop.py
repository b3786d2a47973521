"""The shop: tables as any application has them, and the goods and customers it opens with.

Invariant: it knows nothing of syncagent. Its role may read and write these tables and nothing else; keys are
UUIDv7 made by the application, but for two tables with integers and one with two columns.
"""

import random
import secrets
import time
from dataclasses import dataclass
from itertools import product
from uuid import UUID

import psycopg
from psycopg import sql

DATABASE = "shop"
ROLE = "shop_app"
NEW_DATABASE = sql.SQL("create database shop")

SCHEMA = """
create schema shop;

create table shop.office (
    number     integer primary key,
    city       text not null,
    sales      bigint not null default 0,
    takings    numeric(14, 2) not null default 0,
    last_sale  timestamptz
);

create table shop.customer (
    id         uuid primary key,
    name       text not null,
    address    text not null,
    points     integer not null default 0,
    changed_by text not null
);

create table shop.product (
    id         uuid primary key,
    sku        text not null unique,
    name       text not null,
    price      numeric(10, 2) not null check (price > 0),
    stock      integer not null,
    changed_by text not null
);

create table shop.purchase (
    id          uuid primary key,
    customer_id uuid not null references shop.customer,
    office      integer not null references shop.office,
    status      text not null check (status in ('draft', 'paid', 'sent', 'returned')),
    placed_at   timestamptz not null default now(),
    note        text
);

create table shop.purchase_line (
    purchase_id uuid not null references shop.purchase on delete cascade,
    line        smallint not null,
    product_id  uuid not null references shop.product,
    quantity    integer not null check (quantity > 0),
    price       numeric(10, 2) not null,
    primary key (purchase_id, line)
);

create table shop.voucher (
    number      bigint primary key,
    amount      numeric(10, 2) not null,
    redeemed_by text,
    redeemed_at timestamptz
);
"""

GRANTS = """
revoke all on schema public from public;
grant usage on schema shop to shop_app;
grant select, insert, update, delete on all tables in schema shop to shop_app;
"""


@dataclass(frozen=True)
class Table:
    """A table of the shop, and how one of its rows is named."""

    name: str
    key: tuple[str, ...] = ("id",)

    @property
    def key_text(self) -> sql.Composed:
        """The key as text, as `syncagent conflicts` has it: one column plain, several as a row."""
        columns = [sql.Identifier(column) for column in self.key]
        form = "{}::text" if len(columns) == 1 else "row({})::text"
        return sql.SQL(form).format(sql.SQL(", ").join(columns))

    @property
    def quoted(self) -> sql.Identifier:
        return sql.Identifier("shop", self.name)


TABLES = (
    Table("office", ("number",)),
    Table("customer"),
    Table("product"),
    Table("purchase"),
    Table("purchase_line", ("purchase_id", "line")),
    Table("voucher", ("number",)),
)

STAR = "ESPRESSO-1"
"""The product whose price two offices will change at the same time; the load leaves it alone."""

_CUSTOMERS, _PRODUCTS, _VOUCHERS = 800, 1000, 300
_FIRST = ("Ada", "Bruno", "Chiyo", "Dalia", "Emre", "Frida", "Goro", "Hanna", "Inti", "Jonas", "Kaori", "Luz")
_LAST = ("Alva", "Brandt", "Castro", "Doi", "Egger", "Flores", "Goto", "Huber", "Ito", "Jung", "Kern", "Lima")
_STREETS = ("Harbour St", "Market Sq", "Station Rd", "Garden Way", "Mill Lane", "Hill St")
_KINDS = ("Grinder", "Kettle", "Filter", "Cup", "Scale", "Tamper", "Beans", "Pitcher", "Dripper", "Brush")
_SORTS = ("Classic", "Travel", "Pro", "Mini", "Copper", "Glass")
_SIZES = ("S", "M", "L", "XL")
_COLOURS = ("black", "white", "red", "blue", "steel")


def key() -> UUID:
    """A UUIDv7 with the fraction of the millisecond in its 12 bits (RFC 9562, section 6.2, method 3)."""
    milliseconds, rest = divmod(time.time_ns(), 1_000_000)
    high = milliseconds << 16 | 0x7000 | rest * 4096 // 1_000_000
    return UUID(int=high << 64 | 0b10 << 62 | secrets.randbits(62))


def address(rng: random.Random) -> str:
    return f"{rng.randint(1, 99)} {rng.choice(_STREETS)}"


def name(rng: random.Random) -> str:
    return f"{rng.choice(_FIRST)} {rng.choice(_LAST)}"


def create(dsn: str) -> None:
    """Empty tables, by the owner of the database."""
    with psycopg.connect(dsn) as connection:
        connection.execute(SCHEMA)
        connection.execute(GRANTS)


def fill(dsn: str, cities: list[str], rng: random.Random) -> None:
    """What the shop had before it opened other offices, by the application's role."""
    offices = [(number, city.capitalize()) for number, city in enumerate(cities, 1)]
    customers = [(key(), name(rng), address(rng)) for _ in range(_CUSTOMERS)]
    goods = [" ".join(words) for words in product(_SORTS, _KINDS, _SIZES, _COLOURS)][: _PRODUCTS - 1]
    products = [(key(), STAR, "Espresso machine", 399)] + [
        (key(), f"SKU-{number:04}", good, rng.randint(5, 120)) for number, good in enumerate(goods, 1)
    ]
    vouchers = [(number, rng.choice((10, 20, 50))) for number in range(1, _VOUCHERS + 1)]
    with psycopg.connect(dsn) as connection, connection.cursor() as cursor:
        cursor.executemany("insert into shop.office (number, city) values (%s, %s)", offices)
        cursor.executemany(
            "insert into shop.customer (id, name, address, changed_by) values (%s, %s, %s, 'head office')",
            customers,
        )
        cursor.executemany(
            "insert into shop.product (id, sku, name, price, stock, changed_by)"
            " values (%s, %s, %s, %s, 500, 'head office')",
            products,
        )
        cursor.executemany("insert into shop.voucher (number, amount) values (%s, %s)", vouchers)
