"""Weighted sums of raw values: what the compiled kernel and torch both do, with the same bytes.

Each value is computed in double precision and rounded once to the format written. Which of the two does it
is a matter of speed: where no compiler was at hand when AID was installed, it is torch.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple, Protocol

LIBRARY = Path(__file__).with_name("_kernel.so")
CODES = {"F64": 0, "F32": 1, "F16": 2, "BF16": 3}
NO_MEMORY = -2


class Operand(NamedTuple):
    """One model's values: raw, in the format of that name, to be multiplied by `weight`."""

    values: memoryview
    format: str
    weight: float = 1.0


class Arithmetic(Protocol):
    """A way to compute, with the first `count` values of each operand."""

    def blend(self, operands: Sequence[Operand], count: int, format: str, out: memoryview) -> int:
        """Their sum into `out`. Returns its fault: 0 for none, k + 1 if operand k holds NaN or infinity, and
        -1 if only the sum does."""
        ...

    def is_finite(self, operand: Operand, count: int) -> bool: ...

    def square(self, operand: Operand, less: Operand | None, count: int) -> float:
        """The sum of squared differences, each taken in float32; None stands for zeros."""
        ...


@dataclass(frozen=True)
class Kernel:
    """The compiled one; `plainly` keeps it from using vector instructions, as on a machine without."""

    library: ctypes.CDLL
    plainly: bool = False

    def blend(self, operands: Sequence[Operand], count: int, format: str, out: memoryview) -> int:
        terms = len(operands)
        values = (ctypes.c_void_p * terms)(*(_address(one.values) for one in operands))
        formats = (ctypes.c_int * terms)(*(CODES[one.format] for one in operands))
        weights = (ctypes.c_double * terms)(*(one.weight for one in operands))
        fault: int = self.library.aid_blend(
            ctypes.c_long(count), terms, values, formats, weights, CODES[format], _pointer(out), self.plainly
        )
        if fault == NO_MEMORY:
            raise MemoryError
        return fault

    def is_finite(self, operand: Operand, count: int) -> bool:
        values, format = _pointer(operand.values), CODES[operand.format]
        return not self.library.aid_has_no_end(ctypes.c_long(count), values, format)

    def square(self, operand: Operand, less: Operand | None, count: int) -> float:
        own, other = operand, less or operand
        values = _pointer(less.values) if less else None
        found: float = self.library.aid_square(
            ctypes.c_long(count), _pointer(own.values), CODES[own.format], values, CODES[other.format],
            self.plainly,
        )  # fmt: skip
        return found


def _address(values: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(values))


def _pointer(values: memoryview) -> ctypes.c_void_p:
    return ctypes.c_void_p(_address(values))


@cache
def kernel() -> Kernel | None:
    """The compiled kernel, if one was built that has what is called here, and this machine can load it."""
    try:
        library = ctypes.CDLL(str(LIBRARY))
        library.aid_square.restype = ctypes.c_double
    except (OSError, AttributeError):
        return None
    return Kernel(library)


def arithmetic(formats: Sequence[str]) -> Arithmetic:
    """The kernel for the formats that it knows, torch for all else (eight-bit floats)."""
    native = kernel()
    if native is not None and all(name in CODES for name in formats):
        return native
    from aid.merge.portable import TORCH

    return TORCH
