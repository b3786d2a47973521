"""kill -9 in every phase of one change, of who leads and of who follows, while all sites write: it goes on, and all end equal."""

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Any

import psycopg
import pytest

from tests.cluster.test_schema_changes import LONG, alike, epochs
from tests.support.cluster import Cluster, Laboratory, Site, leader
from tests.support.load import Writer, committed, load, share, verify
from tests.support.waiting import until

PHASES = ("expand", "write-dual", "backfill", "read-new", "contract")
CHANGE = "-- down: note_new::text\nalter table customer alter column note type varchar({0}) using note::varchar({0})"
"""Each time shorter, so that every row is written anew."""
Kill = tuple[str, str]
"""In which phase, and whom: who leads, or who follows."""


def victim(cluster: Cluster, whom: str) -> Site:
    first = until(lambda: leader(*cluster), "a leader", LONG)
    assert first is not None
    return first if whom == "leader" else next(site for site in cluster if site is not first)


def kill_in(cluster: Cluster, phase: str, whom: str, writers: list[Writer]) -> None:
    """One change through all phases; whoever is to die does so in the middle of its first step of this one."""
    dying = victim(cluster, whom)
    asked_at = next(
        site for site in cluster if site is not dying
    )  # what is held keeps its keeper from listening
    number = asked_at.scalar("select count(*) from syncagent.schema_change")
    (file := asked_at.home / "change.sql").write_text(CHANGE.format(300 - number))
    with ThreadPoolExecutor() as pool, dying.connect() as session:
        plan = asked_at.syncagent("schema", "plan", str(file))
        assert plan.returncode == 0, plan.stdout
        session.execute(_HOLD)
        opened = pool.submit(
            asked_at.syncagent, "schema", "apply", str(file), "--auto", "--timeout", "1ms", seconds=LONG
        )
        while (begun := under_way(session))[0] != phase:
            session.rollback()
            until(lambda: done_here(session) >= begun[1], f"{begun} is done at {dying}", LONG)
            session.execute(_HOLD)
        dying.kill()
        session.rollback()
        sys.stdout.write(f"{whom} {dying.name} killed in {phase}; ")
        committed(writers, 5)
        dying.start()
        assert opened.result().returncode in (0, 1)
    changes = "select state from syncagent.schema_change order by asked_at"
    until(
        lambda: all(
            [state for (state,) in one.execute(changes)] == ["done"] * (number + 1) for one in cluster
        ),
        "every site has it",
        LONG,
    )
    until(lambda: len(epochs(cluster)) == 1, "all are at one step", LONG)


_HOLD = "lock table syncagent.merge_lock in share mode"
"""What the last part of every step needs for itself: while it is held, the step that was let go is under way."""


def under_way(session: psycopg.Connection[Any]) -> tuple[str, int]:
    """The phase and the number of a step that was let go and is not done here, as soon as there is one."""
    query = "select phase, steps_let_go from syncagent.schema_change where state = 'open' and steps_let_go > steps_done_here"
    found = until(lambda: session.execute(query).fetchone(), "the next step is let go", LONG)
    assert found is not None
    return found[0], found[1]


def done_here(session: psycopg.Connection[Any]) -> int:
    found = session.execute(
        "select steps_done_here from syncagent.schema_change order by asked_at desc limit 1"
    ).fetchone()
    session.rollback()
    return found[0] if found else 0


def killed(laboratory: Laboratory, seed: int, kills: Sequence[Kill]) -> None:
    sys.stdout.write(f"SEED={seed} ")
    with laboratory.cluster(18, 15, 18) as cluster:
        cluster.start()
        share(cluster.sites[0])
        cluster.exchange(LONG)
        with load(cluster.sites, seed, writers=1) as writers:
            committed(writers, 10)
            for phase, whom in kills:
                kill_in(cluster, phase, whom, writers)
                committed(writers, 10)
        alike(cluster)
        verify(writers, cluster.sites)


@pytest.mark.soak(only="half a minute")
def test_who_leads_is_killed_within_a_change(laboratory: Laboratory, seed: int) -> None:
    """Who leads, while both columns begin to be written."""
    killed(laboratory, seed, [("write-dual", "leader")])


@pytest.mark.soak(only="ten changes")
def test_kills_in_every_phase(laboratory: Laboratory, seed: int) -> None:
    killed(laboratory, seed, list(product(PHASES, ("leader", "follower"))))
