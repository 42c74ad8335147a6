"""Which rows go into which, where a layer is multiplied with rows of others: the places of a convolution's
window."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

Pair = tuple[int, int]
WINDOWS_KEPT = 64  # a U-Net has up to 7 for a size of pictures; 10 MB the largest, of 16 at 768 px


class Taps(NamedTuple):
    """The rows of x that each row of the result is made of, `source` [taps, rows], and the rows that each of
    x goes into, `target` [taps, rows of x]; int32, -1 is none. Without them each row is its own."""

    many: int
    rows: int
    x_rows: int
    source: Tensor | None = None
    target: Tensor | None = None


@lru_cache(WINDOWS_KEPT)
def window(shape: tuple[int, int, int], size: Pair, stride: Pair, padding: Pair) -> tuple[Taps, Pair]:
    """Of a convolution over pictures [b, h, w], whose pixels are the rows; and the height and width that it
    makes. No rows if the window is larger than the pictures."""
    pictures, height, width = shape
    high, wide = (
        (whole + 2 * beyond - span) // step + 1
        for whole, beyond, span, step in zip((height, width), padding, size, stride, strict=True)
    )
    if high < 1 or wide < 1:
        return Taps(0, 0, 0), (high, wide)
    count, rows, x_rows = size[0] * size[1], pictures * high * wide, pictures * height * width
    if count == 1 and stride == (1, 1) and padding == (0, 0):
        return Taps(1, rows, rows), (high, wide)
    source = torch.full((count, rows), -1, dtype=torch.int32)
    target = torch.full((count, x_rows), -1, dtype=torch.int32)
    row = torch.arange(rows, dtype=torch.int32)
    picture, y, x = row // (high * wide), row // wide % high * stride[0], row % wide * stride[1]
    for tap in range(count):
        y_at, x_at = y + tap // size[1] - padding[0], x + tap % size[1] - padding[1]
        inside = (y_at >= 0) & (y_at < height) & (x_at >= 0) & (x_at < width)
        at = ((picture * height + y_at) * width + x_at)[inside]
        source[tap, inside] = at
        target[tap, at] = row[inside]
    return Taps(count, rows, x_rows, source, target), (high, wide)
