"""Two sites: a witness keeps them able to decide; and the way out when a majority is gone for good."""

from pathlib import Path

from syncagent.embedded import Server
from tests.support.cluster import Cluster, Laboratory, Site, has, leads, mark
from tests.support.fleet import Member, fleet
from tests.support.waiting import until

TABLE = "create table item (id uuid primary key, name text not null)"
INSERT = "insert into item values (syncagent.uuid7(), %s)"


def settled(member: Member) -> bool:
    return bool(member.scalar("select coalesce(sum(entries), 0) = 0 from syncagent._entries()"))


def roles(at: Member | Site) -> dict[str, str]:
    return dict(at.execute("select name, role from syncagent.site"))


def test_a_witness_votes_and_holds_no_rows(server18: Server, server15: Server, tmp_path: Path) -> None:
    with fleet(tmp_path, "", server18, server15, server18, server18) as (berlin, tokyo, witness, oslo):
        witness.name = "witness"
        berlin.init()
        berlin.execute(TABLE)
        berlin.start()
        berlin.ask("attach", "item")
        berlin.execute(INSERT, ("first",))
        tokyo.join(berlin)
        tokyo.start()
        witness.join(berlin, "--witness")
        witness.start()
        three = {"berlin": "voter", "tokyo": "voter", "witness": "witness"}
        for site in (berlin, tokyo, witness):
            until(lambda site=site: roles(site) == three, f"three vote, says {site.name}")  # type: ignore[misc]
        assert witness.scalar("select to_regclass('item') is null")
        assert "witness" in witness.refused("attach", "item")
        assert "is a witness" in witness.refused("wait", "--converged")
        assert "is a witness" in oslo.refused(*oslo.joining(witness), token=berlin.ask("invite")["token"])

        # Nothing of the data waits for it: neither convergence, nor metadata, nor a new table.
        witness.stop()
        for site in (berlin, tokyo):
            site.execute(INSERT, (site.name,))
            site.execute("update item set name = name || ' again' where name = %s", (site.name,))
        assert berlin.ask("wait", "--converged")["converged"]
        for site in (berlin, tokyo):
            until(lambda site=site: settled(site), f"metadata is dropped at {site.name}")  # type: ignore[misc]
        witness.start()
        until(lambda: berlin.leader and witness.leader == berlin.leader, "the witness is back")

        # One of the two dies, and the other goes on deciding.
        dead, left = (berlin, tokyo) if berlin.leader == "berlin" else (tokyo, berlin)
        dead.stop(kill=True)
        until(lambda: left.leader == left.name, "who has rows leads")
        assert left.ask("remove", dead.name, "--yes")["site"] == dead.name
        until(lambda: roles(left) == {left.name: "voter", "witness": "learner"}, "an odd number votes")
        witness.ask("leave", "--yes")
        until(lambda: roles(left) == {left.name: "voter"}, "it was removed")


def test_a_majority_that_is_gone_for_good(laboratory: Laboratory) -> None:
    with laboratory.cluster(18, 15, 18) as cluster:
        berlin, tokyo, lima = cluster
        cluster.start()
        cluster.exchange()
        lima.kill()
        until(lambda: leads(tokyo) not in (None, "lima"), "one of the two leads")
        of_lima = "select state from syncagent.status where name = 'lima'"
        until(
            lambda: "linked" not in (berlin.scalar(of_lima), tokyo.scalar(of_lima)),
            "neither has a link with it",
        )
        said = tokyo.syncagent("remove", "lima", "--yes", "--force")
        assert said.returncode == 1
        assert "leads it" in said.stderr
        words = mark(berlin)
        until(lambda: has(tokyo, words), "tokyo alone has heard berlin's last words")
        berlin.kill()
        said = tokyo.syncagent("remove", "berlin", "--yes")
        assert said.returncode == 1
        assert "2 of these must run" in said.stderr
        assert "`syncagent remove SITE --force`" in said.stderr

        until(lambda: leads(tokyo) is None, "nobody leads")
        said = tokyo.syncagent("remove", "berlin", "--force", "--yes")
        assert said.returncode == 0, said.stderr
        assert "DANGER" in said.stderr
        until(lambda: roles(tokyo) == {"tokyo": "voter", "lima": "learner"}, "tokyo decides alone")
        tokyo.kill()
        until(lambda: leads(tokyo) is None, "the server has seen that its agent is gone")
        tokyo.start()
        until(lambda: leads(tokyo) == "tokyo", "after a restart, too")
        assert tokyo.syncagent("invite").returncode == 0

        # Who was removed is refused, by its old friend, too; who was only away comes along. What it has taken before it knew
        # both have in the end, and what was heard of the dead before.
        berlin.start()
        until(lambda: "site berlin was removed" in str(berlin.peer(tokyo)["trouble"]), "berlin is told")
        late = mark(berlin)
        assert not has(tokyo, late)
        lima.start()
        until(lambda: roles(lima) == {"tokyo": "voter", "lima": "learner"}, "lima follows tokyo")
        until(lambda: "site berlin was removed" in str(berlin.peer(lima)["trouble"]), "by lima, too")
        Cluster([tokyo, lima], cluster.network).converges()
        assert has(lima, words)
