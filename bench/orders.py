"""The table that every benchmark writes: seven columns, 170 bytes a row, UUIDv7 keys.

Invariant: keys are made the same way whatever replicates: by PostgreSQL's own `uuidv7()` where there is one, else by
a function of the same layout that every database gets.
"""

SEEDS = 300_000

_SCHEMA = """
create table orders (
    id uuid primary key, customer uuid not null, n int, total numeric(12,2), status text, note text,
    updated_at timestamptz default now());
create function seed_key(i bigint) returns uuid language sql immutable as $$
    select (lpad(to_hex(1735689600000 + i * 100), 12, '0') || '70008000' || lpad(to_hex(i), 12, '0'))::uuid $$;
"""
_KEY_18 = "create function new_key() returns uuid language sql volatile as 'select uuidv7()'"
_KEY = """
create function new_key() returns uuid language plpgsql volatile as $$
declare
    v_clock bigint := date_part('epoch', clock_timestamp()) * 4096000;
begin
    return encode(int8send((v_clock >> 12 << 16) | 28672 | (v_clock & 4095)) || substr(uuid_send(gen_random_uuid()), 9), 'hex')::uuid;
end
$$"""
_SEED = """
insert into orders
select seed_key(i), md5('c' || i)::uuid, i, 10.5, 'seed', rpad('note ' || i, 80, 'x'), '2026-01-01'
from generate_series(1, {seeds}) i"""

INSERT = """\\set i random(1, {seeds})
insert into orders (id, customer, n, total, status, note)
values (new_key(), gen_random_uuid(), :i, 12.5, 'new', rpad('note ', 80, 'x'));
"""
UPDATE = """\\set i random(1, {seeds})
update orders set n = n + 1, total = total + 1.5, updated_at = now() where id = seed_key(:i);
"""
UPDATE_HOT = """\\set i random(1, 1000)
update orders set n = n + 1, total = total + 1.5, updated_at = now() where id = seed_key(:i);
"""
INSERT_ALL = """
insert into orders (id, customer, n, total, status, note)
select new_key(), gen_random_uuid(), i, 12.5, 'bulk', rpad('note ' || i, 80, 'y') from generate_series(1, {rows}) i"""
UPDATE_ALL = "update orders set n = n + 1, total = total + 1.5, updated_at = now() where status = 'seed'"

MARK = (
    "insert into orders (id, customer, n, status, note)"
    " values (new_key(), gen_random_uuid(), 0, 'mark', '') returning id"
)
SEEN = "select from orders where id = %s"
SUM = "select count(*), sum(hashtextextended(orders::text, 0)::numeric) from orders"


def schema(major: int, seeds: int) -> str:
    """The table with its first rows, for a server of this version."""
    key = _KEY_18 if major >= 18 else _KEY
    return f"{_SCHEMA};{key};{_SEED.format(seeds=seeds)}"


UPDATE_SOME = "update orders set n = n + {by}, total = total + {by} where status = 'seed' and n > {above} and n <= {above} + {rows}"
"""So many seeded rows, which have their number as `n`; once."""
