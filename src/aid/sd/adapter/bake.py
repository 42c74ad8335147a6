"""Adapters baked into a single file's tensors, under their LDM names: nothing is left to load beside it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from aid.errors import ModelError
from aid.sd.adapter.target import Target, skeleton
from aid.sd.adapter.use import Match, Step, Use, match, steps_of, touches, with_steps
from aid.sd.file.tensorfile import is_finite
from aid.sd.model.architecture import FAMILY_NAMES, Architecture
from aid.sd.model.layouts import Place


@dataclass(frozen=True)
class Bake:
    """What a set of uses does to a single file, one tensor at a time: `bake` gives the key's new tensor,
    in its own dtype, and every key that no use touches as it is."""

    steps: Mapping[str, list[tuple[Place, str, list[Step]]]]
    matches: list[Match]

    def __contains__(self, key: str) -> bool:
        return key in self.steps

    @torch.no_grad()
    def bake(self, key: str, tensor: Tensor) -> Tensor:
        """Computed in float32 and rounded once. Raises ModelError if a value doesn't fit the dtype."""
        if key not in self.steps:
            return tensor
        whole = tensor.to(torch.float32, copy=True)
        for place, parameter, steps in self.steps[key]:
            view = place.take(whole)
            view.copy_(with_steps(view, parameter, steps))
        rounded = whole.to(tensor.dtype)
        if not is_finite(rounded):
            short = str(tensor.dtype).removeprefix("torch.")
            raise ModelError(f"{key} holds values too large for {short}", next_step="Use smaller weights.")
        return rounded


def plan_bake(architecture: Architecture, uses: Iterable[Use], untransposed: bool = False) -> Bake:
    """`untransposed`: the file's SDXL `text_projection` is as `open_weights` describes it.

    Raises ModelError for an adapter that doesn't fit the architecture, before any tensor is read.
    """
    targets = skeleton(architecture)
    matches: list[Match] = []
    wanted: dict[str, tuple[Target, list[Step]]] = {}
    for use in map(Use._make, uses):
        matches.append(match(use.adapter, targets, FAMILY_NAMES[architecture.family]))
        for target, step in steps_of(use, targets):
            wanted.setdefault(target.name, (target, []))[1].append(step)
    table: dict[str, list[tuple[Place, str, list[Step]]]] = {}
    for target, steps in wanted.values():
        for parameter, present in (("weight", True), ("bias", target.bias_shape is not None)):
            touched = [step for step in steps if present and touches(step[0], parameter)]
            if touched:
                place = target.place(parameter, architecture.family)
                place = replace(place, transposed=place.transposed and not untransposed)
                table.setdefault(place.key, []).append((place, parameter, touched))
    return Bake(table, matches)


def bake(
    tensors: Mapping[str, Tensor], architecture: Architecture, uses: Iterable[Use], untransposed: bool = False
) -> dict[str, Tensor]:
    """A whole file's tensors with adapters in them. Raises ModelError as `plan_bake` does, and if the file
    lacks a tensor that is to change."""
    plan = plan_bake(architecture, uses, untransposed)
    if missing := plan.steps.keys() - tensors.keys():
        raise ModelError(f"the checkpoint lacks {min(missing)}", "every tensor that an adapter changes")
    return {key: plan.bake(key, tensor) for key, tensor in tensors.items()}
