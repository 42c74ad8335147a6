"""The value of a given rank among many that are read again rather than kept: exact, in little memory.

Floats that aren't negative are in the order of their bits. So these are counted in bins, then those of the
bin that the value is in, until a bin is a single value: twice for float32. A sample read first tells where it
is likely to be, which mostly saves one of the two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

SAMPLE, LARGEST_SAMPLE = 8, 1 << 19  # of one value in so many; values
MANY = 1 << 20  # values, of fewer no sample is taken
COARSE, FINE = 16, 20  # bits of a bin's number; 2^FINE floats side by side differ by a sixteenth at most


class Counts(Protocol):
    """How many values lie in each bin, how many there are `below` the first, and how many in `total`."""

    @property
    def below(self) -> int: ...

    @property
    def total(self) -> int: ...

    def bin(self, place: int) -> int | None:
        """The bin of the value with `place` others before it; None if that is beyond them all."""
        ...


Count = Callable[[int, int, int, int], Counts]
"""(lowest, shift, bin_bits, every): bits from `lowest` on, 2^shift to a bin, in one part of `every`."""


def ranked(place: int, size: int, count: Count, bits: int) -> int:
    """The bits of the value that has `place` others before it, of `size`; `bits` is how many they have."""
    lowest, end, top = 0, 1 << bits, 1 << bits
    bin_bits = min(max(size.bit_length(), 10), FINE)
    if size >= MANY:
        shift = bits - COARSE
        found = count(0, shift, COARSE, max(SAMPLE, size // LARGEST_SAMPLE))
        guess = (found.bin(place * found.total // size) or 0) << shift
        lowest, end = max(0, guess - (1 << FINE >> 1)), min(guess + (1 << FINE >> 1), top)
    while end - lowest > 1:
        shift = max(0, (end - lowest - 1).bit_length() - bin_bits)
        found = count(lowest, shift, bin_bits, 1)
        if place < found.below:
            lowest, end = 0, lowest
        elif (bin := found.bin(place - found.below)) is None:
            lowest, end = end, top
        else:
            lowest += bin << shift
            end = lowest + (1 << shift)
    return lowest


def place_of(share: float, size: int) -> int:
    """The rank, counted from the smallest, of the least of the largest, a share of all."""
    return max(int((1 - share) * size), 1) - 1
