"""High-frequency statistics of a picture: how much of it is flat, shaded, edge, and on a block grid.

Illustrations have crisp edges and clean areas in proportions that are their artist's own. Noise fills
the clean areas, blur empties the crisp edges, compression and a VAE's decoder leave a grid of 8
pixels. So the vector counts, at two scales, for light and for colour, the share of pixels whose
Laplacian exceeds each of four steps (in 8-bit levels), and compares differences across the grid
with those inside it. Shares are taken as logarithms: from 0.1 % to 1 % of grain is as much a change
as from 10 % to 100 %.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

LEVELS = (3.0, 10.0, 30.0, 90.0)  # a 4-neighbour Laplacian multiplies noise by sqrt(20)
SCALES = 2
GRID_PX = 8
LEAST = 1e-3  # share below which a picture counts as having none
SIZE = 1 + len(LEVELS) * SCALES * 2
LEAST_SPREAD = (0.05, *[0.15] * (SIZE - 1))
"""Of each number. Where a style has no grain at all it has no spread, and any grain would be endless."""

Plane = NDArray[np.float32]


def texture(pixels: NDArray[np.uint8]) -> Plane:
    """uint8 [h, w, 3], both edges at least 16 -> float32 [SIZE]."""
    light, *colour = _planes(pixels)
    values = [_grid(light)]
    for _ in range(SCALES):
        values += _shares(_laplacian(light))
        values += _shares(np.maximum(*map(_laplacian, colour)))
        light, *colour = map(_halved, (light, *colour))
    return np.array(values, np.float32)


def _planes(pixels: NDArray[np.uint8]) -> tuple[Plane, Plane, Plane]:
    """Y, Cb, Cr of ITU-R BT.601 without the offsets, 0..255."""
    red, green, blue = np.moveaxis(pixels.astype(np.float32), 2, 0)
    light = 0.299 * red + 0.587 * green + 0.114 * blue
    return light, 0.564 * (blue - light), 0.713 * (red - light)


def _laplacian(plane: Plane) -> Plane:
    inner = plane[1:-1, 1:-1]
    around = plane[:-2, 1:-1] + plane[2:, 1:-1] + plane[1:-1, :-2] + plane[1:-1, 2:]
    return np.abs(4 * inner - around)


def _shares(values: Plane) -> list[float]:
    return [float(np.log(np.mean(values > level) + LEAST)) for level in LEVELS]


def _halved(plane: Plane) -> Plane:
    even: Any = plane[: plane.shape[0] // 2 * 2, : plane.shape[1] // 2 * 2]
    halved: Plane = even.reshape(even.shape[0] // 2, 2, even.shape[1] // 2, 2).mean((1, 3))
    return halved


def _grid(plane: Plane) -> float:
    """How much larger steps across the 8-pixel grid are than steps inside it, both directions; in
    means of log(1 + step), so that faint blocks in clean areas count as much as drawn edges."""
    found = 0.0
    for axis in (0, 1):
        steps = np.log1p(np.abs(np.diff(plane, axis=axis))).mean(1 - axis)
        on_grid = np.arange(len(steps)) % GRID_PX == GRID_PX - 1
        found += float(steps[on_grid].mean() - steps[~on_grid].mean())
    return found
