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


class Found(NamedTuple):
    """What was seen on the way: each operand's squared distance from the result, the result's squares, and
    whether something isn't finite: operand `fault - 1`, or with -1 only the result; 0 is fine."""

    distances: tuple[float, ...]
    square: float
    fault: int


class Arithmetic(Protocol):
    """A way to compute."""

    def blend(self, operands: Sequence[Operand], count: int, format: str, out: memoryview) -> Found:
        """The first `count` values' sum into `out`."""
        ...

    def look(self, operand: Operand, count: int) -> Found:
        """What `blend` finds of values that are copied as they are."""
        ...


@dataclass(frozen=True)
class Kernel:
    """The compiled one; `plainly` keeps it from using vector instructions, as on a machine without."""

    library: ctypes.CDLL
    plainly: bool = False

    def blend(self, operands: Sequence[Operand], count: int, format: str, out: memoryview) -> Found:
        return self._run(operands, count, CODES[format], _address(out))

    def look(self, operand: Operand, count: int) -> Found:
        return self._run((operand,), count, CODES[operand.format], None)

    def _run(self, operands: Sequence[Operand], count: int, code: int, out: int | None) -> Found:
        terms = len(operands)
        values = (ctypes.c_void_p * terms)(*(_address(one.values) for one in operands))
        formats = (ctypes.c_int * terms)(*(CODES[one.format] for one in operands))
        weights = (ctypes.c_double * terms)(*(one.weight for one in operands))
        squares = (ctypes.c_double * (terms + 1))()
        fault = self.library.aid_blend(
            ctypes.c_long(count), terms, values, formats, weights, code, ctypes.c_void_p(out), squares,
            self.plainly,
        )  # fmt: skip
        if fault == NO_MEMORY:
            raise MemoryError
        *distances, square = squares
        return Found(tuple(distances), square, fault)


def _address(values: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(values))


@cache
def kernel() -> Kernel | None:
    """The compiled kernel, if it was built and this machine can load it."""
    try:
        return Kernel(ctypes.CDLL(str(LIBRARY)))
    except OSError:
        return None


def arithmetic(formats: Sequence[str]) -> Arithmetic:
    """The kernel for the formats that it knows, torch for all else (eight-bit floats)."""
    native = kernel()
    if native is not None and all(name in CODES for name in formats):
        return native
    from aid.merge.portable import TORCH

    return TORCH
