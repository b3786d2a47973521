"""Raft's log and the catalog, in the site's own database.

Invariants: what a Ready says is durable, flushed to disk, before the call returns; the catalog, the index
of the entry that led to it and the table `member` change in one transaction; `member` never goes back. A site
that joins gets the log from its beginning, and works by the catalog it was admitted with until its own is as new.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import asyncpg
import msgspec

from syncagent.core import catalog as catalogs
from syncagent.core.catalog import Catalog
from syncagent.core.raft.machine import Ready
from syncagent.core.raft.messages import Entry, HardState, Membership, Snapshot, founded
from syncagent.core.raft.storage import Memory
from syncagent.core.schema import Schema
from syncagent.errors import DatabaseError
from syncagent.storage.borders import border
from syncagent.storage.commands import Connection

_KEEP = 64
"""Entries kept behind a snapshot, for sites that lag by little."""
_encoder = msgspec.msgpack.Encoder()
_entries: msgspec.msgpack.Decoder[Entry] = msgspec.msgpack.Decoder(Entry)
_snapshots: msgspec.msgpack.Decoder[Snapshot] = msgspec.msgpack.Decoder(Snapshot)


class PostgresRegistry:
    """The Registry of the services, on a session of its own."""

    def __init__(self, session: asyncpg.Connection) -> None:
        self._session = session
        self.memory = Memory()
        self._told: Catalog | None = None
        self._shown: Schema | None = None

    def current(self, index: int, catalog: Catalog) -> Catalog:
        """What to work by: the catalog as of this entry, or the one this site was admitted with if that is newer."""
        if self._told is not None and index < self._told.epoch:
            return self._told
        return catalog

    async def load(self) -> tuple[Catalog, int]:
        """Fills `memory`; the catalog, and the index of the entry applied last."""
        async with self._transaction():
            state = await self._session.fetchrow(
                "select term, vote, applied, snapshot, catalog, told from syncagent.raft_state"
            )
            rows = await self._session.fetch("select entry from syncagent.raft_entry order by number")
        if state is None:
            raise DatabaseError(
                "this database has no catalog of its cluster",
                hint="the site was not set up to its end: `syncagent db uninstall`, then init or join again",
            )
        snapshot = _snapshots.decode(state["snapshot"])
        entries = [_entries.decode(row["entry"]) for row in rows]
        self.memory = Memory(snapshot)
        self.memory.reload(HardState(state["term"], state["vote"]), entries)
        self._told = catalogs.decode(state["told"]) if state["told"] else None
        return catalogs.decode(state["catalog"]), state["applied"]

    async def save(self, ready: Ready) -> None:
        """Hard state, snapshot and entries of a Ready: durable when this returns."""
        if not (ready.hard_state or ready.snapshot or ready.entries):
            return
        async with self._transaction():
            if ready.hard_state is not None:
                await self._session.execute(
                    "update syncagent.raft_state set term = $1, vote = $2",
                    ready.hard_state.term,
                    ready.hard_state.vote,
                )
            if ready.snapshot is not None:
                await self._session.execute("delete from syncagent.raft_entry")
                await self._restore(ready.snapshot)
            if ready.entries:
                await self._session.execute(
                    "delete from syncagent.raft_entry where number >= $1", ready.entries[0].index
                )
                await self._session.executemany(
                    "insert into syncagent.raft_entry (number, entry) values ($1, $2)",
                    [(entry.index, _encoder.encode(entry)) for entry in ready.entries],
                )
        if ready.hard_state is not None:
            self.memory.save(ready.hard_state)
        if ready.snapshot is not None:
            self.memory.restore(ready.snapshot)
        self.memory.append(ready.entries)

    async def _restore(self, snapshot: Snapshot) -> None:
        """A snapshot from a leader is the catalog, too."""
        await self._session.execute(
            "update syncagent.raft_state set snapshot = $1, catalog = $2, applied = $3",
            _encoder.encode(snapshot),
            snapshot.data,
            snapshot.index,
        )
        await self._project(snapshot.index, catalogs.decode(snapshot.data), snapshot.membership)

    async def applied(self, index: int, catalog: Catalog, membership: Membership) -> None:
        """The catalog as of this entry."""
        async with self._transaction():
            await self._session.execute(
                "update syncagent.raft_state set applied = $1, catalog = $2", index, catalogs.encode(catalog)
            )
            await self._project(index, catalog, membership)

    async def _project(self, index: int, catalog: Catalog, membership: Membership) -> None:
        current = self.current(index, catalog)
        await self._session.execute(_PROJECT, *_projection(current, membership))
        if current.schema != self._shown:
            await self._session.execute(_SCHEMA, _schema(current))
            self._shown = current.schema
        if current is catalog and self._told is not None:
            await self._session.execute("update syncagent.raft_state set told = null")
            self._told = None

    async def compact(self, snapshot: Snapshot) -> None:
        """The log up to this snapshot, of what was applied here, is not needed any more."""
        self.memory.compact(snapshot, _KEEP)
        async with self._transaction():
            await self._session.execute(
                "update syncagent.raft_state set snapshot = $1", _encoder.encode(snapshot)
            )
            await self._session.execute(
                "delete from syncagent.raft_entry where number < $1 - 1", self.memory.first()
            )

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[None]:
        with border():
            async with self._session.transaction():
                yield


_PROJECT = """
with given as (
    select * from unnest($1::int[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bool[], $7::bool[], $8::bigint[])
        as g (node, name, address, sha256, state, votes, witness, admitted)
), gone as (
    delete from syncagent.member m where not exists (select from given g where g.node = m.node) returning m.node
), lapse as (  -- it has what this site had written and applied when it made the last cut that it is known to have
    insert into syncagent.lapsed (node, horizon)
    select n.node, pg_snapshot_xmin(c.taken) from unnest($9::int[]) as n (node)
    left join gone o on o.node = n.node
    left join syncagent.frontier f on f.node = o.node
    left join syncagent.cut c on c.number = (f.context ->> (select s.node::text from syncagent.local_site s))::bigint
    on conflict do nothing
), chosen as (
    update syncagent.local_site s set fingerprint = $10 where s.fingerprint <> $10
), unheard as (
    delete from syncagent.peer_state p
    where not exists (select from given g where g.node = p.node) or p.node = (select s.node from syncagent.local_site s)
), heard as (
    insert into syncagent.peer_state (node)
    select g.node from given g where g.node <> (select s.node from syncagent.local_site s) on conflict do nothing
)
insert into syncagent.member (node, name, address, sha256, state, votes, witness, admitted)
select g.node, g.name, g.address, string_to_array(g.sha256, ' '), g.state, g.votes, g.witness, g.admitted from given g
on conflict (node) do update set name = excluded.name, address = excluded.address, sha256 = excluded.sha256,
    state = excluded.state, votes = excluded.votes, witness = excluded.witness, admitted = excluded.admitted
"""


_SCHEMA = """
with given as (
    select * from jsonb_to_recordset($1::text::jsonb) as g (place integer, id uuid, name text, state text, phase text, site text,
        asked_at double precision, steps integer, let_go integer, upto bigint, failures jsonb, sql text)
), gone as (
    delete from syncagent.schema_record r where not exists (select from given g where g.place = r.place)
)
insert into syncagent.schema_record
select g.place, g.id, g.name, g.state, g.phase, g.site, to_timestamp(g.asked_at), g.steps, g.let_go, g.upto, g.failures, g.sql from given g
on conflict (place) do update set id = excluded.id, name = excluded.name, state = excluded.state, phase = excluded.phase,
    site = excluded.site, asked_at = excluded.asked_at, steps = excluded.steps, let_go = excluded.let_go, upto = excluded.upto,
    failures = excluded.failures, sql = excluded.sql
"""


def _schema(catalog: Catalog) -> str:
    """Its changes, for people."""
    rows = [
        {
            "place": place,
            "id": change.id,
            "name": change.name,
            "state": change.state,
            "phase": change.phase,
            "site": change.site,
            "asked_at": change.at / 1000,
            "steps": len(change.track) + len(change.ahead),
            "let_go": len(change.track),
            "upto": change.upto,
            "failures": {catalog.name(node): why for node, why in change.failures.items()},
            "sql": change.text,
        }
        for place, change in enumerate(catalog.schema.changes)
    ]
    return msgspec.json.encode(rows).decode()


def _projection(catalog: Catalog, membership: Membership) -> Sequence[object]:
    sites = list(catalog.sites.values())
    return (
        [site.node for site in sites],
        [site.name for site in sites],
        [site.address for site in sites],
        [" ".join(site.sha256) for site in sites],
        [site.state for site in sites],
        [site.node in membership.voters for site in sites],
        [site.witness for site in sites],
        [site.admitted for site in sites],
        [gone.node for gone in catalog.gone.values() if gone.forgotten],
        catalog.fingerprint,
    )


# ---- for the verbs that make a site


def found(connection: Connection, catalog: Catalog, membership: Membership) -> None:
    """The beginning of a cluster: every one of its first sites starts from the same."""
    snapshot = founded(membership, catalogs.encode(catalog))
    _begin(connection, snapshot, snapshot.index, catalog, told=False)


def follow(connection: Connection, catalog: Catalog) -> None:
    """The beginning of a site that joins: it knows its peers, and its log is empty until the leader fills it."""
    _begin(connection, Snapshot(), 0, catalog, told=True)


def _begin(connection: Connection, snapshot: Snapshot, applied: int, catalog: Catalog, *, told: bool) -> None:
    with connection.transaction():
        connection.execute("delete from syncagent.raft_entry")
        connection.execute("delete from syncagent.raft_state")
        connection.execute(
            "insert into syncagent.raft_state (term, vote, applied, snapshot, catalog, told) values (0, 0, %s, %s, %s, %s)",
            (
                applied,
                _encoder.encode(snapshot),
                catalogs.encode(catalog),
                catalogs.encode(catalog) if told else None,
            ),
        )
        connection.execute("update syncagent.local_site set fingerprint = %s", (catalog.fingerprint,))
        connection.execute("delete from syncagent.member")
        for site in catalog.sites.values():
            connection.execute(
                "insert into syncagent.member (node, name, address, sha256, state, votes, witness, admitted)"
                " values (%s, %s, %s, %s, %s, %s, %s, %s)",
                (
                    site.node,
                    site.name,
                    site.address,
                    list(site.sha256),
                    site.state,
                    site.node in snapshot.membership.voters,
                    site.witness,
                    site.admitted,
                ),
            )
        connection.execute(
            "insert into syncagent.peer_state (node) select m.node from syncagent.member m"
            " where m.node <> (select s.node from syncagent.local_site s) on conflict do nothing"
        )


def known(connection: Connection) -> Catalog:
    """The catalog this site works by."""
    row = connection.execute("select coalesce(told, catalog) as catalog from syncagent.raft_state").fetchone()
    if row is None:
        raise DatabaseError("this database has no catalog of its cluster", hint="syncagent init, or join")
    return catalogs.decode(row["catalog"])
