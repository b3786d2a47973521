"""The dashboard against Grafana's own model of one: Grafana Labs generates that library from Grafana's schemas.

No Grafana runs here. What this shows is that each field is one that Grafana knows, at its place and of its type, so that an import
drops nothing; not what it looks like. Every panel has an answer: see test_monitoring.
"""

import copy
import enum
import json
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard, Panel

FILE = Path(__file__).parents[2] / "deploy" / "monitoring" / "syncagent-dashboard.json"
TOLD: dict[str, Any] = json.loads(FILE.read_text())
BEYOND = {f".templating.list[{n}].definition" for n in (1, 2)}
"""What Grafana writes into every dashboard that it exports, and its schema has forgotten."""


def faults(told: dict[str, Any]) -> set[str]:
    """Places that the model drops, or has another type for."""
    register_default_plugins()
    model = Dashboard.from_json(told)
    kept = json.loads(JSONEncoder().encode(model))
    return set(dropped(told, kept)) | set(misfits(model, Dashboard))


def dropped(told: Any, kept: Any, at: str = "") -> Iterator[str]:
    """A field is gone, or another one; what the model adds are defaults."""
    if isinstance(told, dict) and isinstance(kept, dict):
        for name, value in told.items():
            if name in kept:
                yield from dropped(value, kept[name], f"{at}.{name}")
            else:
                yield f"{at}.{name}"
    elif isinstance(told, list) and isinstance(kept, list) and len(told) == len(kept):
        for number, (one, other) in enumerate(zip(told, kept, strict=True)):
            yield from dropped(one, other, f"{at}[{number}]")
    elif told != kept:
        yield at


def misfits(value: Any, hint: Any, at: str = "") -> Iterator[str]:
    """Values that are not of the type that the model says."""
    if not fits(value, hint):
        yield at
        return
    for name, one, below in parts(value, hint):
        yield from misfits(one, below, at + name)


def fits(value: Any, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or is_of_model(value):
        return True
    if origin in (typing.Union, types.UnionType):
        return any(not list(misfits(value, one)) for one in arguments)
    if origin is typing.Literal:
        return value in arguments
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return value in [one.value for one in hint]
    return isinstance(value, (int, float) if hint is float else origin or hint)


def parts(value: Any, hint: Any) -> Iterator[tuple[str, Any, Any]]:
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is list:
        yield from ((f"[{number}]", one, arguments[0]) for number, one in enumerate(value))
    elif typing.get_origin(hint) is dict:
        yield from ((f".{name}", one, arguments[1]) for name, one in value.items())
    elif is_of_model(value):
        for name, below in typing.get_type_hints(type(value)).items():
            yield f".{name}", getattr(value, name), below


def is_of_model(value: Any) -> bool:
    return type(value).__module__.startswith("grafana_foundation_sdk.")


def test_grafana_knows_every_field() -> None:
    assert faults(TOLD) == BEYOND


def test_every_panel_is_one_whose_options_are_known() -> None:
    register_default_plugins()
    for panel in Dashboard.from_json(TOLD).panels or ():
        if isinstance(panel, Panel):
            assert type(panel.options).__module__.startswith("grafana_foundation_sdk."), panel.title
            assert all(type(target).__module__.endswith("prometheus") for target in panel.targets or ())


@pytest.mark.parametrize(
    "spoil",
    [
        lambda panel: panel.update(titel="x"),
        lambda panel: panel["gridPos"].update(w="12"),
        lambda panel: panel["options"]["legend"].update(displayMode="lst"),
        lambda panel: panel["options"].update(legends={}),
        lambda panel: panel["targets"][0].update(legend="x"),
        lambda panel: panel["fieldConfig"]["defaults"].update(uint="s"),
    ],
    ids=["a field of a panel", "a type", "a choice", "an option", "a target", "a default"],
)
def test_a_slip_is_found(spoil: Callable[[dict[str, Any]], None]) -> None:
    told = copy.deepcopy(TOLD)
    spoil(next(panel for panel in told["panels"] if panel["type"] == "timeseries"))
    assert faults(told) - BEYOND
