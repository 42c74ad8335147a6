"""The compiled products: product.c, called with where tensors lie."""

from __future__ import annotations

import ctypes
import struct
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from aid.sd.kernel.library import load_kernel
from aid.sd.product.taps import Taps

PRODUCT = struct.Struct("@ 10P 5q")  # as the kernel's `struct product`


class Kernel(NamedTuple):
    """All tensors are float32 on the CPU: rows x [rows of x, width], weights [outs, taps, width], the result
    [rows, outs], without gaps between their numbers.

    `lanes`: floats of a vector, 8 or 16.
    """

    library: ctypes.CDLL
    lanes: int

    def multiply(self, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, taps: Taps) -> None:
        """Fills `out`: the sum over taps of x W^T, and the bias."""
        count, rows, x_rows, source, _ = taps
        outs = weight.shape[0]
        asked = PRODUCT.pack(
            x.data_ptr(), 0, weight.data_ptr(), _at(bias), _at(source), 0, out.data_ptr(), 0, 0, 0,
            rows, x_rows, count, weight.numel() // (outs * count), outs,
        )  # fmt: skip
        self.library.aid_multiply(asked, self.lanes, torch.get_num_threads())

    def multiply_back(
        self, x: Tensor, weight: Tensor, grad: Tensor, to: tuple[Tensor | None, ...], taps: Taps
    ) -> None:
        """Fills the gradients of x, weight and bias, those that are asked for."""
        count, rows, x_rows, source, target = taps
        outs = weight.shape[0]
        asked = PRODUCT.pack(
            x.data_ptr(), grad.data_ptr(), weight.data_ptr(), 0, _at(source), _at(target), 0, *map(_at, to),
            rows, x_rows, count, weight.numel() // (outs * count), outs,
        )  # fmt: skip
        self.library.aid_multiply_back(asked, self.lanes, torch.get_num_threads())


def _at(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


@cache
def find_kernel() -> Kernel | None:
    """None where there is none, or nothing to be gained."""
    found = load_kernel(__file__, PRODUCT)
    return Kernel(*found) if found else None
