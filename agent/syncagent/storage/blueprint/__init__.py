"""What a new site needs before rows can come: the attached tables, and all they are made of, as SQL of the donor.

The way: `take` at the donor, send the Blueprint, then at the new site `missing`, `differences`, `obstacles`,
`blueprint.only(...)` for the tables that are missing, `build_before`, rows, `build_keys`, `build_after`.
"""

from syncagent.storage.blueprint.building import build_after, build_before, build_keys
from syncagent.storage.blueprint.comparing import differences, missing, obstacles
from syncagent.storage.blueprint.parts import Blueprint
from syncagent.storage.blueprint.taking import take

__all__ = [
    "Blueprint",
    "build_after",
    "build_before",
    "build_keys",
    "differences",
    "missing",
    "obstacles",
    "take",
]
