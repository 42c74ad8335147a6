"""Adapters baked into a merge, each at a weight of its own for every block. What is here needs torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from aid.merge.evaluation import Array, Bake
from aid.sd.adapter.bake import plan_bake
from aid.sd.adapter.file import load_adapter
from aid.sd.adapter.use import Step, Use, with_steps
from aid.sd.model.architecture import Architecture
from aid.sd.model.layouts import Place

Steps = dict[tuple[Place, str], list[Step]]


def plan_adapters(
    adapters: Mapping[str, Path],
    weights: Mapping[str, Mapping[str, float]],
    architecture: Architecture,
    block: Callable[[str], str],
) -> dict[str, Bake]:
    """For each tensor that an adapter changes, what becomes of it. Negative weights take away.

    Raises ModelError for an adapter that doesn't fit the architecture, before any tensor is read.
    """
    steps: dict[str, Steps] = {}
    for name, path in sorted(adapters.items()):
        for key, places in plan_bake(architecture, [Use(load_adapter(path))]).steps.items():
            weight = weights[name][block(key)]
            for place, parameter, own in places if weight else ():
                weighed = [(change, strength * weight) for change, strength in own]
                steps.setdefault(key, {}).setdefault((place, parameter), []).extend(weighed)
    return {key: _bake(own) for key, own in steps.items()}


def _bake(steps: Steps) -> Bake:
    @torch.no_grad()
    def bake(values: Array) -> Array:
        whole, threads = torch.from_numpy(values), torch.get_num_threads()
        torch.set_num_threads(1)  # with more, products are summed in another order
        try:
            for (place, parameter), own in steps.items():
                view = place.take(whole)
                view.copy_(with_steps(view, parameter, own))
        finally:
            torch.set_num_threads(threads)
        return whole.numpy()

    return bake
