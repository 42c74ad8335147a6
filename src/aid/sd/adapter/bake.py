"""What adapters do to a single file's tensors, under their LDM names."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from aid.errors import ModelError
from aid.sd.adapter.file import Adapter
from aid.sd.adapter.target import Target, skeleton
from aid.sd.adapter.use import Step, Use, match, steps_of, touches
from aid.sd.file.header import FLOATING, Format
from aid.sd.model.architecture import FAMILY_NAMES, Architecture
from aid.sd.model.layouts import Place

Baking = dict[tuple[Place, str], list[Step]]
"""What happens to one tensor of a file: at each place in it, as a module's `weight` or `bias`."""


def unmatched(architecture: Architecture, adapters: Iterable[Adapter]) -> list[str]:
    """What of adapters will change nothing, to tell a person. Raises ModelError as `plan_bake` does."""
    targets, family = skeleton(architecture), FAMILY_NAMES[architecture.family]
    found = [match(one, targets, family).sentence() for one in adapters]
    found += [f"{one.name} changes no weight: it holds embeddings" for one in adapters if not one.changes]
    return [sentence for sentence in found if sentence]


def plan_bake(
    architecture: Architecture, uses: Iterable[Use], formats: Mapping[str, Format]
) -> dict[str, Baking]:
    """For each key that a use touches; `formats` are the file's.

    Raises ModelError for an adapter, or a file, that doesn't fit the architecture, before any tensor is read.
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
                own = target.shape if parameter == "weight" else target.bias_shape
                _require_fit(place, own or (), formats)
                table.setdefault(place.key, {})[place, parameter] = touched
    return table


def _require_fit(place: Place, own: tuple[int, ...], formats: Mapping[str, Format]) -> None:
    """Raises ModelError for a tensor that isn't what the architecture says. Linear layers may be 1x1
    convolutions."""
    if (found := formats.get(place.key)) is None:
        return
    expected = place.shape(own)
    if found.shape[:1] != expected[:1] or math.prod(found.shape) != math.prod(expected):
        raise ModelError(f"{place.key} is {list(found.shape)} in the checkpoint", f"{list(expected)}")
    if found.name not in FLOATING:
        raise ModelError(f"{place.key} holds {found.name} in the checkpoint", "floating point")
