"""What is asked of the kernel for a connection between two sites, and what it says of one.

A path that loses large packets without a word, as tunnels do, lets pings through and no batch, for as long as one
waits; so segments are small enough for every path of IPv6. And bytes that no longer arrive for another reason, such as a
device that has forgotten the connection, are noticed by what the kernel has seen acknowledged.
"""

import socket
import struct
import sys
from typing import Any

import aiohttp

SEGMENT = 1220
"""Bytes of a TCP segment at most, both ways: what IPv6 carries everywhere (1280, RFC 8200) less the two headers."""
_UNACKED, _BYTES_ACKED = 24, 120
"""Offsets in Linux's `struct tcp_info`: segments under way (u32), bytes acknowledged in all (u64)."""


def connector() -> aiohttp.TCPConnector:
    """For every session that dials a site."""
    return aiohttp.TCPConnector(socket_factory=_small)


def _small(address: tuple[Any, ...]) -> socket.socket:
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    if hasattr(socket, "TCP_MAXSEG"):
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SEGMENT)
    return made


class Arrivals:
    """Whether what one connection sends still arrives, as far as it was looked at."""

    def __init__(self, connection: Any, now: float) -> None:
        """`connection`: a socket, or what stands for one; `now`: seconds of a monotonic clock."""
        self._connection, self._since, self._acknowledged, self._under_way = connection, now, -1, False

    def look(self, now: float) -> None:
        """Ask the kernel, which says it on Linux since 4.1; elsewhere nothing is ever missing."""
        if sys.platform != "linux":
            return
        try:
            seen = self._connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_ACKED + 8)
        except OSError:
            return  # it has ended, which others notice
        if len(seen) < _BYTES_ACKED + 8:
            return
        (segments,), (acknowledged,) = (
            struct.unpack_from("I", seen, _UNACKED),
            struct.unpack_from("Q", seen, _BYTES_ACKED),
        )
        if not segments or acknowledged != self._acknowledged:
            self._since, self._acknowledged = now, acknowledged
        self._under_way = bool(segments)

    def missing(self, now: float) -> float:
        """Seconds for which bytes have been under way and none was acknowledged."""
        return now - self._since if self._under_way else 0.0
