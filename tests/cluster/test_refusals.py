"""What is wrong between two sites is said in status, by name and with a remedy; the rest goes on."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from syncagent.core.wire import PROTOCOL
from tests.support.cluster import Cluster, Laboratory, Site, has, mark
from tests.support.founding import found_together
from tests.support.waiting import until

EXTRA = "create table extra (id uuid primary key, text text)"
NEXT = "from syncagent.core import wire; wire.PROTOCOL += 1; from syncagent.cli.app import main; main()"
FILL = "insert into extra select syncagent.uuid7(), 'extra' from generate_series(1, 10)"


def shows(site: Site, peer: Site, *words: str) -> Callable[[], str | None]:
    """Status of the peer, once it has all these words."""

    def look() -> str | None:
        state = site.peer(peer)
        text = f"{state['waiting']} {state['trouble']}"
        return text if all(word in text for word in words) else None

    return look


def test_two_agents_on_one_site(laboratory: Laboratory, tmp_path: Path) -> None:
    with laboratory.cluster(18, 15) as cluster:
        a, b = cluster
        cluster.start()
        cluster.exchange()
        second = a.spawn(tmp_path / "second.log")
        assert second.wait(20) == 1
        said = (tmp_path / "second.log").read_text()
        assert "another agent runs for this site" in said
        assert "hint: " in said
        assert "Traceback" not in said
        made = mark(a)
        until(lambda: has(b, made), "the first one goes on")


def test_a_peer_lacks_the_table(laboratory: Laboratory) -> None:
    """Every site is asked first; one that is away when it is attached says so when it is back, and waits."""
    with laboratory.cluster(18, 15) as cluster:
        a, b = cluster
        cluster.start()
        cluster.exchange()
        a.execute(EXTRA)
        said = a.syncagent("attach", "extra")
        assert said.returncode == 1
        assert "public.extra at tokyo: the table is not there" in said.stderr
        b.stop()
        a.attach("extra")
        a.execute(FILL)
        b.start()
        until(shows(b, a, "public.extra is not attached here", "syncagent attach"), "status says so")
        until(lambda: "is not here" in str(b.execute("select trouble from syncagent.agent_state")), "and why")
        theirs = mark(b)
        until(lambda: has(a, theirs), "the other way goes on")
        b.execute(EXTRA)
        cluster.converges(tables=("customer", "extra"))
        assert b.scalar("select count(*) from extra") == 10


def test_a_peer_has_other_columns(laboratory: Laboratory) -> None:
    with laboratory.cluster(18, 15) as cluster:
        a, b = cluster
        cluster.start()
        cluster.exchange()
        a.execute(EXTRA)
        b.execute("create table extra (id uuid primary key, note text)")
        a.attach("extra")
        a.execute(FILL)
        until(shows(b, a, "other columns", "here: id, note; there: id, text"), "status says so")
        assert b.syncagent("detach", "extra").returncode == 0
        until(
            lambda: not a.scalar("select count(*) from syncagent.replicated where table_name = 'extra'"),
            "everywhere",
        )
        b.execute("alter table extra rename note to text")
        a.attach("extra")
        cluster.converges(tables=("customer", "extra"))


def test_a_certificate_is_not_listed(laboratory: Laboratory) -> None:
    def prepare(cluster: Cluster) -> None:
        a, b = cluster
        cluster.introduce()
        found_together([(a.dsn, a.address, a.sha256), (b.dsn, b.address, "ab" * 32)], only=a.dsn)

    with laboratory.cluster(18, 15, prepare=prepare) as cluster:
        a, b = cluster
        cluster.start()
        until(shows(a, b, "certificate", b.sha256[:8]), "who dials says so")
        until(shows(b, a, "certificate"), "who is refused says so")
        assert not a.peer(b)["linked"]


def test_a_peer_speaks_another_protocol(laboratory: Laboratory) -> None:
    with laboratory.cluster(18, 15) as cluster:
        a, b = cluster
        a.start()
        with of_the_next_protocol(b):
            until(shows(a, b, f"protocol {PROTOCOL + 1}", f"{PROTOCOL}"), "status shows the protocol")
        b.start()
        cluster.converges()
        until(lambda: a.peer(b)["trouble"] is None, "status forgets it")


@contextmanager
def of_the_next_protocol(site: Site) -> Iterator[None]:
    """Its agent, as that of a later version would be."""
    with site.log.open("ab") as log:
        agent = subprocess.Popen(
            [sys.executable, "-c", NEXT, "run", "--home", str(site.home), "--json"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        yield
    finally:
        agent.terminate()
        assert agent.wait() == 0


HOURS_AHEAD = "select setval('syncagent.hlc', nextval('syncagent.hlc') + %s * 4096000::bigint)"


def test_a_clock_is_ahead(laboratory: Laboratory) -> None:
    """Its batches are held with a reason, the others go on; released when time catches up."""
    with laboratory.cluster(18, 15, 18) as cluster:
        a, b, late = cluster
        cluster.start()
        cluster.exchange()
        late.execute(HOURS_AHEAD, (3600,))
        mark(late)
        for site in (a, b):
            until(shows(site, late, "held: the clock of node 3 is 3"), "status says so")
        Cluster([a, b], cluster.network).exchange()
        theirs = mark(a)
        until(lambda: has(late, theirs), "the late one gets what others write")

        accept = ("clock", "accept")
        assert f"nothing of {b.name} is held" in a.syncagent(*accept, b.name, "--yes").stderr
        assert "no other site nobody" in a.syncagent(*accept, "nobody", "--yes").stderr
        assert "--yes" in a.syncagent(*accept, late.name).stderr
        assert " min ahead" in a.syncagent(*accept, late.name, "--yes").stdout
        cluster.exchange()  # each takes it, and what the others write from then on
        cluster.converges()


def test_a_clock_is_ahead_for_a_while(laboratory: Laboratory) -> None:
    with laboratory.cluster(18, 15) as cluster:
        a, late = cluster
        cluster.start()
        cluster.exchange()
        late.execute(HOURS_AHEAD, (9,))
        made = mark(late)
        until(shows(a, late, "held: the clock of node 2"), "status says so")
        assert not has(a, made)
        until(lambda: has(a, made), "released when time has caught up")
        cluster.converges()
        until(lambda: a.peer(late)["waiting"] is None, "status forgets it")


# ---- a disk is full


@contextmanager
def small_disk(folder: Path, owner: Path) -> Iterator[Callable[[], object]]:
    """A file system of four megabytes, for who may mount one; call what is given to make it large."""
    folder.mkdir()
    status = owner.stat()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], check=True)
    try:
        os.chown(folder, status.st_uid, status.st_gid)
        yield lambda: subprocess.run(["mount", "-o", "remount,size=256m", folder], check=True)
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.parametrize("cause", ["disk" if os.geteuid() == 0 else "constraint"])
def test_a_disk_is_full(laboratory: Laboratory, cause: str) -> None:
    """The batch waits, status says why; it is applied when there is room. Other tables' disks may have room:
    the batch is applied whole or not at all. Who may not mount gets the error from a check constraint."""
    with laboratory.cluster(18, 15) as cluster:
        a, b = cluster
        for site in cluster:
            site.execute(EXTRA)
        with (real if cause == "disk" else pretended)(b) as make_room:
            for site in cluster:
                site.attach("extra")
            cluster.start()
            cluster.exchange()
            a.execute(
                "insert into extra select syncagent.uuid7(), repeat(md5(i::text), 10) from generate_series(1, 20000) i"
            )
            held = mark(a)
            until(shows(b, a, "PostgreSQL has no space left", "hint: "), "status says so")
            theirs = mark(b)
            until(lambda: has(a, theirs), "the other way goes on")
            assert not has(b, held)
            assert b.scalar("select count(*) from extra") == 0
            make_room()
            cluster.converges(tables=("customer", "extra"))
            until(lambda: b.peer(a)["waiting"] is None, "status forgets it")
            b.execute("drop table extra")


@contextmanager
def real(site: Site) -> Iterator[Callable[[], object]]:
    folder = site.server.data_dir.parent / f"disk{site.database.name}"
    with small_disk(folder, site.server.data_dir) as make_room:
        site.execute(f"create tablespace {folder.name} location '{folder}'")
        site.execute(
            f"alter table extra set tablespace {folder.name}; alter index extra_pkey set tablespace {folder.name}"
        )
        yield make_room
        site.execute(f"drop tablespace {folder.name}")


@contextmanager
def pretended(site: Site) -> Iterator[Callable[[], object]]:
    site.execute(
        """
        create function room() returns boolean language plpgsql as $$
        begin
            raise exception 'could not extend file: No space left on device' using errcode = '53100';
        end $$;
        alter table extra add constraint room check (room());
        """
    )
    yield lambda: site.execute("alter table extra drop constraint room")
