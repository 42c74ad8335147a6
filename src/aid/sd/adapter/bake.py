"""What adapters do to a single file's tensors, under their LDM names."""

from __future__ import annotations

from collections.abc import Iterable

from aid.sd.adapter.target import Target, skeleton
from aid.sd.adapter.use import Step, Use, match, steps_of, touches
from aid.sd.model.architecture import FAMILY_NAMES, Architecture
from aid.sd.model.layouts import Place

Baking = dict[tuple[Place, str], list[Step]]
"""What happens to one tensor of a file: at each place in it, as a module's `weight` or `bias`."""


def plan_bake(architecture: Architecture, uses: Iterable[Use]) -> dict[str, Baking]:
    """For each key that a use touches.

    Raises ModelError for an adapter that doesn't fit the architecture, before any tensor is read.
    """
    targets = skeleton(architecture)
    wanted: dict[str, tuple[Target, list[Step]]] = {}
    for use in uses:
        match(use.adapter, targets, FAMILY_NAMES[architecture.family])
        for target, step in steps_of(use, targets):
            wanted.setdefault(target.name, (target, []))[1].append(step)
    table: dict[str, Baking] = {}
    for target, steps in wanted.values():
        for parameter, present in (("weight", True), ("bias", target.bias_shape is not None)):
            touched = [step for step in steps if present and touches(step[0], parameter)]
            if touched:
                place = target.place(parameter, architecture.family)
                table.setdefault(place.key, {})[place, parameter] = touched
    return table
