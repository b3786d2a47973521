"""Who may join, or come back: an agent that is older than the members', or of another protocol, is told so."""

from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from syncagent.core import stamp
from syncagent.core.catalog import Command
from syncagent.core.invitation import Returning
from syncagent.core.wire import PROTOCOL
from syncagent.errors import RefusedError
from syncagent.services.admissions import MAX_SKEW, Admissions

NOW = 1_800_000_000.0


def returning(**other: Any) -> Returning:
    fits: dict[str, Any] = {"incarnation": UUID(int=1), "protocol": PROTOCOL, "version": "0.3.0", "wall": NOW}
    return Returning(**(fits | other))


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"version": "0.2.9"}, "yours is 0.2.9"),
        ({"protocol": PROTOCOL + 1}, f"protocol {PROTOCOL + 1}"),
        ({"wall": NOW + MAX_SKEW + 1}, "ahead of"),
        ({"wall": NOW - MAX_SKEW - 1}, "behind"),
    ],
)
async def test_who_does_not_fit_is_told_what_to_do_and_nothing_is_agreed(
    other: dict[str, Any], said: str
) -> None:
    async def submit(_: Command, *__: Any, **___: Any) -> None:
        raise AssertionError("nobody may be asked")

    clock, elections = SimpleNamespace(wall=lambda: stamp.from_seconds(NOW)), SimpleNamespace(submit=submit)
    admissions = Admissions(1, "0.3.0", clock, elections)  # type: ignore[arg-type]
    with pytest.raises(RefusedError, match=said) as refused:
        await admissions.readmit(2, returning(**other))
    assert refused.value.hint
    with pytest.raises(AssertionError, match="nobody may be asked"):
        await admissions.readmit(2, returning())
