"""What a picture may look like and still be judged the same: shifted, mirrored, softer, noisier."""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torch.nn import functional

SHIFT_PX = 3
GAIN = 0.08
OFFSET = 0.04
NOISE = 0.06
BLOCK_PX = 4  # JPEG's 8 px at half the size


def augment(pictures: Tensor, generator: Generator, flip: bool, spoil: float) -> Tensor:
    """uint8 [b, 3, h, w] -> float 0..1 of the same shape; every draw from `generator` (CPU), each
    picture its own. `spoil` 0..1 scales blur, blocks and noise: half of the pictures get each.
    """
    x = _moved(pictures, generator, flip).float() / 255.0
    soft = functional.interpolate(functional.avg_pool2d(x, 2), scale_factor=2, mode="bilinear")
    blocks = functional.interpolate(functional.avg_pool2d(x, BLOCK_PX), scale_factor=BLOCK_PX)
    x = x + _half(x, generator, spoil) * (soft - x) + _half(x, generator, 0.3 * spoil) * (blocks - x)
    gain = 1 + GAIN * _signed(x, generator, 1)
    offset = OFFSET * _signed(x, generator, 3)
    noise = torch.randn(pictures.shape, generator=generator).to(x.device)
    return x * gain + offset + _half(x, generator, NOISE * spoil) * noise


def _moved(pictures: Tensor, generator: Generator, flip: bool) -> Tensor:
    """Shift with repeated edges and mirror, by indexing rows and columns."""
    count, _, height, width = pictures.shape
    shift = torch.randint(-SHIFT_PX, SHIFT_PX + 1, (2, count, 1), generator=generator)
    rows = (torch.arange(height) + shift[0]).clamp(0, height - 1)
    columns = (torch.arange(width) + shift[1]).clamp(0, width - 1)
    mirrored = torch.rand(count, 1, generator=generator) < (0.5 if flip else 0.0)
    columns = torch.where(mirrored, columns.flip(1), columns)
    every = torch.arange(count)[:, None, None]
    index = (every, slice(None), rows[:, :, None], columns[:, None, :])
    return pictures[index].permute(0, 3, 1, 2)


def _half(x: Tensor, generator: Generator, most: float) -> Tensor:
    """[b, 1, 1, 1]: 0 for half of the pictures, else uniform up to `most`."""
    draw = torch.rand(len(x), 1, 1, 1, generator=generator) * 2 - 1
    return (draw.clamp(min=0) * most).to(x.device)


def _signed(x: Tensor, generator: Generator, channels: int) -> Tensor:
    return (torch.rand(len(x), channels, 1, 1, generator=generator) * 2 - 1).to(x.device)
