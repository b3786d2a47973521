from collections.abc import Iterator

import pytest

from syncagent.embedded import scratch
from tests.support.cluster import Laboratory


@pytest.fixture(scope="session")
def laboratory() -> Iterator[Laboratory]:
    """Servers whose data survives a kill, as any server's does, and clusters on them."""
    with scratch("syncagent-cluster-") as folder:
        laboratory = Laboratory(folder)
        try:
            yield laboratory
        finally:
            laboratory.stop()
