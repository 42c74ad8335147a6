"""TIES by the compiled kernel: the floats that `nonlinear` gives, sooner and without numpy."""

from __future__ import annotations

import ctypes
import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from aid.merge.arithmetic import NO_MEMORY, Kernel, Operand, pointer, pointers
from aid.merge.mode import Given, Mode, Told
from aid.merge.selection import FINE, place_of, ranked

SIZE_BITS = 31  # of a float without its sign
PART, SAMPLE_PART = 1 << 16, 1 << 12  # values; a sample is of many places
TIES = ("ties", "ties_mass")


def by_kernel(kernel: Kernel, name: str) -> Mode:
    """Of float32."""
    own = Ties(kernel, by_mass=name == "ties_mass")
    return Mode(own.part, own.least, values=PART)


@dataclass(frozen=True)
class Ties:
    """`by_mass`: the sign agreed on is that of the differences' sum."""

    kernel: Kernel
    by_mass: bool

    def least(self, given: Given, share: float) -> list[float]:
        """The size of each model's smallest difference among its largest, a share of all."""
        return [self._least(given, number, place_of(share, given.size)) for number in range(1, given.models)]

    def _least(self, given: Given, number: int, place: int) -> float:
        def count(lowest: int, shift: int, bin_bits: int, every: int) -> Counts:
            counts = Counts(self.kernel, lowest, shift, 1 << bin_bits)
            for values, pair in given.parts((0, number), 1, every, PART if every == 1 else SAMPLE_PART):
                counts.add(values, *pair)
            return counts

        bits = ranked(place, given.size, count, SIZE_BITS)
        return float(struct.unpack("=f", struct.pack("=I", bits))[0])

    def part(self, models: Sequence[Operand], told: Told) -> memoryview:
        out, least = memoryview(bytearray(4 * told.length)), told.measured
        values, formats = pointers(models)
        fault: int = self.kernel.library.aid_agree(
            ctypes.c_long(told.length), len(models), values, formats, (ctypes.c_float * len(least))(*least),
            ctypes.c_float(told.alpha), self.by_mass, pointer(out), self.kernel.plainly,
        )  # fmt: skip
        if fault == NO_MEMORY:
            raise MemoryError
        return out


class Desk(threading.local):
    """A thread's own memory, 4 MiB where it is used. New memory would cost more than the counting."""

    @cached_property
    def bins(self) -> ctypes.Array[ctypes.c_uint32]:
        return (ctypes.c_uint32 * (1 << FINE))()


DESK = Desk()


class Counts:
    """Of differences' sizes, by their bits from `lowest` on, 2^shift to a bin; they hold until the thread's
    next."""

    def __init__(self, kernel: Kernel, lowest: int, shift: int, bins: int) -> None:
        self._kernel, self._lowest, self._shift, self._count = kernel, lowest, shift, bins
        self._bins = DESK.bins
        ctypes.memset(self._bins, 0, 4 * bins)
        self.below = self.total = 0

    def add(self, count: int, base: Operand, other: Operand) -> None:
        (own, values), (format, another) = pointers([base, other])
        self.total += count
        self.below += self._kernel.library.aid_count_sizes(
            ctypes.c_long(count), ctypes.c_void_p(own), format, ctypes.c_void_p(values), another,
            ctypes.c_uint32(self._lowest), self._shift, self._bins, ctypes.c_long(self._count),
            self._kernel.plainly,
        )  # fmt: skip

    def bin(self, place: int) -> int | None:
        left = ctypes.c_long(place)
        found: int = self._kernel.library.aid_bin(self._bins, ctypes.c_long(self._count), ctypes.byref(left))
        return found if found < self._count else None
