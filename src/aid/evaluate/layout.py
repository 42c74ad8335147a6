"""Where a picture's colours are, and whether that is a training picture's.

The judge's features tell styles and tags apart and let the rest collapse: two pictures of the same
tags look alike to them. What makes a copy is its layout. 8 x 8 mean colours, less the picture's mean,
survive the softness, grain and slight change of light that a model adds to a picture it remembers.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

CELLS = 8


def layout(thumbnails: Tensor) -> Tensor:
    """uint8 [n, 3, 64, 64] -> float [n, 192], 0..1 less the mean of each channel."""
    cells = functional.adaptive_avg_pool2d(thumbnails.float() / 255.0, CELLS)
    return (cells - cells.mean((2, 3), keepdim=True)).flatten(1)


def nearest(train: Tensor, layouts: Tensor) -> Tensor:
    """[n]: the distance to the nearest training picture, of any style."""
    return torch.cat([torch.cdist(part, train).min(1).values for part in torch.split(layouts, 256)])
