"""A fleet is built, grown and shrunk by one command each; what is not allowed is refused, and changes nothing."""

import asyncio
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from msgspec.structs import replace

from syncagent import __version__
from syncagent.core.invitation import Application, Token
from syncagent.core.wire import PROTOCOL
from syncagent.embedded import Server
from syncagent.errors import RefusedError, TrustError
from syncagent.transport import admission
from tests.support.cluster import Laboratory, Site, has, leader, mark
from tests.support.fleet import Member, fleet
from tests.support.load import Writer, committed, load, share, verify
from tests.support.waiting import until

FAILOVER = 3.0
"""Seconds without a leader, at the default settings, on a machine that has time for it."""
TABLE = "create table item (id uuid primary key, name text not null)"
INSERT = "insert into item values (syncagent.uuid7(), %s)"


def holds(member: Member, *names: str) -> bool:
    return {name for (name,) in member.execute("select name from item")} >= set(names)


def settled(member: Member) -> bool:
    return bool(member.scalar("select coalesce(sum(entries), 0) = 0 from syncagent._entries()"))


def test_a_fleet_is_built_and_shrunk(server18: Server, server15: Server, tmp_path: Path) -> None:
    table = TABLE.replace("not null", "unique")
    with fleet(tmp_path, table, server18, server15, server18) as (berlin, tokyo, lima):
        berlin.init()
        berlin.start()
        tokyo.join(berlin)
        tokyo.start()
        lima.join(tokyo)
        lima.start()
        three = {"berlin": (1, "voter"), "tokyo": (2, "voter"), "lima": (3, "voter")}
        for site in (berlin, tokyo, lima):
            until(lambda site=site: site.members() == three, f"three members at {site.name}")  # type: ignore[misc]

        told = lima.ask("attach", "item", "--bucket", "minute", "--on-unique", "item_name_key=report")
        assert [table["table"] for table in told] == ["public.item"]
        for site in (berlin, tokyo, lima):
            assert (
                site.scalar(
                    "select count(*) from syncagent.replicated where agreed and bucket = 'minute' and policies ->> 'item_name_key' = 'report'"
                )
                == 1
            )
            site.execute(INSERT, (site.name,))
        for site in (berlin, tokyo, lima):
            until(lambda site=site: holds(site, "berlin", "tokyo", "lima"), f"all rows at {site.name}")  # type: ignore[misc]

        assert "is alive" in berlin.refused("remove", "tokyo", "--yes")
        tokyo.execute(INSERT, ("last words",))
        tokyo.execute("update item set name = 'tokyo was here' where name = 'lima'")
        assert tokyo.ask("leave", "--yes") == {"left": True, "missing": []}
        assert tokyo.exit_code() == 0
        assert holds(berlin, "last words")
        assert holds(lima, "last words", "tokyo was here")
        for site in (berlin, lima):
            until(partial(settled, site), "what tokyo wrote is settled, too")
        assert "was removed" in tokyo.refused("run")

        lima.stop(kill=True)
        left = {"berlin": (1, "voter"), "lima": (3, "learner")}
        until(lambda: berlin.members() == left, "one of two votes")
        assert berlin.ask("remove", "lima", "--yes")["node"] == 3
        assert berlin.members() == {"berlin": (1, "voter")}

        lima.start()  # nobody could tell it while it was away; now everybody it asks does
        trouble = "select trouble from syncagent.peer_state where node = 1"
        until(lambda: "site lima was removed" in str(lima.scalar(trouble)), "lima is told")


def test_who_may_not_join(server18: Server, tmp_path: Path) -> None:
    with fleet(tmp_path, TABLE, *[server18] * 3) as (berlin, tokyo, lima):
        berlin.init()
        assert "no agent is running" in berlin.refused("invite")
        berlin.start()
        token = berlin.ask("invite")["token"]
        forged = str(Token(Token.read(token).id, bytes(32)))
        assert "does not know this token" in tokyo.refused(*tokyo.joining(berlin), token=forged)
        assert "a token is needed" in tokyo.refused(*tokyo.joining(berlin))
        lima.init()
        used = [lima.database.dsn if word == tokyo.database.dsn else word for word in tokyo.joining(berlin)]
        assert "is the site lima already" in tokyo.refused(*used, token=token)
        assert berlin.members().keys() == {"berlin"}
        tokyo.ask(*tokyo.joining(berlin), token=token)  # none of it has used the token up


def test_a_site_that_does_not_fit(laboratory: Laboratory) -> None:
    """Nobody is admitted whose clock, version or proof is wrong; and a member's proof is for its own certificate."""
    wrong: list[tuple[dict[str, object], str]] = [
        ({"wall": time.time() + 7200}, "s ahead of"),
        ({"wall": 0.0}, "behind"),
        ({"version": "0.0.1"}, "install the version"),
        ({"protocol": PROTOCOL + 1}, f"protocol {PROTOCOL + 1}"),
        ({"secret": bytes(32)}, "not known here"),
        ({"invitation": uuid4()}, "not known here"),
        ({"name": "berlin"}, "has a site berlin already"),
    ]
    with laboratory.cluster(18) as cluster:
        (berlin,) = cluster
        cluster.start()
        until(lambda: berlin.scalar("select syncagent._agent_runs()"), "the agent can be asked")
        token = Token.read(berlin.syncagent("invite").stdout)
        application = Application(
            invitation=token.id,
            secret=token.secret,
            name="tokyo",
            site=uuid4(),
            incarnation=uuid4(),
            address=None,
            sha256="ab" * 32,
            protocol=PROTOCOL,
            version=__version__,
            wall=time.time(),
        )
        for change, why in wrong:
            with pytest.raises(RefusedError) as caught:
                asyncio.run(apply(berlin, token, replace(application, **change)))
            assert why in str(caught.value)
        with pytest.raises(TrustError, match="does not know this token"):
            asyncio.run(admission.find(f"127.0.0.1:{berlin.port}", Token(token.id, bytes(32))))
        assert berlin.scalar("select count(*) from syncagent.member") == 1
        asyncio.run(apply(berlin, token, application))
        asyncio.run(apply(berlin, token, application))  # asked twice, admitted once
        another = replace(application, site=uuid4(), sha256="cd" * 32, name="lima")
        with pytest.raises(RefusedError, match="used already"):
            asyncio.run(apply(berlin, token, another))
        until(lambda: berlin.scalar("select count(*) from syncagent.member") == 2, "now it fits")


async def apply(site: Site, token: Token, application: Application) -> None:
    address = f"127.0.0.1:{site.port}"
    await admission.apply(address, await admission.find(address, token), application)


def have(sites: Iterable[Site], *made: UUID) -> bool:
    return all(has(site, *made) for site in sites)


@pytest.mark.soak
def test_a_leader_dies_with_its_server(
    laboratory: Laboratory, seed: int, runs: Callable[[int, int], int]
) -> None:
    """All three write meanwhile. Another one leads; what only one of those left has heard of the dead the other one gets
    from there, and with it what builds on it."""
    took, passed, writers = [], [], list[Writer]()
    with laboratory.cluster(18, 15, 18) as cluster:
        cluster.start()
        share(cluster.sites[0])
        cluster.exchange()
        for number in range(runs(1, 10)):
            dead = until(lambda: leader(*cluster), "a leader")
            assert dead is not None
            one, other = (site for site in cluster if site is not dead)
            with load(cluster.sites, seed, writers=1, first=number) as busy:
                left = [writer for writer in busy if writer.site is not dead]
                committed(busy, 20)
                cluster.cut_off(dead, other)
                last = mark(dead)
                until(partial(has, one, last), "one has heard it")
                began = time.monotonic()
                dead.kill()
                dead.server.kill()
                made = last, mark(one), mark(other)
                one.decide()
                took.append(time.monotonic() - began)
                until(partial(have, (one, other), *made), "rows pass both ways")
                passed.append(time.monotonic() - began)
                until(partial(leader, one, other), "both follow it")
                committed(left, 20)
                cluster.heal(dead, other)
                dead.server.start()
                dead.start()
                committed(busy, 20)
            writers += busy
            cluster.exchange()
        cluster.converges()
        verify(writers, cluster.sites)
    for what, seconds in ("another leader had a change agreed", took), ("rows passed both ways", passed):
        sys.stdout.write(f"seconds until {what}: {sorted(round(each, 2) for each in seconds)}\n")
    assert sorted(took)[len(took) // 2] < FAILOVER
