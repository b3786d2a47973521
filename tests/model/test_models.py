"""The protocol's two models hold, and each rule they are there for is missed when it is left out.

The seeds are the first that fail, so a rule that no longer matters, or a model that no longer looks, is seen.
"""

from collections import Counter
from collections.abc import Callable

import pytest

from tests.model import model, txmodel, txmodel_directed

FULL = 20_000

MODEL_BREAKS = {
    "stamp": (0, "false alarm"),
    "causal": (0, "false alarm"),
    "stable": (1, "re-insert lost"),
    "filter": (2, "resurrected"),
    "mark": (4, "re-insert lost"),
    "relog": (248, "diverged"),
    "onedot": (0, "false alarm"),
}
