"""Adapters baked into a merge, each at a weight of its own for every block. What is here needs torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import torch
from torch import Tensor

from aid.merge.decomposition import one_thread
from aid.merge.mode import Shape, parts_of
from aid.sd.adapter.bake import plan_bake
from aid.sd.adapter.file import load_adapter
from aid.sd.adapter.use import Step, Use, with_steps
from aid.sd.model.architecture import Architecture
from aid.sd.model.layouts import Place

ROWS = 1 << 16  # values of whole rows that are baked at once
Steps = dict[tuple[Place, str], list[Step]]


@dataclass(frozen=True, eq=False)
class Bake:
    """What adapters do to one tensor of a file, some rows at a time where every one of them allows that."""

    shape: Shape
    steps: Steps

    @cached_property
    def grain(self) -> int:
        by_rows = all(
            not place.transposed and change.by_rows
            for (place, _), own in self.steps.items()
            for change, _ in own
        )
        return parts_of(math.prod(self.shape[1:]), ROWS) if by_rows else math.prod(self.shape)

    @torch.no_grad()
    def __call__(self, values: memoryview, start: int) -> None:
        """Always the same rows together, by one thread: else products are summed in another order."""
        row, flat = math.prod(self.shape[1:]), torch.frombuffer(values, dtype=torch.float32)
        with one_thread():
            for at in range(0, len(flat), self.grain):
                rows = flat[at : at + self.grain].view(-1, *self.shape[1:])
                self._bake(rows, (start + at) // row)

    def _bake(self, rows: Tensor, first: int) -> None:
        """The file's rows from that one on."""
        for (place, parameter), own in _read(self).items():
            if len(rows) == self.shape[0]:
                view = place.take(rows)
                view.copy_(with_steps(view, parameter, own))
                continue
            height = self.shape[0] // (1 if place.third is None else 3)
            above = height * (place.third or 0)
            here, end = max(first, above), min(first + len(rows), above + height)
            if here < end:
                view = rows[here - first : end - first]
                cut = [(change.rows(here - above, end - above), strength) for change, strength in own]
                view.copy_(with_steps(view, parameter, cut))


@lru_cache(maxsize=2)  # threads are at work on tensors side by side
def _read(bake: Bake) -> Steps:
    return {
        place: [(change.read(), strength) for change, strength in own] for place, own in bake.steps.items()
    }


def plan_adapters(
    adapters: Mapping[str, Path],
    weights: Mapping[str, Mapping[str, float]],
    architecture: Architecture,
    block: Callable[[str], str],
    shapes: Mapping[str, Shape],
) -> dict[str, Bake]:
    """For each tensor that an adapter changes, what becomes of it; `shapes` are the file's. Negative weights
    take away.

    Raises ModelError for an adapter that doesn't fit the architecture, before any tensor is read.
    """
    steps: dict[str, Steps] = {}
    for name, path in sorted(adapters.items()):
        for key, places in plan_bake(architecture, [Use(load_adapter(path, kept=False))]).steps.items():
            weight = weights[name][block(key)]
            for place, parameter, own in places if weight else ():
                weighed = [(change, strength * weight) for change, strength in own]
                steps.setdefault(key, {}).setdefault((place, parameter), []).extend(weighed)
    return {key: Bake(shapes.get(key, ()), own) for key, own in steps.items()}
