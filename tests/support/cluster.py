"""A laboratory: sites with real servers, real agents as processes, and links that can be cut.

Sites are made by the command line, once per server, and copied for each test: a copied database and home
are what `syncagent init` and `attach` left. Every link runs through a proxy of its own. Whatever a test
did, at its end every agent stops when told, and none has met an error that nobody expected.
"""

import asyncio
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID, uuid4

import psutil
import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from syncagent.embedded import Server, free_port
from syncagent.embedded.server import Setting
from syncagent.storage.commands import site_of
from syncagent.storage.requests import ask
from tests.support import nursery
from tests.support.databases import Database, copying
from tests.support.founding import found_together
from tests.support.postgres import binaries
from tests.support.proxy import Direction, Proxy
from tests.support.waiting import until

T = TypeVar("T")
Agent = subprocess.Popen[bytes] | nursery.Process

NAMES = ("berlin", "tokyo", "lima", "oslo", "cairo", "quito", "hanoi")
_OWN_SERVERS = 3
SMALL: dict[str, Setting] = {
    "shared_buffers": "32MB",
    "max_connections": 100,
    "checkpoint_timeout": "1h",
    "log_checkpoints": False,
    "log_min_messages": "warning",
    "jit": False,
    "autovacuum_naptime": "10min",
}
TABLES = """
create table customer (id uuid primary key, name text not null, credit numeric(12, 2) not null, note text);
create table item (id bigint primary key, name text not null, stock integer not null);
create table line (customer uuid, position integer, quantity integer not null, text text, primary key (customer, position));
"""
"""A key with a time, an integer key, and one of two columns."""
_numbers = count(1)
_STOP_SECONDS = 15.0
_FAULTS = ("Traceback", "never retrieved", "never awaited", "internal error")


class Network:
    """The proxies, on an event loop of their own, so that tests can be plain functions."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="network")
        self._thread.start()
        self._proxies: list[Proxy] = []

    def proxy(self, port: int) -> Proxy:
        async def start() -> Proxy:
            return await Proxy(port).__aenter__()

        self._proxies.append(proxy := self._do(start()))
        return proxy

    def cut(self, *proxies: Proxy) -> None:
        """Connections are reset, and new ones refused."""

        async def cut() -> None:
            for proxy in proxies:
                proxy.refuse()
            for proxy in proxies:
                await proxy.cut()

        self._do(cut())

    def heal(self, *proxies: Proxy) -> None:
        async def heal() -> None:
            for proxy in proxies:
                proxy.accept()
                proxy.resume()

        self._do(heal())

    def slow(self, seconds: float, *proxies: Proxy, rate: float | None = None) -> None:
        """Every byte waits so long, each way; `rate` is how many pass in a second."""

        async def slow() -> None:
            for proxy in proxies:
                proxy.delay, proxy.rate = seconds, rate

        self._do(slow())

    def deafen(self, *ways: tuple[Proxy, Direction]) -> None:
        """No more bytes arrive this way, and nobody is told; the other way is open."""

        async def deafen() -> None:
            for proxy, direction in ways:
                proxy.stop(direction)

        self._do(deafen())

    def damage(self, proxy: Proxy, direction: Direction) -> None:
        """One bit arrives wrong."""

        async def damage() -> None:
            proxy.damage(direction)

        self._do(damage())

    def freeze(self, *proxies: Proxy) -> None:
        """Bytes are taken no more, and nobody is told."""

        async def freeze() -> None:
            for proxy in proxies:
                proxy.stop()

        self._do(freeze())

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def close(self) -> None:
        async def close() -> None:
            for proxy in self._proxies:
                proxy.refuse()
                await proxy.__aexit__()
            while late := asyncio.all_tasks() - {asyncio.current_task()}:
                await asyncio.wait(late)  # who came while it closed is told to go
            await asyncio.sleep(0)

        self._do(close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@dataclass(frozen=True)
class Mould:
    """A site as the command line made it, to be copied."""

    server: Server
    database: str
    home: Path
    name: str
    node: int
    sha256: str


class Site:
    """One site: a database, a home, and an agent when it runs."""

    def __init__(self, mould: Mould, folder: Path, network: Network) -> None:
        self.name, self.node, self.sha256, self.server = mould.name, mould.node, mould.sha256, mould.server
        self.home, self.log = folder / mould.name, folder / f"{mould.name}.log"
        self.network = network
        self.host, self.port = "127.0.0.1", free_port()
        self.database = Database(self.server, f"c{next(_numbers)}")
        self.server.start()
        self.server.execute(copying(self.server, self.database.name, mould.database))
        shutil.copytree(mould.home, self.home)
        self._agent: Agent | None = None
        self.fresh = False
        """Whether the agent is to be an interpreter of its own, as a person's would be."""
        self.ways: dict[str, Proxy] = {}
        """How each peer dials this site."""
        self.door: str | None = None
        """The application's dsn, where that is another than the agent's."""
        self._within: tuple[str, ...] = ()
        """What the agent is started by, where it has a network of its own."""
        self._set("dsn", self.dsn)
        self._set("listen", f"{self.host}:{self.port}")

    def __repr__(self) -> str:
        return f"{self.name} ({self.server.binaries.version})"

    @property
    def dsn(self) -> str:
        return self.database.dsn

    def _set(self, key: str, value: str) -> None:
        path = self.home / "config.toml"
        text, found = re.subn(rf"(?m)^{key} = .*$", f"{key} = {json.dumps(value)}", path.read_text())
        assert found == 1
        path.write_text(text)

    # ---- who knows whom

    def only_dials(self) -> None:
        """`listen = "none"`, before the site gets to know its peers."""
        self._set("listen", "none")
        self.port = 0

    def lives(self, host: str, port: int, within: tuple[str, ...]) -> None:
        """The agent listens there, in the network that this command puts it into; the server is reached by its socket."""
        self.host, self.port, self._within = host, port, within
        self._set("dsn", make_conninfo(self.dsn, host=str(self.server.socket_dir)))
        self._set("listen", f"{host}:{port}")

    @property
    def address(self) -> str | None:
        return f"{self.host}:{self.port}" if self.port else None

    def meet(self, *peers: "Site") -> None:
        """Each peer is dialled through a proxy of its own, if it listens."""
        reached = [peer for peer in peers if peer.port]
        for peer in reached:
            peer.ways[self.name] = self.network.proxy(peer.port)
        with (self.home / "config.toml").open("a") as file:
            file.write("\n[addresses]\n")
            file.writelines(f"{peer.name} = {json.dumps(peer.ways[self.name].address)}\n" for peer in reached)

    # ---- the agent

    def start(self) -> None:
        assert self._agent is None, "it runs already"
        self._agent = self.spawn(self.log)

    def spawn(self, log: Path) -> Agent:
        words = ("run", "--home", str(self.home), "--json")
        with log.open("ab") as file:
            if not (self.fresh or self._within):
                return nursery.start(*words, out=file)
            return subprocess.Popen(
                [*self._within, sys.executable, "-m", "syncagent", *words],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def stop(self) -> None:
        """SIGTERM; it must end by itself, and well."""
        if (agent := self._agent) is None:
            return
        self._agent = None
        agent.send_signal(signal.SIGTERM)
        try:
            code = agent.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            agent.kill()
            agent.wait()
            raise AssertionError(f"the agent of {self.name} did not stop when told") from None
        assert code == 0, f"the agent of {self.name} ended with exit code {code}"

    def kill(self) -> None:
        """SIGKILL to the agent."""
        assert self._agent is not None
        self._agent.kill()
        self._agent.wait()
        self._agent = None

    @property
    def agent(self) -> psutil.Process:
        assert self._agent is not None
        assert self._agent.poll() is None, f"the agent of {self.name} ended by itself:\n{self.log_tail()}"
        return psutil.Process(self._agent.pid)

    @property
    def runs(self) -> bool:
        return self._agent is not None

    def said(self) -> list[dict[str, Any]]:
        """What the agent has logged."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [json.loads(line) for line in lines if line.startswith("{")]

    def log_tail(self, lines: int = 25) -> str:
        return "\n".join(self.log.read_text().splitlines()[-lines:]) if self.log.exists() else ""

    # ---- people

    def syncagent(self, *arguments: str, seconds: float = 60) -> "subprocess.CompletedProcess[str]":
        """One verb on this site's home."""
        return nursery.run(*arguments, "--home", self.home, seconds=seconds)

    def attach(self, *tables: str) -> None:
        done = self.syncagent("attach", *tables, "--derive-key")
        assert done.returncode == 0, done.stderr

    def execute(self, statement: str, parameters: tuple[Any, ...] | None = None) -> list[tuple[Any, ...]]:
        return self.database.execute(statement, parameters)

    def connect(self, isolation: str | None = None) -> "psycopg.Connection[tuple[Any, ...]]":
        """An application's connection; a pooler lets nobody choose the isolation as he comes in."""
        options = (
            f"-c default_transaction_isolation={isolation.replace(' ', chr(92) + ' ')}"
            if isolation and not self.door
            else ""
        )
        return psycopg.connect(
            self.door or self.dsn,
            application_name="application",
            options=options,
            prepare_threshold=None
            if self.door
            else 5,  # a pooler that shares sessions loses prepared statements
        )

    def scalar(self, query: str, parameters: tuple[Any, ...] | None = None) -> Any:
        return self.execute(query, parameters)[0][0]

    def peer(self, other: "Site") -> dict[str, Any]:
        """What this site's agent shows of a peer, once it has run."""

        def look() -> dict[str, Any] | None:
            with self.database.connect() as connection:
                cursor = connection.cursor(row_factory=psycopg.rows.dict_row)
                cursor.execute("select * from syncagent.peer_state where node = %s", (other.node,))
                return cursor.fetchone()

        row = until(look, f"{self} knows {other}")
        assert row is not None
        return row

    def state(self) -> str:
        """Where the site stands, for whoever reads a failure."""
        if not self.server.running:
            return "its server is down"
        return "\n".join(
            str(row)
            for query in (
                "select 'last cut', number, rows, made_at from syncagent.cut order by number desc limit 3",
                "select 'frontier', node, cut, context, applied_at from syncagent.frontier order by node",
                "select 'peer', node, linked, via, paused, frontier, parked, rtt, waiting, trouble from syncagent.peer_state order by node",
                "select 'agent', waiting, trouble from syncagent.agent_state",
                "select 'session', application_name, state, wait_event, now() - state_change, left(query, 100) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()",
            )
            for row in self.execute(query)
        )

    def decide(self) -> None:
        """Have the catalog changed, by whoever leads. RefusedError if nobody could."""
        given = {"id": str(uuid4()), "verifier": "00" * 32, "ttl": 60}
        with site_of(self.dsn) as connection:
            ask(connection, "invite", given, seconds=30)

    def unsettled(self) -> dict[str, int]:
        """Metadata that must be gone some time after the last write."""
        with self.database.connect() as connection:
            names = connection.execute(
                "select relname::text from pg_class where relnamespace = 'syncagent'::regnamespace and relkind = 'r'"
                " and (relname ~ '^(version|log)_[0-9]+$' or relname = any ('{cut_keys,settling,parked_row}'))"
            ).fetchall()
            counted = {
                name: connection.execute(
                    sql.SQL("select count(*) from syncagent.{}").format(sql.Identifier(name))
                ).fetchall()[0][0]
                for (name,) in names
            }
        return {name: rows for name, rows in counted.items() if rows}

    def deadlocks(self) -> int:
        return int(self.scalar("select deadlocks from pg_stat_database where datname = current_database()"))

    def close(self) -> None:
        self.database.leave()
        self.server.start()  # the test may have stopped it
        self.server.execute(
            sql.SQL("drop database {} with (force)").format(sql.Identifier(self.database.name))
        )


class Cluster:
    """Sites that know each other, each in a full mesh unless the test says otherwise."""

    def __init__(self, sites: Sequence[Site], network: Network) -> None:
        self.sites, self.network = list(sites), network

    def __iter__(self) -> Iterator[Site]:
        return iter(self.sites)

    def introduce(self) -> None:
        """They are the first sites of one cluster."""
        for site in self.sites:
            site.meet(*(peer for peer in self.sites if peer is not site))
        found_together([(site.dsn, site.address, site.sha256) for site in self.sites])

    def start(self) -> None:
        for site in self.sites:
            site.start()

    def links(self, site: Site, peer: Site | None = None) -> list[Proxy]:
        """The proxies between a site and a peer, or all others, whoever dials."""
        others = [other for other in self.sites if other is not site and peer in (None, other)]
        ways = [(site.ways.get(other.name), other.ways.get(site.name)) for other in others]
        return [proxy for pair in ways for proxy in pair if proxy is not None]

    def cut_off(self, site: Site, peer: Site | None = None) -> None:
        self.network.cut(*self.links(site, peer))

    def heal(self, site: Site, peer: Site | None = None) -> None:
        self.network.heal(*self.links(site, peer))

    # ---- equality

    def differences(self, tables: Sequence[str] = ("customer", "item", "line")) -> dict[str, list[Any]]:
        """Tables that are not the same everywhere, computed by plain SQL: rows and digest at each site."""
        found = {table: [digest(site, table) for site in self.sites] for table in tables}
        return {table: seen for table, seen in found.items() if len(set(seen)) > 1}

    def converges(self, seconds: float = 30.0, tables: Sequence[str] = ("customer", "item", "line")) -> None:
        """Wait until every site has everything committed by now, and all tables are equal."""
        self.exchange(seconds)
        until_none(lambda: self.differences(tables), "tables that differ", seconds)

    def exchange(self, seconds: float = 30.0) -> None:
        """Wait until a row written at each site from now on is at every site."""
        marks = [mark(site) for site in self.sites]
        until(lambda: all(has(site, *marks) for site in self.sites), f"marks of all at {self.sites}", seconds)

    def settles(self, seconds: float = 30.0) -> None:
        """Wait until no metadata is left anywhere."""
        until_none(
            lambda: {site.name: left for site in self.sites if (left := site.unsettled())},
            "metadata left",
            seconds,
        )

    def check_logs(self) -> None:
        """Fail if an agent wrote what no agent may ever write; shows the lines around it."""
        for site in self.sites:
            lines = site.log.read_text().splitlines() if site.log.exists() else []
            for number, line in enumerate(lines):
                if any(fault in line for fault in _FAULTS):
                    shown = "\n".join(lines[max(number - 5, 0) : number + 40])
                    raise AssertionError(f"in the log of {site}:\n{shown}")


def until_none(look: Callable[[], dict[str, T]], what: str, seconds: float) -> None:
    """Wait until `look` finds nothing; what it found last is in the message."""
    found: dict[str, T] = {}

    def nothing() -> bool:
        found.clear()
        found.update(look())
        return not found

    try:
        until(nothing, f"no {what}", seconds)
    except AssertionError as late:
        raise AssertionError(f"{what} after {seconds:g} s: {found}") from late


def mark(site: Site) -> UUID:
    """Write a row, to see when it is elsewhere."""
    made: UUID = site.scalar("insert into customer values (syncagent.uuid7(), 'mark', 0, null) returning id")
    return made


def has(site: Site, *marks: UUID) -> bool:
    if site.runs:
        assert site.agent.is_running()
    return bool(
        site.scalar("select count(*) = %s from customer where id = any (%s)", (len(marks), list(marks)))
    )


def leads(site: Site) -> str | None:
    """Whom it takes for the leader."""
    found = site.execute("select name from syncagent.site where leads")
    return str(found[0][0]) if found else None


def leader(*sites: Site) -> Site | None:
    """The one of these that all of them take for it."""
    names = {leads(site) for site in sites}
    return next((site for site in sites if names == {site.name}), None)


def digest(site: Site, table: str) -> tuple[int, str]:
    """Rows and digest over all columns, the same on every version of PostgreSQL."""
    ((rows, found),) = site.execute(
        f"select count(*), coalesce(md5(string_agg(t::text, ';' order by t::text collate \"C\")), '') from {table} t"
    )
    return rows, found


class Laboratory:
    """Servers for a whole run of the tests, and clusters made on them in a second."""

    def __init__(self, folder: Path, *, durable: bool = False) -> None:
        self._folder, self._durable = folder, durable
        self._moulds: dict[tuple[int, int], Mould] = {}
        self._servers: dict[tuple[int, int], Server] = {}

    @contextmanager
    def cluster(self, *majors: int, prepare: Callable[[Cluster], None] | None = None) -> Iterator[Cluster]:
        """One site per major version; agents are not started. `prepare` runs before they meet."""
        network = Network()
        folder = self._folder / f"cluster{next(_numbers)}"
        folder.mkdir()
        cluster = Cluster([], network)
        try:
            for place, major in enumerate(majors):
                cluster.sites.append(Site(self._mould(place, major), folder, network))
            (prepare or Cluster.introduce)(cluster)
            yield cluster
            for site in cluster:
                site.stop()
            cluster.check_logs()
        except BaseException:
            for site in cluster:
                sys.stdout.write(f"---- {site}\n{site.state()}\n")
            raise
        finally:
            for site in cluster:
                if site.runs:
                    site.kill()
                sys.stdout.write(f"---- log of {site}\n{site.log_tail()}\n")
                site.close()
            network.close()

    def _mould(self, place: int, major: int) -> Mould:
        """The site that the command line makes; later ones are copies of it."""
        if (place, major) not in self._moulds:
            name, node = NAMES[place], place + 1
            server = self._server(place, major)
            server.start()
            database = Database(server, f"mould{place}")
            server.execute(sql.SQL("create database {}").format(sql.Identifier(database.name)))
            database.execute(TABLES)
            database.leave()
            home = self._folder / f"{name}{major}.home"
            said = _ask(
                *("init", "--dsn", database.dsn, "--name", name, "--node", str(node)),
                *("--listen", "127.0.0.1:1", "--home", str(home), "--json"),
            )
            _ask("attach", "--all", "--derive-key", "--home", str(home), "--json")
            self._moulds[place, major] = Mould(server, database.name, home, name, node, said["sha256"])
        return self._moulds[place, major]

    def _server(self, place: int, major: int) -> Server:
        """One of its own for each of the first sites; the others share the last."""
        place = min(place, _OWN_SERVERS - 1)
        if (place, major) not in self._servers:
            folder = self._folder / f"{NAMES[place]}{major}.server"
            server = Server(binaries(major), folder, settings=SMALL, durable=self._durable)
            self._servers[place, major] = server
        return self._servers[place, major]

    def stop(self) -> None:
        for server in self._servers.values():
            server.kill()


def _ask(*arguments: str) -> Any:
    done = nursery.run(*arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
