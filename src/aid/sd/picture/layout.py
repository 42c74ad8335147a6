"""Where a picture's colours are, and whether that is a training picture's.

A judge's features tell styles and tags apart and let the rest collapse: two pictures of the same
tags look alike to them. What makes a copy is its layout. 8 x 8 mean colours, less the picture's mean,
survive the softness, grain and slight change of light that a model adds to a picture it remembers.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

CELLS = 8
THUMBNAIL_PX = 64
COPY_QUANTILE = 0.01


def thumbnail(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 [3, 64, 64], by area; other aspects are squeezed, so that nothing is cut off."""
    small = Image.fromarray(pixels).resize((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.BOX)
    return np.ascontiguousarray(np.moveaxis(np.asarray(small), 2, 0))


def layout(thumbnails: Tensor) -> Tensor:
    """uint8 [n, 3, 64, 64] -> float [n, 192], 0..1 less the mean of each channel."""
    cells = functional.adaptive_avg_pool2d(thumbnails.float() / 255.0, CELLS)
    return (cells - cells.mean((2, 3), keepdim=True)).flatten(1)


def nearest(train: Tensor, layouts: Tensor) -> tuple[Tensor, Tensor]:
    """[n] and [n]: the distance to the nearest training picture, of any style, and its row."""
    found = [torch.cdist(part, train).min(1) for part in torch.split(layouts, 256)]
    return torch.cat([one.values for one in found]), torch.cat([one.indices for one in found])


def copy_distance(train: Tensor, held: Tensor) -> float:
    """The distance that 1 % of held-out pictures come nearer than; what is nearer still is a near copy."""
    return float(torch.quantile(nearest(train, held)[0].double(), COPY_QUANTILE))
