"""Bucket sizes fitted to the pictures: a few of many possible ones, chosen to lose as little as can be.

What a picture loses in a bucket is told in logarithms of pixels: what is cropped away, e = |log aspect of
picture / bucket|, worse the more it is (e + 8 e²); and, at a quarter, the resolution given up beyond what
area and picture allow. The few are found as k medians are: greedily, then by exchanging one for
another while that helps (Teitz and Bart 1968), which is exact or near it at these sizes, and depends on
nothing but the pictures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from aid.dataset.settings import PrepareSettings

Size = tuple[int, int]  # width, height
Losses = NDArray[np.float64]
BENDING = 8.0  # how much worse one large crop is than several small ones
RESOLUTION_WEIGHT = 0.25
UNFIT = 1e6  # in place of infinity, so that sums stay numbers: covering a picture comes first
LEAST_GAIN = 0.05  # pictures: what a further bucket must save
ASPECT_GRAIN = 0.01  # of log aspect: pictures nearer than that are taken as one
LIKED = 4  # times as many columns as are wanted, to begin with
EXCHANGES = 20  # rounds; three or four are usual


def aspect(width: float, height: float) -> float:
    """Long edge over short edge."""
    return max(width, height) / min(width, height)


def lost(picture: Size, size: Size, area_px: int, upscale: bool = False) -> float:
    """What `picture` loses in a bucket of `size`; infinite if it had to be enlarged and must not be."""
    return float(_losses([picture], [size], area_px, upscale)[0, 0])


def fit_sizes(pictures: Mapping[Size, int], edge_px: int, settings: PrepareSettings) -> tuple[Size, ...]:
    """At most `settings.bucket_count` sizes of at most `edge_px`² pixels for `pictures` (size -> how many of
    it), sorted; none if there are no pictures that could be used."""
    usable = {
        size: count
        for size, count in pictures.items()
        if min(size) >= max(settings.minimum_edge_px, 1 if settings.upscale else settings.bucket_step_px)
        and aspect(*size) <= settings.aspect_limit
    }
    groups = _grouped(usable, settings)
    sizes = candidates(edge_px, settings)
    if not groups or not sizes:
        return ()
    losses = _losses(list(groups), sizes, edge_px**2, settings.upscale)
    losses = np.minimum(losses, UNFIT) * np.array(list(groups.values()), dtype=np.float64)[:, None]
    return tuple(sorted(sizes[index] for index in _medians(losses, settings.bucket_count)))


def candidates(edge_px: int, settings: PrepareSettings) -> list[Size]:
    """Every size on the grid of at most `edge_px`² pixels, largest first; its edge limits shrink with it."""
    step, area = settings.bucket_step_px, edge_px**2
    low, high = settings.shortest_px / settings.resolution_px, settings.longest_px / settings.resolution_px
    edges = range(step, math.floor(edge_px * high / step) * step + 1, step)
    sizes = []
    for width in edges:
        for height in edges:
            own_edge = math.sqrt(width * height)
            shortest = math.floor(own_edge * low / step) * step
            if (
                width * height <= area
                and shortest <= min(width, height)
                and max(width, height) <= (max(own_edge * high, step))
            ):
                sizes.append((width, height))
    return sorted(
        (size for size in sizes if aspect(*size) <= settings.aspect_limit),
        key=lambda size: (-size[0] * size[1], size),
    )


def _grouped(pictures: Mapping[Size, int], settings: PrepareSettings) -> dict[Size, int]:
    """Pictures that fit the same sizes and have nearly the same aspect, as one with their number."""
    step, most = settings.bucket_step_px, 2 * max(settings.longest_px, settings.resolution_px)
    first: dict[tuple[int, int, int], Size] = {}
    groups: dict[Size, int] = {}
    for width, height in sorted(pictures):
        shape = round(math.log(width / height) / ASPECT_GRAIN)
        key = (min(width, most) // step, min(height, most) // step, shape)
        leader = first.setdefault(key, (width, height))
        groups[leader] = groups.get(leader, 0) + pictures[width, height]
    return groups


def _losses(pictures: Sequence[Size], sizes: Sequence[Size], area_px: int, upscale: bool) -> Losses:
    """[pictures, sizes]."""
    has, gets = np.array(pictures, dtype=np.float64), np.array(sizes, dtype=np.float64)
    crop = np.abs(np.log(has[:, :1] / has[:, 1:]) - np.log(gets[:, 0] / gets[:, 1]))
    room = np.full(len(has), float(area_px)) if upscale else np.minimum(has.prod(axis=1), area_px)
    coarser = np.maximum(0.0, np.log(room[:, None] / gets.prod(axis=1)))
    losses: Losses = crop + BENDING * crop**2 + RESOLUTION_WEIGHT * coarser
    if not upscale:
        losses[(gets[:, 0] > has[:, :1]) | (gets[:, 1] > has[:, 1:])] = math.inf
    return losses


def _medians(losses: Losses, count: int) -> list[int]:
    """Columns, at most `count`, whose least losses sum to little: from two starts, the better end."""
    ends = []
    for start in (_added(losses, count, []), _left(losses, count)):
        needed = _needed(losses, _exchanged(losses, start))
        ends.append(_exchanged(losses, _added(losses, count, needed)))
    return min(ends, key=lambda chosen: float(losses[:, chosen].min(axis=1).sum()))


def _left(losses: Losses, count: int) -> list[int]:
    """The columns that most pictures like best, less, one by one, those that are missed least."""
    likes = np.bincount(losses.argmin(axis=1), minlength=losses.shape[1])
    chosen = np.sort(np.argsort(-likes, kind="stable")[: min(int((likes > 0).sum()), LIKED * count)])
    while len(chosen) > count:
        chosen = np.delete(chosen, _missed(losses, chosen).argmin())
    return [int(column) for column in chosen]


def _needed(losses: Losses, chosen: Sequence[int]) -> list[int]:
    """Without those that save less than LEAST_GAIN."""
    left = np.array(chosen)
    while len(left) > 1 and (missed := _missed(losses, left)).min() < LEAST_GAIN:
        left = np.delete(left, missed.argmin())
    return [int(column) for column in left]


def _missed(losses: Losses, chosen: NDArray[np.int64]) -> Losses:
    """What would be lost more without each of the columns."""
    two = np.partition(losses[:, chosen], 1, axis=1)[:, :2]
    missed: Losses = np.zeros(len(chosen))
    np.add.at(missed, losses[:, chosen].argmin(axis=1), two[:, 1] - two[:, 0])
    return missed


def _added(losses: Losses, count: int, begun: Sequence[int]) -> list[int]:
    """One column after another, each the one that helps most, until none saves LEAST_GAIN."""
    chosen = list(begun)
    least = losses[:, chosen].min(axis=1, initial=UNFIT * (1.0 + losses.max()))
    while len(chosen) < count:
        sums = np.minimum(least[:, None], losses).sum(axis=0)
        best = int(sums.argmin())
        if least.sum() - sums[best] < LEAST_GAIN:
            break
        chosen.append(best)
        least = np.minimum(least, losses[:, best])
    return chosen


def _exchanged(losses: Losses, chosen: list[int]) -> list[int]:
    """The same number of columns, each exchanged for a better one until none helps."""
    total = losses[:, chosen].min(axis=1).sum()
    for _ in range(EXCHANGES):
        before = total
        for place in range(len(chosen)):
            others = [column for at, column in enumerate(chosen) if at != place]
            least = losses[:, others].min(axis=1) if others else np.full(len(losses), np.inf)
            sums = np.minimum(least[:, None], losses).sum(axis=0)
            if sums.min() < total - 1e-9 * max(1.0, total):
                chosen[place], total = int(sums.argmin()), sums.min()
        if total == before:
            break
    return chosen
