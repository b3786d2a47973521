"""Sites that write at the same time end with the same rows, and with no metadata left."""

import pytest

from tests.support.cluster import Laboratory
from tests.support.load import committed, load, share, verify


@pytest.mark.parametrize("majors", [(18, 15), (18, 15, 18)], ids=["two sites", "three sites"])
def test_writes_everywhere(laboratory: Laboratory, majors: tuple[int, ...], seed: int) -> None:
    with laboratory.cluster(*majors) as cluster:
        cluster.start()
        share(cluster.sites[0])
        cluster.converges()
        with load(cluster.sites, seed) as writers:
            committed(writers, 1500)
        cluster.converges()
        verify(writers, cluster.sites)
        cluster.settles()
