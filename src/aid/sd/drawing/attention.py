"""Attention as drawing needs it: each row the same to the bit whatever is beside it, on a CPU.

Where it was compiled with the package and the processor has vectors of eight floats or more it is our own
kernel, 1.7 to 4 times as quick as torch's at the widths of these models; elsewhere it is torch's.
"""

from __future__ import annotations

import ctypes
import struct
from functools import cache
from math import e, log2
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LIBRARY = Path(__file__).with_name("_attention.so")
WIDEST = 256  # of a head, that the kernel takes
ATTENTION = struct.Struct("@Pqq Pqq Pqq P 5q f")  # as the kernel's `struct attention`
FEW_SCORES = 24 << 10  # of a head, 96 KiB; more don't stay in the nearest memory


def attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """softmax(Q K^T / √width of a head) V, all [b, tokens, heads * width of a head], without gradients."""
    plain = all(map(_is_plain, (query, key, value))) and query.shape[2] <= heads * WIDEST
    if plain and (kernel := find_kernel()):
        return kernel.attend(query, key, value, heads)
    return by_torch(query, key, value, heads)


def _is_plain(side: Tensor) -> bool:
    return side.is_cpu and side.dtype == torch.float32 and side.stride(2) == 1


@cache
def find_kernel() -> Kernel | None:
    """None where there is none, or nothing to be gained. The threads are torch's, which is imported."""
    try:
        library = ctypes.CDLL(str(LIBRARY))
    except OSError:
        return None
    lanes = library.aid_lanes()
    return Kernel(library, lanes) if lanes else None


class Kernel(NamedTuple):
    """`lanes`: floats of a vector, 8 or 16; queries that are computed together. Results are the same."""

    library: ctypes.CDLL
    lanes: int

    def attend(self, query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
        """float32 on the CPU, heads no wider than WIDEST, a token's numbers beside each other."""
        out = query.new_empty(query.shape)
        rows, queries, whole = query.shape
        width = whole // heads
        asked = ATTENTION.pack(
            *_side(query), *_side(key), *_side(value), out.data_ptr(),
            rows, heads, queries, key.shape[1], width,
            width**-0.5 * log2(e),  # e^x = 2^(x log2 e)
        )  # fmt: skip
        self.library.aid_attend(asked, self.lanes, torch.get_num_threads())
        return out


def _side(side: Tensor) -> tuple[int, int, int]:
    """Where its numbers begin, and how many lie from a row and from a token to the next."""
    return side.data_ptr(), side.stride(0), side.stride(1)


def by_torch(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Few scores by plain products: that is sooner done, and threads would share out the keys of one query
    or three."""
    few = query.shape[1] * key.shape[1] <= FEW_SCORES and query.dtype == torch.float32
    seen = _by_products if few else F.scaled_dot_product_attention
    apart = (side.view(*side.shape[:2], heads, -1).transpose(1, 2) for side in (query, key, value))
    return seen(*apart).transpose(1, 2).flatten(2)


def _by_products(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """[b, heads, tokens, width of a head], all laid out alike: else one row would be multiplied otherwise
    than many."""
    batch, heads, _, width = query.shape
    query, key, value = (side.flatten(0, 1).contiguous() for side in (query, key, value))
    scores = torch.baddbmm(query.new_empty(1), query, key.transpose(1, 2), beta=0, alpha=width**-0.5)
    return torch.bmm(scores.softmax(-1), value).view(batch, heads, *query.shape[1:])
