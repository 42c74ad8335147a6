"""The compiled AdamW and norm of gradients: adamw.c, called with where tensors lie."""

from __future__ import annotations

import ctypes
import struct
from array import array
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from aid.sd.kernel.library import load_kernel

TENSORS = struct.Struct("@ 7q")  # as the kernel's `struct tensors`
RULE = struct.Struct("@ 6d")  # as its `struct rule`
NOWHERE = (0, 0, 0, 0)


class Rule(NamedTuple):
    """Of a step of AdamW: its rate, β₁, β₂, ε, weight decay, and what gradients are multiplied by."""

    rate: float
    first: float
    second: float
    epsilon: float
    decay: float
    scale: float


class Kernel(NamedTuple):
    """All tensors are float32 on the CPU, without gaps between their numbers."""

    library: ctypes.CDLL

    def norm(self, gradients: Sequence[Tensor]) -> float:
        """Of all their numbers together, added up in doubles."""
        counts, lie = array("q", map(Tensor.numel, gradients)), places_of(gradients)
        asked = TENSORS.pack(len(gradients), _at(counts), _at(lie), *NOWHERE)
        sums = array("d", bytes(8 * self.library.aid_pieces(asked)))
        norm: float = self.library.aid_norm(asked, ctypes.c_void_p(_at(sums)), torch.get_num_threads())
        return norm

    def move(self, gradients: Sequence[Tensor], changed: Sequence[array[int]], rule: Rule) -> None:
        """A step of AdamW. `changed` are the places of weights, means, squares and counts of steps; all that
        belongs to a weight is laid out as that is."""
        counts, lie = array("q", map(Tensor.numel, gradients)), places_of(gradients)
        asked = TENSORS.pack(len(gradients), _at(counts), _at(lie), *map(_at, changed))
        self.library.aid_move(asked, RULE.pack(*rule), torch.get_num_threads())


def places_of(tensors: Sequence[Tensor]) -> array[int]:
    """Where each one's numbers begin."""
    return array("q", map(Tensor.data_ptr, tensors))


def _at(numbers: array[int] | array[float]) -> int:
    return numbers.buffer_info()[0]


@cache
def find_kernel() -> Kernel | None:
    """None where there is none."""
    found = load_kernel(__file__, TENSORS, RULE)
    if not found:
        return None
    library, _ = found
    library.aid_pieces.restype, library.aid_norm.restype = ctypes.c_int64, ctypes.c_double
    return Kernel(library)
