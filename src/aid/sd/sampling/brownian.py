"""Brownian motion over σ for SDE samplers: the same path whatever levels are asked for, and in any order.

The path, its seeds and its rounding are those of torchsde's BrownianTree (Li et al. 2020, "Scalable
gradients for stochastic differential equations"), which k-diffusion and A1111 draw from: an interval's
increment is split at its middle by the Brownian bridge, with noise from a seed of the interval's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from math import sqrt
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

DIGITS = 6  # σ are rounded to; no interval is split below it
POOL = 24  # words of entropy in a seed sequence


class Interval(NamedTuple):
    """A node of the tree: its ends, and where it stands: the `place`-th of 2**depth."""

    start: float
    end: float
    place: int = 0
    depth: int = 0

    @property
    def middle(self) -> float:
        return round(0.5 * (self.end + self.start), DIGITS)

    @property
    def halves(self) -> tuple[Interval, Interval]:
        below = 2 * self.place, self.depth + 1
        return (
            Interval(self.start, self.middle, *below),
            Interval(self.middle, self.end, below[0] + 1, below[1]),
        )


class BrownianTree:
    """The path of one seed between two levels. `draw` gives standard normal noise of a seed."""

    def __init__(self, seed: int, draw: Callable[[int], Tensor], start: float, end: float) -> None:
        self.seed, self.draw = seed, draw
        self.whole = Interval(round(start, DIGITS), round(end, DIGITS))
        self.increment = draw(self._word()) * sqrt(end - start)
        self._halves: dict[Interval, tuple[Tensor, Tensor]] = {}
        self._visited: dict[Interval, tuple[Tensor, Tensor]] = {}

    def __call__(self, start: float, end: float) -> Tensor:
        """The increment from `start` to `end`, held within the tree's ends."""
        low, high = self.whole[:2]
        start, end = (min(max(at, low), high) for at in (start, end))
        start, end = round(start, DIGITS), round(end, DIGITS)
        if start == end:
            return torch.zeros_like(self.increment)
        parts = self._cover(self.whole, self.increment, start, end)
        # Successive steps share most of their way down: the intervals of the last are kept, and no more.
        self._halves, self._visited = self._visited, {}
        return reduce(torch.add, parts)

    def _cover(self, interval: Interval, increment: Tensor, start: float, end: float) -> list[Tensor]:
        """The increments of the fewest intervals that make up `start` to `end`, in order."""
        if start <= interval.start and interval.end <= end:
            return [increment]
        parts = []
        for half, part in zip(interval.halves, self._split(interval, increment), strict=True):
            if start < half.end and half.start < end:
                parts += self._cover(half, part, start, end)
        return parts

    def _split(self, interval: Interval, increment: Tensor) -> tuple[Tensor, Tensor]:
        known = self._visited.get(interval) or self._halves.get(interval)
        known = known or self._bridge(interval, increment)
        self._visited[interval] = known
        return known

    def _bridge(self, interval: Interval, increment: Tensor) -> tuple[Tensor, Tensor]:
        """The increments of both halves, given that of the whole."""
        share = 1 / (interval.end - interval.start)
        left, right = interval.middle - interval.start, interval.end - interval.middle
        noise = self.draw(self._word((interval.place, interval.depth)))
        half = left * increment * share + sqrt(left * right * share) * noise
        return half, increment - half

    def _word(self, place: tuple[int, ...] = ()) -> int:
        sequence = np.random.SeedSequence(self.seed, spawn_key=place, pool_size=POOL)
        return int(sequence.generate_state(1)[0])


class BrownianNoise:
    """The standardised increments of one tree a picture, for the samplers that A1111 gives a tree."""

    def __init__(
        self,
        seeds: Sequence[int],
        draw: Callable[[int], Tensor],
        lowest: Tensor,
        highest: Tensor,
        device: torch.device | str = "cpu",
    ) -> None:
        self.trees = [BrownianTree(seed, draw, float(lowest), float(highest)) for seed in seeds]
        self.device = device

    def __call__(self, sigma: Tensor, following: Tensor) -> Tensor:
        """Standard normal noise for the step, float32 [pictures, *shape]; the same whenever asked again."""
        ends = sorted((float(sigma), float(following)))
        increments = torch.stack([tree(*ends) for tree in self.trees])
        sign = -1 if following < sigma else 1
        scale = (following - sigma).abs().sqrt().to(increments.device)
        return (increments * sign / scale).to(self.device)
