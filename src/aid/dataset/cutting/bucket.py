"""Which size a picture gets, and which part of it is kept.

Three rules by name. `fitted` (see fitting.py) makes its sizes for the pictures at hand. `kohya` has those of
kohya-ss/sd-scripts: edges in steps, area at most resolution², the nearest told by the linear aspect. `nai`
has those of NovelAI's aspect-ratio bucketing: one and a half times that area, the nearest told by |log
aspect|, so that 2:1 and 1:2 count alike. Under the latter two, a picture too small for its bucket takes the
same choice among the buckets of the next smaller area; none of the three enlarges unless told to.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aid.dataset.cutting.fitting import Size, aspect, fit_sizes, lost
from aid.dataset.settings import PrepareSettings

__all__ = ["Rule", "Size", "aspect", "bucket_sizes", "crop_box", "ladder", "rules"]
NAI_AREA = 1.5  # of resolution²: 512x768 at 512


@dataclass(frozen=True)
class Rule:
    """The choice at one resolution. `fitted` sizes come first where there are any; the rungs of smaller and
    smaller areas take what fits none of them."""

    edge_px: int
    fitted: tuple[Size, ...]
    rungs: tuple[tuple[Size, ...], ...]
    linear: bool
    upscale: bool

    def choose(self, width: int, height: int) -> Size | None:
        """The size of a picture; None if it had to be enlarged even for the smallest."""
        if self.fitted:
            area = self.edge_px**2
            losses = [(lost((width, height), size, area, self.upscale), size) for size in self.fitted]
            least, size = min(losses)
            if math.isfinite(least):
                return size
        return self._climb(width, height)

    def _climb(self, width: int, height: int) -> Size | None:
        """The bucket of nearest aspect on the highest rung that needs no enlarging."""
        for sizes in self.rungs:
            best = min(sizes, key=lambda size: (self._error(width, height, size), -size[0] * size[1]))
            if self.upscale or (best[0] <= width and best[1] <= height):
                return best
        return None

    def _error(self, width: int, height: int, size: Size) -> float:
        if self.linear:
            return abs(width / height - size[0] / size[1])
        return abs(math.log(width / height) - math.log(size[0] / size[1]))


def rules(pictures: Mapping[Size, int], settings: PrepareSettings) -> tuple[Rule, ...]:
    """A rule for each resolution, largest first; `pictures` says how many there are of each size."""
    edges = sorted({settings.resolution_px, *settings.more_resolutions_px}, reverse=True)
    return tuple(_rule(edge, pictures, settings) for edge in edges)


def _rule(edge_px: int, pictures: Mapping[Size, int], settings: PrepareSettings) -> Rule:
    fitted: Sequence[Size] = ()
    if settings.shapes:
        fitted = [size for size in map(read_size, settings.shapes) if size[0] * size[1] <= edge_px**2]
    elif settings.buckets and settings.bucketing == "fitted":
        fitted = fit_sizes(pictures, edge_px, settings)
    linear = settings.bucketing == "kohya"
    return Rule(edge_px, tuple(fitted), ladder(edge_px, settings), linear, settings.upscale)


def read_size(text: str) -> Size:
    """`512x768` -> (512, 768)."""
    width, _, height = text.partition("x")
    return int(width), int(height)


def ladder(edge_px: int, settings: PrepareSettings) -> tuple[tuple[Size, ...], ...]:
    """The buckets of every area, largest first; only the largest when pictures may be enlarged."""
    edges = range(edge_px, 0, -settings.bucket_step_px)
    return tuple(bucket_sizes(edge, settings) for edge in (edges[:1] if settings.upscale else edges))


def bucket_sizes(edge_px: int, settings: PrepareSettings) -> tuple[Size, ...]:
    """Every bucket of at most the area that goes with `edge_px`, sorted; its edge limits shrink alike."""
    step, sizes = settings.bucket_step_px, {(edge_px, edge_px)}
    if not settings.buckets:
        return tuple(sizes)
    area = edge_px * edge_px * (NAI_AREA if settings.bucketing == "nai" else 1.0)
    shrink = edge_px / settings.resolution_px
    low = max(step, math.floor(settings.shortest_px * shrink / step) * step)
    high = max(edge_px, math.floor(settings.longest_px * shrink / step) * step)
    for width in range(low, high + 1, step):
        height = min(high, int(area // width) // step * step)
        if height >= low and aspect(width, height) <= settings.aspect_limit:
            sizes |= {(width, height), (height, width)}
    return tuple(sorted(sizes))


def crop_box(width: int, height: int, size: Size) -> tuple[float, float, float, float]:
    """The largest centred part of a picture with the bucket's aspect: left, top, right, bottom, pixels."""
    scale = max(size[0] / width, size[1] / height)
    kept_width, kept_height = min(width, size[0] / scale), min(height, size[1] / scale)
    left, top = (width - kept_width) / 2, (height - kept_height) / 2
    return left, top, min(width, left + kept_width), min(height, top + kept_height)
