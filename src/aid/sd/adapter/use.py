"""Adapters at work on a loaded model: put on at any weights, changed cheaply, taken off without a trace.

The text encoders (`text_weight`) and the U-Net (`unet_weight`) are weighted apart, as A1111's
`<lora:name:te:unet>` does. Every change is computed in float32 from the model's own weights and rounded
once; those are kept, so that taking adapters off gives back the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from aid.errors import ModelError
from aid.sd.adapter.file import Adapter, Change
from aid.sd.adapter.kind import fits, magnitude_axis
from aid.sd.adapter.name import UNET
from aid.sd.adapter.target import Target, targets_of
from aid.sd.model.architecture import FAMILY_NAMES

if TYPE_CHECKING:  # who bakes waits for no diffusers
    from aid.sd.model.checkpoint import StableDiffusion


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


class Fitting:
    """The adapters that a model wears. `keep` is where the touched modules' own weights stay meanwhile:
    None for beside the model; the CPU takes no memory of a GPU, and time whenever adapters change.

    fitting = Fitting(model)
    matches = fitting.wear([Use(adapter, 0.8, 0.8)])   # again with other weights or adapters, any time
    fitting.wear([])                                   # the model's own weights, the same bytes
    """

    def __init__(self, model: StableDiffusion, keep: torch.device | str | None = None) -> None:
        self._keep = keep
        self._family = FAMILY_NAMES[model.architecture.family]
        self._targets = targets_of(model)
        self._worn: dict[str, list[Step]] = {}
        self._own: dict[tuple[str, str], Tensor] = {}

    @torch.no_grad()
    def wear(self, uses: Iterable[Use]) -> list[Match]:
        """Make the model its own weights plus these uses, in this order. Only modules that change are
        computed. Raises ModelError, before anything changes, for an adapter that doesn't fit."""
        wanted: dict[str, list[Step]] = {}
        matches = []
        for use in map(Use._make, uses):
            matches.append(match(use.adapter, self._targets, self._family))
            for target, step in steps_of(use, self._targets):
                wanted.setdefault(target.name, []).append(step)
        try:
            for name in sorted({*self._worn, *wanted}):
                if wanted.get(name) != self._worn.get(name):
                    self._set(self._targets[name], wanted.get(name, []))
        except BaseException:
            self._take_off()
            raise
        return matches

    def _take_off(self) -> None:
        for name in {name for name, _ in self._own}:
            self._set(self._targets[name], [])

    def _set(self, target: Target, steps: list[Step]) -> None:
        """Compute one module from its own weights; without steps, put these back."""
        for place, parameter in (("weight", target.weight), ("bias", target.bias)):
            touched = [step for step in steps if touches(step[0], place)]
            if parameter is None or not (touched or (target.name, place) in self._own):
                continue
            key = (target.name, place)
            if key not in self._own:
                self._own[key] = parameter.detach().to(self._keep or parameter.device, copy=True)
            own = self._own[key]
            parameter.copy_(with_steps(own.to(parameter.device), place, touched) if touched else own)
            if not touched:
                del self._own[key]
        if steps:
            self._worn[target.name] = steps
        else:
            self._worn.pop(target.name, None)


@contextmanager
def applied(model: StableDiffusion, uses: Iterable[Use]) -> Iterator[list[Match]]:
    """The model with adapters on inside the `with`, and its own weights after it."""
    fitting = Fitting(model)
    try:
        yield fitting.wear(uses)
    finally:
        fitting.wear([])


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
        found, expected = tuple(change.bias.shape), target.bias_shape
        fit = change.bias.numel() == expected[0]
    if fit and change.magnitude is not None:
        found = tuple(change.magnitude.shape)
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


def with_steps(own: Tensor, place: str, steps: Sequence[Step]) -> Tensor:
    """A parameter with its steps, one after another as A1111 adds them, in float32."""
    total = own.to(torch.float32, copy=True)
    for change, strength in steps:
        put = change.applied if place == "weight" else change.applied_to_bias
        total = put(total, strength)
    return total
