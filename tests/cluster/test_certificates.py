"""A site gets a new key and certificate while it runs: nobody waits for it, and nothing can lock a site out."""

import stat
from pathlib import Path

import pytest

from syncagent.core import limits
from syncagent.transport import tls
from syncagent.transport.tls import Credentials
from tests.support.cluster import Cluster, Laboratory, Site
from tests.support.load import committed, load, share, verify
from tests.support.waiting import until


def listed(at: Site, site: Site) -> list[str]:
    return list(at.scalar("select sha256 from syncagent.member where node = %s", (site.node,)))


def own(site: Site) -> str:
    return tls.digest_of_pem((site.home / tls.CERTIFICATE).read_text())


def trouble(site: Site) -> str:
    return str(site.scalar("select trouble from syncagent.agent_state"))


def test_a_certificate_is_renewed_under_load(
    laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    def prepare(cluster: Cluster) -> None:
        """Tokyo's certificate is about to end."""
        tokyo = cluster.sites[1]
        monkeypatch.setattr(limits, "CERTIFICATE_LIFETIME", 86400.0)
        (tokyo.home / tls.CERTIFICATE).unlink()
        tokyo.sha256 = Credentials.provide(tokyo.home, tokyo.name).sha256
        cluster.introduce()

    with laboratory.cluster(18, 15, prepare=prepare) as cluster:
        berlin, tokyo = cluster
        cluster.start()
        share(berlin)
        cluster.exchange()
        until(lambda: "certificate ends on" in trouble(tokyo), "status says so")
        assert "syncagent certificate renew" in tokyo.syncagent("status").stdout
        doctor = tokyo.syncagent("doctor").stdout
        assert "certificate ends on" in doctor
        assert "syncagent certificate renew" in doctor

        with load(cluster.sites, seed, rest=0.05) as writers:
            committed(writers, 50)
            said = tokyo.syncagent("certificate", "renew")
            assert said.returncode == 0, said.stderr + said.stdout
            assert own(tokyo) != tokyo.sha256
            assert own(tokyo) in said.stdout
            until(lambda: listed(berlin, tokyo) == [own(tokyo)], "berlin lists the new one alone")
            until(lambda: trouble(tokyo) == "None", "nothing is the matter any more")
            committed(writers, 50)

            # Who is away would not know this site again, so it is waited for, whatever happens meanwhile.
            tokyo.stop()
            said = berlin.syncagent("certificate", "renew", "--timeout", "2s")
            assert said.returncode == 1
            assert "tokyo  no link" in said.stdout
            assert own(berlin) == berlin.sha256
            until(lambda: len(listed(berlin, berlin)) == 2, "the new one is agreed on")
            assert private(berlin.home / tls.NEXT_KEY)
            berlin.kill()
            berlin.start()
            tokyo.start()
            until(lambda: own(berlin) != berlin.sha256, "the agent goes on by itself")
            until(lambda: listed(tokyo, berlin) == [own(berlin)], "tokyo lists the new one alone")
            assert private(berlin.home / tls.KEY)
            assert not (berlin.home / tls.NEXT_KEY).exists()
        cluster.converges()
        verify(writers, cluster.sites)


def private(key: Path) -> bool:
    return stat.S_IMODE(key.stat().st_mode) == 0o600
