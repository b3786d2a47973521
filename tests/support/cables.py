"""Sites as machines of their own, for the network: a namespace each, and a cable each to one switch.

Nothing of ours stands between them and forwards bytes, as a proxy does, only the kernel: a pulled cable loses what is
on it, resets no connection, and tells nobody at the other end. The addresses are of IPv6. Needs root and `ip`.
"""

import os
import shutil
import subprocess
from contextlib import AbstractContextManager
from itertools import count

import pytest

from tests.support.cluster import Cluster, Site
from tests.support.founding import found_together

_numbers = count(1)
_PORT = 7400
ETHERNET = 1500
"""Bytes of a packet."""

needs_cables = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("ip") is None,
    reason="network namespaces are made by root, with ip of iproute2",
)


class Switch(AbstractContextManager["Switch"]):
    """One bridge; what is plugged in reaches what else is plugged in."""

    def __init__(self) -> None:
        self._name = f"syncagent-{os.getpid()}-{next(_numbers)}"
        self._namespaces = [self._name]
        _ip("netns", "add", self._name)
        self._ip("link", "add", "name", "switch", "type", "bridge", "mcast_snooping", "0")
        self._ip("link", "set", "switch", "up")

    def __exit__(self, *_: object) -> None:
        for name in self._namespaces:
            _ip("netns", "del", name)

    def introduce(self, cluster: Cluster) -> None:
        """For `Laboratory.cluster(prepare=...)`: they are the first sites of one cluster, on a cable each."""
        for site in cluster:
            namespace, address = f"{self._name}-{site.name}", f"fd00::{site.node}"
            _ip("netns", "add", namespace)
            self._namespaces.append(namespace)
            self._ip("link", "add", "name", site.name, "type", "veth", "peer", "eth0", "netns", namespace)
            self._ip("link", "set", site.name, "master", "switch", "up")
            within = ("-n", namespace)
            _ip(*within, "address", "add", f"{address}/64", "dev", "eth0", "nodad")
            _ip(*within, "link", "set", "lo", "up")
            # Segments leave as they would on a wire, not joined to packets that no wire would carry.
            _ip(*within, "link", "set", "eth0", "up", "gso_max_segs", "1")
            site.lives(f"[{address}]", _PORT, ("ip", "netns", "exec", namespace))
        found_together([(site.dsn, site.address, site.sha256) for site in cluster])

    def pull(self, site: Site) -> None:
        """The cable, at the switch: what is under way is lost."""
        self._ip("link", "set", site.name, "down")

    def plug(self, site: Site) -> None:
        self._ip("link", "set", site.name, "up")

    def narrow(self, site: Site, size: int) -> None:
        """Packets larger than this, in bytes, are lost on the way to and from the site, and nobody is told."""
        self._ip("link", "set", site.name, "mtu", str(size))

    def _ip(self, *arguments: str) -> None:
        _ip("-n", self._name, *arguments)


def _ip(*arguments: str) -> None:
    done = subprocess.run(("ip", *arguments), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"
