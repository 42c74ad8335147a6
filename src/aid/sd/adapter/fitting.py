"""Adapters at work on a loaded model: put on at any weights, changed cheaply, taken off without a trace.

Every change is computed in float32 from the model's own weights and rounded once; those are kept, so that
taking adapters off gives back the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from aid.sd.adapter.target import Target, targets_of
from aid.sd.adapter.use import Match, Step, Use, match, steps_of, touches
from aid.sd.model.architecture import FAMILY_NAMES
from aid.sd.model.checkpoint import StableDiffusion

SPARE = 2  # times what is kept must be free on a GPU for it to stay there: pictures need room too


class Fitting:
    """The adapters that a model wears. `keep` is where the touched modules' own weights stay meanwhile:
    by default beside the model; those that a GPU has no room for, on the CPU, which takes time whenever
    adapters change.

    fitting = Fitting(model)
    matches = fitting.wear([Use(adapter, 0.8, 0.8)])   # again with other weights or adapters, any time
    fitting.wear([])                                   # the model's own weights, the same bytes
    """

    def __init__(self, model: StableDiffusion, keep: torch.device | str | None = None) -> None:
        self._given = None if keep is None else torch.device(keep)
        self._keep = self._given
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
        if not self._own:
            self._keep = self._given or self._place(wanted)
        try:
            for name in sorted({*self._worn, *wanted}):
                if wanted.get(name) != self._worn.get(name):
                    self._set(self._targets[name], wanted.get(name, []))
        except BaseException:
            self._take_off()
            raise
        return matches

    def _place(self, wanted: Iterable[str]) -> torch.device | None:
        """Where the own weights of these modules are to stay; None while there are none."""
        weights = [self._targets[name].weight for name in wanted]
        if not weights:
            return None
        device = weights[0].device
        if device.type == "cuda":
            unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
            if not room_for(weights, torch.cuda.mem_get_info(device)[0] + unused):
                return torch.device("cpu")
        return device

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


def room_for(weights: Iterable[Tensor], free: int) -> bool:
    """Whether copies leave enough of so many free bytes."""
    return SPARE * sum(weight.nbytes for weight in weights) <= free


@contextmanager
def applied(model: StableDiffusion, uses: Iterable[Use]) -> Iterator[list[Match]]:
    """The model with adapters on inside the `with`, and its own weights after it."""
    fitting = Fitting(model)
    try:
        yield fitting.wear(uses)
    finally:
        fitting.wear([])


def with_steps(own: Tensor, place: str, steps: Sequence[Step]) -> Tensor:
    """A parameter with its steps, one after another as A1111 adds them, in float32."""
    total = own.to(torch.float32, copy=True)
    for change, strength in steps:
        put = change.applied if place == "weight" else change.applied_to_bias
        total = put(total, strength)
    return total
