from collections.abc import Iterator

import pytest

from syncagent.embedded import scratch
from tests.support.cluster import Laboratory


@pytest.fixture(scope="session")
def laboratory() -> Iterator[Laboratory]:
    """Clusters on servers that flush what they acknowledge."""
    with scratch("syncagent-cluster-") as folder:
        laboratory = Laboratory(folder, durable=True)
        try:
            yield laboratory
        finally:
            laboratory.stop()
