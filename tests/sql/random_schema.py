"""Random tables, and random writes to them: what no test of one thing at a time would put together.

Everything comes from the seed, the choices that statements make inside the server too.
"""

import random
from collections.abc import Iterator, Sequence
from uuid import UUID

VALUES = {
    "int": ["0", "-1", "2147483647"],
    "numeric": ["'NaN'", "1.0", "1.00", "-0.00001"],
    "double precision": ["'-0'", "'Infinity'", "0.1"],
    "text": ["''", "'ü \U0001f600'", "repeat('long', 3000)", "'null'"],
    "varchar(9)": ["'a b '"],
    "bytea": ["'\\x00ff'", "''"],
    "boolean": ["true", "false"],
    "date": ["'infinity'", "'2024-02-29'"],
    "timestamptz": ["'-infinity'", "'2024-03-31 02:30:00+01'"],
    "interval": ["'1 mon -1 day'", "'24:00:00'"],
    "json": ['\'{"a":1, "a":2,  "b" : [ ]}\'', "'0'"],
    "jsonb": ['\'{"a": 1.00, "b": null}\''],
    "uuid": ["'ffffffff-ffff-ffff-ffff-ffffffffffff'"],
    "inet": ["'::1/64'"],
    "tsvector": ["'a:1A b:2'"],
    "int[]": ["'{}'", "'{1,null}'", "'[0:1][2:3]={{1,2},{3,4}}'"],
    "tstzrange": ["'empty'", "'[2024-01-01 00:00+00,)'"],
    "int4multirange": ["'{[1,3),[5,7)}'"],
    "rnd.mood": ["'sad'", "'so so'"],
    "rnd.mood[]": ["'{happy,null}'"],
    "rnd.small": ["1", "null"],
    "rnd.pair": ["row(1, 'happy')", "row(null, null)"],
}
TYPES = """create schema rnd; create type rnd.mood as enum ('sad', 'so so', 'happy');
    create domain rnd.small as int check (value < 1000); create type rnd.pair as (n int, m rnd.mood)"""
NAMES = ("select", "Größe", 'quo"te', "a b", "plain", "user", "{key}", "n" * 63, "x")
KEYS = {
    "uuid": ["uuid"],
    "int": ["int"],
    "text": ["text"],
    "composite": ["int", "text"],
    "dated": ["date", "int"],
    "numbered": ["int"],
    "numbered beside": ["text", "bigint"],
}
STRIDE = 8


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


class Table:
    """One table: its definition, and statements that write to it. `above` are tables it may refer to."""

    def __init__(self, chance: random.Random, number: int, above: "Sequence[Table]" = ()) -> None:
        self._chance, self._number = chance, number
        self.name = quoted(f"{chance.choice(NAMES)[:50]} {number}")
        kind = chance.choice(list(KEYS))
        self.key_types = KEYS[kind]
        self.key = [f"k{n}" for n in range(len(self.key_types))]
        self.numbered: str | None = self.key[-1] if kind.startswith("numbered") else None
        """The column that a sequence fills."""
        names = chance.sample(NAMES, chance.randint(1, 6))
        self.columns = {quoted(name): chance.choice(list(VALUES)) for name in names}
        self.leaves: list[str] = []
        self.parent = chance.choice(above) if above and chance.random() < 0.7 else None

    @property
    def reference(self) -> list[str]:
        """The columns that refer to the parent."""
        return [] if self.parent is None else [f"of{n}" for n in range(len(self.parent.key))]

    def definition(self) -> list[str]:
        chance = self._chance
        columns = [f"{name} {kind}" for name, kind in zip(self.key, self.key_types, strict=True)]
        columns += [f"{name} {kind}" for name, kind in self.columns.items()]
        columns.append("up " + self.key_types[0] if len(self.key) == 1 else "up int")
        if chance.random() < 0.3:
            source = "k1 * 2" if self.key_types[0] == "date" else "length(k0::text)"
            columns.append(f"made int generated always as ({source}) stored")
        primary = f"primary key ({', '.join(self.key)})"
        if len(self.key) == 1 and chance.random() < 0.5:
            columns.append(
                f"foreign key (up) references {self.name} on delete {chance.choice(['cascade', 'set null'])}"
            )
        if self.parent is not None:
            columns += [
                f"{name} {kind}" for name, kind in zip(self.reference, self.parent.key_types, strict=True)
            ]
            columns.append(f"foreign key ({', '.join(self.reference)}) {self._refers(self.parent)}")
        parted = chance.random() < 0.5
        if not parted and self.numbered is None and chance.random() < 0.3:
            columns.append("beside bigserial unique")
        body = f"create table {self.name} ({', '.join([*columns, primary])})"
        after = list(self._numbers())
        if not parted:
            return [body, *after]
        return [f"{body} partition by hash ({self.key[0]})", *self._partitions(), *after]

    def _refers(self, other: "Table") -> str:
        chance = self._chance
        return " ".join(
            (
                f"references {other.name} on delete",
                chance.choice(["cascade", "set null", "no action"]),
                chance.choice(["", "on update cascade"]),
                chance.choice(["", "deferrable initially deferred"]),
            )
        )

    def _numbers(self) -> Iterator[str]:
        """A sequence behind a column, in the way that every version has for partitioned tables too."""
        if self.numbered is not None:
            sequence = quoted(f"numbers 'of' {self._number}")
            yield f"create sequence {sequence}"
            literal = sequence.replace("'", "''")
            yield f"alter table {self.name} alter {self.numbered} set default nextval('{literal}')"

    def ring(self, other: "Table") -> str:
        """A reference back, so that the two refer to each other."""
        names = [f"ring{n}" for n in range(len(other.key))]
        columns = ", ".join(f"add {name} {kind}" for name, kind in zip(names, other.key_types, strict=True))
        return (
            f"alter table {self.name} {columns}, add foreign key ({', '.join(names)}) {self._refers(other)}"
        )

    def _partitions(self) -> Iterator[str]:
        for n in range(2):
            leaf = quoted(f"{self.name[1:-1]}_{n}".replace('""', "'")[:60])
            bounds = f"for values with (modulus 2, remainder {n})"
            if n and len(self.key) == 2:
                yield f"create table {leaf} partition of {self.name} {bounds} partition by range (k1)"
                below = quoted(leaf[1:-1][:55] + "_all")
                yield f"create table {below} partition of {leaf} default"
                self.leaves.append(below)
            else:
                yield f"create table {leaf} partition of {self.name} {bounds}"
            self.leaves.append(leaf)

    def gap(self, chance: random.Random) -> Iterator[str]:
        """A column that was there for a while."""
        for _ in range(chance.randint(0, 2)):
            yield f"alter table {self.name} add gap int"
            yield f"alter table {self.name} drop gap"

    # ---- writes

    def _key_value(self, kind: str) -> str:
        number = self._chance.randint(0, 30)
        match kind:
            case "uuid":
                beginning = 0x01900000_0000_7000_8000 if number % 2 else 0x0_4000_8000
                return f"'{UUID(int=(beginning << 48) + number)}'"
            case "text":
                return f"'{number} ü,\"'"
            case "date":
                return f"'2024-01-{number % 28 + 1:02}'"
            case _:
                return str(number)

    def _is(self) -> str:
        return " and ".join(
            f"{name} = {self._key_value(kind)}" for name, kind in zip(self.key, self.key_types, strict=True)
        )

    def _row(self) -> str:
        values = [self._key_value(kind) for kind in self.key_types]
        values += [self._chance.choice([*VALUES[kind], "null"]) for kind in self.columns.values()]
        return f"({', '.join(values)})"

    def _set(self) -> str:
        name, kind = self._chance.choice(list(self.columns.items()))
        return f"{name} = {self._chance.choice([*VALUES[kind], 'null'])}"

    def draw(self) -> str:
        """A row with a number that the site draws; returns the number."""
        names = [name for name in self.key if name != self.numbered]
        values = [self._key_value(kind) for kind in self.key_types[: len(names)]]
        into = f"({', '.join(names)}) values ({', '.join(values)})" if names else "default values"
        return f"insert into {self.name} {into} returning {self.numbered}"

    def _refer(self) -> str:
        """A row gets a parent that is there, or none."""
        assert self.parent is not None
        keys = ", ".join(self.parent.key)
        chosen = f"order by md5(row({keys})::text || '{self._chance.randint(0, 99)}') limit 1"
        return f"({', '.join(self.reference)}) = (select {keys} from {self.parent.name} {chosen})"

    def write(self, major: int) -> str:
        chance = self._chance
        target = chance.choice([self.name, self.name, *self.leaves])
        into = f"insert into {self.name} ({', '.join([*self.key, *self.columns])}) values "
        writes = [
            into + ", ".join({self._row() for _ in range(chance.randint(1, 4))}) + " on conflict do nothing",
            f"{into}{self._row()} on conflict ({', '.join(self.key)}) do update set {self._set()}",
            f"update {target} set {self._set()} where {self._is()}",
            f"update {target} set {self._set()}",
            f"delete from {target} where {self._is()}",
            f"update {self.name} set {self.key[0]} = {self._key_value(self.key_types[0])} where {self._is()}",
            f"update {self.name} set up = {self.key[0] if len(self.key) == 1 else 'null'} where {self._is()}",
            f"with gone as (delete from {self.name} where {self._is()} returning *) {into}{self._row()} on conflict do nothing",
            f"savepoint s; delete from {target}; rollback to s",
        ]
        if self.parent is not None:
            nobody = ", ".join(f"{name} = null" for name in self.reference)
            parents = f"update {target} set {self._refer()}"
            writes += [
                parents,
                f"{parents} where {self._is()}",
                f"update {target} set {nobody} where {self._is()}",
            ]
        if major >= 15:
            same = " and ".join(f"t.{name} = v.{name}" for name in self.key)
            keys = ", ".join(
                f"{self._key_value(kind)}::{kind} as {name}"
                for name, kind in zip(self.key, self.key_types, strict=True)
            )
            names = ", ".join(self.key)
            writes.append(
                f"merge into {self.name} t using (select {keys}) v on {same} when matched and length(t::text) % 2 = 0 then delete"
                f" when matched then update set {self._set()} when not matched then insert ({names}) values ({', '.join('v.' + n for n in self.key)})"
            )
        return chance.choice(writes)
