"""What torch draws on a CUDA device, computed on the CPU: Philox4x32-10 and the Box-Muller transform.

Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"; A1111 rng_philox.py ("NV").
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
MASK = 0xFFFFFFFF
UNIT = np.float32(2.3283064e-10)  # 2**-32
TURN = np.float32(2.3283064e-10 * 6.2831855)  # 2π 2**-32

Words = NDArray[np.uint64]


class Philox:
    """Successive draws of torch.randn on CUDA from one seed, below 2**64; below 0 it is 2**64 more."""

    def __init__(self, seed: int) -> None:
        self.key = seed & MASK, seed >> 32 & MASK
        self.offset = 0

    def __call__(self, shape: tuple[int, ...]) -> Tensor:
        """The next standard normal noise, float32."""
        count = math.prod(shape)
        x, y = philox_4x32(self.offset, count, self.key)
        self.offset += 1
        return torch.from_numpy(box_muller(x, y)).reshape(shape)


def philox_4x32(offset: int, count: int, key: tuple[int, int]) -> tuple[Words, Words]:
    """The first two of each element's four random words after ten rounds. Its counter is
    (offset, 0, index, 0)."""
    a = np.full(count, offset, np.uint64)
    b, d = np.zeros(count, np.uint64), np.zeros(count, np.uint64)
    c = np.arange(count, dtype=np.uint64)
    low, high = key
    for _ in range(10):
        left, right = a * np.uint64(MULTIPLIERS[0]), c * np.uint64(MULTIPLIERS[1])
        a, b = (right >> np.uint64(32)) ^ b ^ np.uint64(low), right & np.uint64(MASK)
        c, d = (left >> np.uint64(32)) ^ d ^ np.uint64(high), left & np.uint64(MASK)
        low, high = low + WEYL[0] & MASK, high + WEYL[1] & MASK
    return a, b


def box_muller(x: Words, y: Words) -> NDArray[np.float32]:
    """One normal number of each pair of words (Box and Muller 1958): the sine's, as CUDA's first."""
    u = x.astype(np.float64) * UNIT + UNIT / 2
    v = y.astype(np.float64) * TURN + TURN / 2
    return (np.sqrt(-2.0 * np.log(u)) * np.sin(v)).astype(np.float32)
