"""Which size a picture gets, and which part of it is kept.

Buckets are those of kohya-ss/sd-scripts: edges in steps, area at most resolution². The nearest is told
by |log aspect|, as NovelAI's code does, so that 2:1 and 1:2 count alike. A picture too small for its
bucket takes the same choice among the buckets of the next smaller area.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from aid.dataset.settings import PrepareSettings

Size = tuple[int, int]  # width, height


def ladder(settings: PrepareSettings) -> tuple[tuple[Size, ...], ...]:
    """The buckets of every area, largest first; only the largest when pictures may be enlarged."""
    edges = range(settings.resolution_px, 0, -settings.bucket_step_px)
    return tuple(bucket_sizes(edge, settings) for edge in (edges[:1] if settings.upscale else edges))


def bucket_sizes(edge_px: int, settings: PrepareSettings) -> tuple[Size, ...]:
    """Every bucket of at most `edge_px`² pixels, sorted; its edge limits shrink with the area."""
    step, sizes = settings.bucket_step_px, {(edge_px, edge_px)}
    if not settings.buckets:
        return tuple(sizes)
    shrink = edge_px / settings.resolution_px
    low = max(step, math.floor(settings.shortest_px * shrink / step) * step)
    high = max(edge_px, math.floor(settings.longest_px * shrink / step) * step)
    for width in range(low, high + 1, step):
        height = min(high, edge_px * edge_px // width // step * step)
        if height >= low and aspect(width, height) <= settings.aspect_limit:
            sizes |= {(width, height), (height, width)}
    return tuple(sorted(sizes))


def aspect(width: float, height: float) -> float:
    """Long edge over short edge."""
    return max(width, height) / min(width, height)


def choose(width: int, height: int, rungs: Sequence[Sequence[Size]], upscale: bool = False) -> Size | None:
    """The bucket of nearest log aspect on the highest rung that needs no enlarging; None if none does."""
    wanted = math.log(width / height)
    for sizes in rungs:
        best = min(sizes, key=lambda size: (abs(math.log(size[0] / size[1]) - wanted), -size[0] * size[1]))
        if upscale or (best[0] <= width and best[1] <= height):
            return best
    return None


def crop_box(width: int, height: int, size: Size) -> tuple[float, float, float, float]:
    """The largest centred part of a picture with the bucket's aspect: left, top, right, bottom, pixels."""
    scale = max(size[0] / width, size[1] / height)
    kept_width, kept_height = min(width, size[0] / scale), min(height, size[1] / scale)
    left, top = (width - kept_width) / 2, (height - kept_height) / 2
    return left, top, min(width, left + kept_width), min(height, top + kept_height)
