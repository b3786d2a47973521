"""A site's clock was ahead for a while: it takes back what it wrote meanwhile, which everybody holds, and stamps it as of now."""

import itertools
import json
import subprocess
import sys
from typing import Any

import pytest

from tests.support.cluster import Cluster, Laboratory, Site
from tests.support.waiting import until

TABLES = ("customer", "item")
"""A key with a time, and one that is derived."""
HOUR_AHEAD = "select setval('syncagent.hlc', syncagent._wall() + 3600 * 4096000::bigint)"
RESET = ("clock", "reset", "--yes")
STEPS = (
    ("Draft", "save"),
    ("returning", "_readmit"),
    ("joining", "counted"),
    ("installation", "return_anew"),
    ("PostgresCopier", "put"),
    ("joiner", "conclude"),
)
KILLED = 9
_numbers = itertools.count(1)
NEWEST = (
    "select bool_and(syncagent.stamp_time(stamp) < now() + interval '10 seconds') from syncagent.version_{}"
)


def insert(site: Site, *names: str) -> None:
    for name in names:
        site.execute("insert into customer values (syncagent.uuid7(), %s, 0, null)", (name,))
        site.execute("insert into item values (%s, %s, 0)", (next(_numbers), name))


def change(site: Site, name: str, to: str) -> None:
    for table in TABLES:
        site.execute(f"update {table} set name = %s where name = %s", (to, name))


def delete(site: Site, name: str) -> None:
    for table in TABLES:
        site.execute(f"delete from {table} where name = %s", (name,))


def name_of(site: Site, table: str = "customer") -> list[str]:
    return [name for (name,) in site.execute(f"select name from {table} where name <> 'mark' order by name")]


def cut(site: Site) -> None:
    """What was written is in a cut that others have, or hold."""
    until(lambda: not site.scalar("select syncagent._pending()"), "it is cut")


def held(*sites: Site, of: Site) -> None:
    for site in sites:
        until(lambda site=site: "held: the clock of" in str(site.peer(of)["waiting"]), f"{site} holds it")  # type: ignore[misc]


def killed(site: Site, owner: str, name: str) -> int:
    """Take back, and die right after this step; how the process ended."""
    program = f"""
import asyncio, inspect, os, sys
from syncagent import joining, returning
from syncagent.joining import Draft
from syncagent.services import joiner
from syncagent.storage import installation
from syncagent.storage.copier import PostgresCopier
from syncagent.cli.app import main
function = {owner}.{name}
if inspect.iscoroutinefunction(function):
    async def dying(*given, **named):
        await function(*given, **named)
        os._exit({KILLED})
else:
    def dying(*given, **named):
        function(*given, **named)
        os._exit({KILLED})
{owner}.{name} = dying
main([*{RESET!r}, "--home", sys.argv[1]])
"""
    return subprocess.run([sys.executable, "-c", program, str(site.home)], check=False, timeout=60).returncode


def answer(site: Site, *arguments: str) -> Any:
    done = site.syncagent(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def refused(site: Site) -> str:
    done = site.syncagent(*RESET)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "hint: " in done.stderr
    return done.stderr


@pytest.mark.soak(only="three agents, and a clock that is an hour ahead")
@pytest.mark.parametrize(
    "kills",
    [
        pytest.param(0, id="once"),
        pytest.param(len(STEPS), id="kills"),
    ],
)
def test_what_a_clock_ahead_has_written_is_taken_back(laboratory: Laboratory, kills: int) -> None:
    with laboratory.cluster(18, 15, 18) as cluster:
        berlin, tokyo, late = cluster
        cluster.start()
        insert(berlin, "changed late", "deleted late", "both", "again", "stays")
        cluster.converges(tables=[*TABLES])

        late.execute(HOUR_AHEAD)
        insert(late, "born late")
        change(late, "changed late", "late: changed")
        delete(late, "deleted late")
        cut(late)
        change(late, "both", "late: both")
        change(late, "again", "late: again")
        change(late, "born late", "born late, changed")
        cut(late)
        held(berlin, tokyo, of=late)
        change(berlin, "both", "berlin: both")
        cut(berlin)
        assert "an agent is running" in refused(late)
        late.stop()
        insert(late, "in no cut")

        looked = answer(late, "clock", "reset", "--dry-run")
        assert looked["node"] is None
        assert {table["table"]: table["own"] for table in looked["survey"]["tables"]}["public.customer"] == 6
        for owner, function in STEPS[:kills]:
            assert killed(late, owner, function) == KILLED, function
        assert answer(late, *RESET)["node"] == 4
        late.start()
        cluster.exchange()
        expected = ["born late, changed", "in no cut", "late: again", "late: both", "late: changed", "stays"]
        for site in cluster:
            assert [name_of(site, table) for table in TABLES] == [expected] * 2
        # what it wrote is of now: it has won over what was written before, unseen, and wins over nothing that comes
        lost = "select distinct table_name, losing_image ->> 'name' from syncagent.conflict_record where winning_image ->> 'name' = 'late: both'"
        assert sorted(late.execute(lost)) == [("customer", "berlin: both"), ("item", "berlin: both")]
        for number, name in enumerate(["late: both", "late: again", "born late, changed"]):
            change(tokyo, name, f"tokyo: {number}")
        cluster.exchange()
        for site in cluster:
            assert name_of(site) == [
                "in no cut",
                "late: changed",
                "stays",
                "tokyo: 0",
                "tokyo: 1",
                "tokyo: 2",
            ]
            for (table,) in site.execute("select id from syncagent.replicated"):
                assert site.scalar(NEWEST.format(table)) in (True, None)
            assert not site.scalar(
                "select count(*) from syncagent.conflict_record where winning_image ->> 'name' like 'tokyo%'"
            )
        cluster.converges(tables=[*TABLES])
        assert answer(berlin, "verify")


def patient(cluster: Cluster) -> None:
    """Tokyo takes what is two hours ahead."""
    path = cluster.sites[1].home / "config.toml"
    text = path.read_text()
    assert "max_clock_skew = 5.0" in text
    path.write_text(text.replace("max_clock_skew = 5.0", "max_clock_skew = 7200"))
    cluster.introduce()


@pytest.mark.soak(only="refusals, one by one, between three agents")
def test_why_nothing_is_taken_back(laboratory: Laboratory) -> None:
    with laboratory.cluster(18, 15, 18, prepare=patient) as cluster:
        berlin, tokyo, late = cluster
        cluster.start()
        insert(berlin, "both")
        cluster.converges(tables=[*TABLES])
        late.stop()
        assert "there is nothing to take back: the stamps of this site are 0.0 s ahead" in refused(late)

        late.start()
        late.execute(HOUR_AHEAD)
        change(late, "both", "late: both")
        held(berlin, of=late)
        until(lambda: name_of(tokyo) == ["late: both"], "it takes that")
        late.stop()
        said = refused(late)
        assert "tokyo has applied what this site wrote 3" in said
        assert "clock accept lima" in said

        cluster.cut_off(tokyo)
        until(lambda: not berlin.peer(tokyo)["linked"], "berlin knows")
        assert "berlin has no link with tokyo: what is applied there of this site is not known" in refused(
            late
        )

        cluster.heal(tokyo)
        late.start()
        held(berlin, of=late)
        accepted = berlin.syncagent("clock", "accept", "lima", "--yes")
        assert accepted.returncode == 0, accepted.stderr
        cluster.converges(tables=[*TABLES])
        late.stop()
        assert "there is nothing to take back" in refused(late), "all clocks run ahead"
        late.start()
        cluster.exchange()
        assert [name_of(site) for site in cluster] == [["late: both"]] * 3
