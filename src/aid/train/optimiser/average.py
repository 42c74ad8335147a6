"""Averaged weights (EMA): what is saved, sampled and judged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from aid.train.optimiser.rounding import find_rounding, mixed, random_bits, store, strips

LONGEST = 8  # steps from one update to the next
AVERAGES = 0xFFFFFFFF  # their rounding's places, beside the weights' from 0 on
FINENESS = 20  # updates at least within the steps that it remembers


class Average:
    """An exponential moving average of parameters, in their type; bfloat16 is rounded at random, by `seed`.
    Its decay d warms up as (1 + n) / (10 + n). As it comes to remember many steps, 1 / (1 - d), it is brought
    up to date at every 2nd, 4th, then 8th only: each time costs a third of the optimiser's step."""

    def __init__(self, parameters: Sequence[Tensor], decay: float, seed: int = 0) -> None:
        self.parameters, self.decay, self.seed = list(parameters), decay, seed
        self.values = [parameter.detach().clone() for parameter in parameters]
        pairs = list(zip(self.values, self.parameters, strict=True))
        exact = [pair for pair in pairs if pair[0].dtype == torch.float32]
        self.exact = [list(group) for _, group in groupby(exact, lambda pair: type(pair[0]))]
        self.rounded = [pair for pair in pairs if pair[0].dtype != torch.float32]
        self.kernel: Any = None  # of a GPU, once it was asked for

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        if (step + 1) % (steps := interval(decay)):
            return
        share = 1 - decay**steps
        for pairs in self.exact:
            values, parameters = zip(*pairs, strict=True)
            torch._foreach_lerp_(values, parameters, share)
        if self.rounded:
            self._round(step, share)

    def _round(self, step: int, share: float) -> None:
        values, parameters = zip(*self.rounded, strict=True)
        if values[0].is_cuda and (kind := find_rounding()):
            self.kernel = self.kernel or kind()
            seed = mixed(self.seed, step, AVERAGES)
            self.kernel.follow(values, parameters, range(len(values)), seed, share)
            return
        for index, (value, parameter) in enumerate(self.rounded):
            chance = random_bits(self.seed, step, AVERAGES - index, value.device)
            for v, p in strips(value, parameter):
                store(v, v.float().lerp_(p.float(), share), chance)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model holds the averaged weights inside the block, and its own again after it."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        """Weights and averages change places, one pair at a time: no memory for all of them is needed."""
        for parameter, value in zip(self.parameters, self.values, strict=True):
            own = _kept(parameter.detach())
            parameter.copy_(value)
            value.copy_(own)


def _kept(weight: Tensor) -> Tensor:
    """A copy, on the CPU where a GPU is full: an exchange that ended halfway would leave weights of two
    models, with which a training that goes on without its sample sheet would go on."""
    try:
        return weight.clone()
    except torch.OutOfMemoryError:
        return weight.to("cpu", copy=True)


def interval(decay: float) -> int:
    """Steps from one update to the next, a power of two."""
    remembered = 1 / (1 - decay) / FINENESS
    return 1 << min(int(max(1.0, remembered)), LONGEST).bit_length() - 1
