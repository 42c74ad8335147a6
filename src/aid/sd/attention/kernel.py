"""The compiled attention: attention.c, called with where tensors lie."""

from __future__ import annotations

import ctypes
import struct
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from aid.sd.kernel.library import load_kernel

WIDEST = 256  # of a head
ATTENTION = struct.Struct("@ 15q 5q 5q f 4x")  # as the kernel's `struct attention`
NOWHERE = (0, 0, 0)


class Kernel(NamedTuple):
    """All tensors are float32 on the CPU, heads no wider than WIDEST, a token's numbers beside each other.

    `lanes`: floats of a vector, 8 or 16; tokens that are computed together. Results are the same.
    """

    library: ctypes.CDLL
    lanes: int

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, heads: int, ends: Tensor | None = None
    ) -> Tensor:
        """[b, queries, heads * width]. Fills `ends` [b, heads, queries], which gradients need."""
        out = query.new_empty(query.shape)
        ends_at = 0 if ends is None else ends.data_ptr()
        asked = ATTENTION.pack(
            *_side(query), *_side(key), *_side(value), *NOWHERE, *NOWHERE,
            out.data_ptr(), 0, 0, ends_at, 0, *_sizes(query, key, heads),
        )  # fmt: skip
        self.library.aid_attend(asked, self.lanes, torch.get_num_threads())
        return out

    def attend_back(
        self, query: Tensor, key: Tensor, value: Tensor, out: Tensor, ends: Tensor, grad: Tensor, heads: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of query, key and value, from that of what `attend` made of them."""
        made = query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)
        means = torch.empty_like(ends)
        asked = ATTENTION.pack(
            *_side(query), *_side(key), *_side(value), *_side(out), *_side(grad),
            *(one.data_ptr() for one in made), ends.data_ptr(), means.data_ptr(), *_sizes(query, key, heads),
        )  # fmt: skip
        self.library.aid_attend_back(asked, self.lanes, torch.get_num_threads())
        return made


def _side(side: Tensor) -> tuple[int, int, int]:
    """Where its numbers begin, and how many lie from a row and from a token to the next."""
    return side.data_ptr(), side.stride(0), side.stride(1)


def _sizes(query: Tensor, key: Tensor, heads: int) -> tuple[int, int, int, int, int, float]:
    rows, queries, whole = query.shape
    width = whole // heads
    return rows, heads, queries, key.shape[1], width, width**-0.5


@cache
def find_kernel() -> Kernel | None:
    """None where there is none, or nothing to be gained."""
    found = load_kernel(__file__, ATTENTION)
    return Kernel(*found) if found else None
