"""What an adapter is to do to a model, and whether the model has a place for it.

The text encoders (`text_weight`) and the U-Net (`unet_weight`) are weighted apart, as A1111's
`<lora:name:te:unet>` does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from aid.errors import ModelError
from aid.sd.adapter.file import Adapter, Change
from aid.sd.adapter.kind import fits, magnitude_axis
from aid.sd.adapter.name import UNET
from aid.sd.adapter.target import Target


class Use(NamedTuple):
    """An adapter at a weight for the text encoders and one for the U-Net; 0 leaves a part alone, and
    negative weights take away."""

    adapter: Adapter
    text_weight: float = 1.0
    unet_weight: float = 1.0

    def strength(self, name: str) -> float:
        """The weight of the part that a module is in."""
        return self.unet_weight if name.startswith(UNET) else self.text_weight


@dataclass(frozen=True)
class Match:
    """How much of an adapter the model has a place for: the number of modules matched, and the names of
    those that it lacks or whose keys are of no known kind, as the file calls them."""

    name: str
    matched: int
    unmatched: tuple[str, ...] = ()

    def sentence(self) -> str:
        """What to tell a person; empty if everything matched."""
        if not self.unmatched:
            return ""
        few = ", ".join(self.unmatched[:3]) + (", ..." if len(self.unmatched) > 3 else "")
        total = self.matched + len(self.unmatched)
        return f"{self.name}: {len(self.unmatched)} of {total} parts have no place in this model ({few})"


Step = tuple[Change, float]


def steps_of(use: Use, targets: Mapping[str, Target]) -> Iterator[tuple[Target, Step]]:
    """What a use does to each module that the model has and that it isn't to leave alone."""
    for name, change in use.adapter.changes.items():
        if name in targets and use.strength(name):
            yield targets[name], (change, use.strength(name))


def match(adapter: Adapter, targets: Mapping[str, Target], family: str) -> Match:
    """Whether a model has a place for every change. Raises ModelError for an adapter of which nothing
    matches, or of which something has another shape, naming the family that it is for."""
    unmatched = list(adapter.unread)
    for name, change in adapter.changes.items():
        target = targets.get(name)
        if target is None:
            unmatched.append(change.raw)
        else:
            _require_fit(adapter, change, target, family)
            if change.bias is not None and target.bias_shape is None:
                unmatched.append(f"{change.raw} (bias)")
    matched = sum(name in targets for name in adapter.changes)
    if adapter.changes and not matched:
        raise ModelError(
            f"{adapter.path} matches no module of this {family} model ({_for(adapter)})",
            f"an adapter for {family}",
            f"It changes {len(unmatched)} modules such as {unmatched[0]}.",
        )
    return Match(adapter.name, matched, tuple(unmatched))


def _require_fit(adapter: Adapter, change: Change, target: Target, family: str) -> None:
    fit = change.kind is None or fits(change.shape, target.shape)
    found, expected = change.shape, target.shape
    if fit and change.bias is not None and target.bias_shape is not None:
        found, expected = change.bias.shape, target.bias_shape
        fit = math.prod(found) == expected[0]
    if fit and change.magnitude is not None:
        found = change.magnitude.shape
        try:
            magnitude_axis(found, target.shape)
        except ValueError:
            fit = False
    if not fit:
        raise ModelError(
            f"{adapter.path}: {change.raw} is for {list(found)} ({_for(adapter)})",
            f"{list(expected)}, as this {family} model has there",
        )


def _for(adapter: Adapter) -> str:
    return f"it is for {adapter.family}" if adapter.family else "the file doesn't tell its family"


def touches(change: Change, place: str) -> bool:
    """Whether a change concerns a module's `weight` or its `bias`."""
    return change.kind is not None if place == "weight" else change.bias is not None
