"""Weighted sums of raw values: what the compiled kernel and numpy both do, with the same bytes.

Each value is computed in double precision and rounded once to the format written. Which of the two does it
is a matter of speed: where no compiler was at hand when AID was installed, it is numpy.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

from aid.errors import FileError
from aid.merge.arithmetic.source import InFile, Operand
from aid.sd.file.header import ITEM_BYTES

LIBRARY = Path(__file__).with_name("_kernel.so")
CODES = {"F64": 0, "F32": 1, "F16": 2, "BF16": 3}
NO_MEMORY, NOT_READ = -2, -3  # minus the operand's number
TERM = struct.Struct("=QqdiI")  # as the kernel's `struct term`


class Arithmetic(Protocol):
    """A way to compute, with the first `count` values of each operand."""

    def blend(self, operands: Sequence[Operand], count: int, format: str, out: memoryview) -> int:
        """Their sum into `out`. Returns its fault: 0 for none, k + 1 if operand k holds NaN or infinity, and
        -1 if only the sum does. Raises FileError for a file that ends too early."""
        ...

    def is_finite(self, operand: Operand, count: int) -> bool:
        """Of an operand in memory."""
        ...

    def square(self, operand: Operand, less: Operand | None, count: int) -> float:
        """The sum of squared differences, each taken in float32; None stands for zeros. In memory too."""
        ...


@dataclass(frozen=True)
class Kernel:
    """The compiled one; `plainly` keeps it from using vector instructions, as on a machine without."""

    library: ctypes.CDLL
    plainly: bool = False

    def blend(self, operands: Sequence[Operand], count: int, format: str, out: memoryview) -> int:
        terms = terms_of(operands)
        fault: int = self.library.aid_sum(
            ctypes.c_long(count), len(operands), terms, CODES[format], pointer(out), self.plainly
        )
        if fault == NO_MEMORY:
            raise MemoryError
        if fault <= NOT_READ:
            _read_again(operands[NOT_READ - fault], count)
        return fault

    def is_finite(self, operand: Operand, count: int) -> bool:
        values, format = pointer(in_memory(operand)), CODES[operand.format]
        return not self.library.aid_has_no_end(ctypes.c_long(count), values, format, self.plainly)

    def square(self, operand: Operand, less: Operand | None, count: int) -> float:
        own, other = operand, less or operand
        values = pointer(in_memory(less)) if less else None
        found: float = self.library.aid_square(
            ctypes.c_long(count), pointer(in_memory(own)), CODES[own.format], values, CODES[other.format],
            self.plainly,
        )  # fmt: skip
        return found


def terms_of(operands: Sequence[Operand]) -> bytes:
    """As the kernel reads them, which takes the operands' values to stay where they are."""
    return b"".join(map(_term, operands))


def _term(operand: Operand) -> bytes:
    values, code = operand.values, CODES[operand.format]
    if isinstance(values, InFile):
        return TERM.pack(0, values.at, operand.weight, values.file, code)
    return TERM.pack(_address(values), 0, operand.weight, 0, code)


def _read_again(operand: Operand, count: int) -> None:
    """Raises the FileError that tells why the kernel couldn't."""
    values = operand.values
    assert isinstance(values, InFile)
    values.read(memoryview(bytearray(count * ITEM_BYTES[operand.format])))
    raise FileError(f"{values.path} could not be read", "a file that stays as it is while it is read")


def in_memory(operand: Operand) -> memoryview:
    """Its values, which are no file's."""
    assert isinstance(operand.values, memoryview)
    return operand.values


def _address(values: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(values))


def pointer(values: memoryview) -> ctypes.c_void_p:
    return ctypes.c_void_p(_address(values))


@cache
def kernel() -> Kernel | None:
    """The compiled kernel, if one was built that has what is called here, and this machine can load it."""
    try:
        library = ctypes.CDLL(str(LIBRARY))
        library.aid_sum.restype, library.aid_square.restype = ctypes.c_int, ctypes.c_double
        _ = library.aid_smooth, library.aid_add_multiplied_F64
        for counted in (library.aid_count_sizes_F32, library.aid_count_sizes_F64, library.aid_bin):
            counted.restype = ctypes.c_long
    except (OSError, AttributeError):
        return None
    return Kernel(library)


def arithmetic(formats: Sequence[str]) -> Arithmetic:
    """The kernel for the formats that it knows, numpy for all else (eight-bit floats)."""
    native = kernel()
    if native is not None and all(name in CODES for name in formats):
        return native
    from aid.merge.arithmetic.portable import PORTABLE

    return PORTABLE
