"""Weighted sums by numpy, bit for bit as `kernel.c` computes them: where there is no kernel, or for formats
that it doesn't know."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, reduce
from itertools import accumulate
from operator import add
from threading import local
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aid.merge.arithmetic.source import InFile, Operand, part_of
from aid.sd.file.header import ITEM_BYTES

Array = NDArray[Any]
BLOCK, LANES = 1024, 64
PART = 32 * BLOCK  # values at a time: what a processor's cache holds, in doubles
ROOM_BYTES = 1 << 20  # what is read at once, of all operands together
CUT = np.int64((1 << 29) - 1)  # the bits of a double beyond a float's
STORED = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16,
    "BF16": np.uint16, "F8_E4M3": np.uint8, "F8_E5M2": np.uint8,
}  # fmt: skip
ONES = {
    "F64": 0x7FF << 52, "F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80, "F8_E4M3": 0x7F, "F8_E5M2": 0x7C,
}  # fmt: skip
"""Bits that are all set in what isn't finite: the exponent's; E4M3 has only a NaN, with all bits set."""
LARGEST = {"F8_E4M3": 0x7E, "F8_E5M2": 0x7C}  # codes that a number may become


class Desk(local):
    """A thread's own memory: new memory for each part would cost more than the arithmetic."""

    def __init__(self) -> None:
        self.total, self.term, self.room = np.empty(PART), np.empty(PART), memoryview(b"")

    def sum(self, rows: Sequence[Array], operands: Sequence[Operand]) -> Array:
        """Of a part at most; holds until the next."""
        total, term = (one[: len(rows[0])] for one in (self.total, self.term))
        for number, (row, operand) in enumerate(zip(rows, operands, strict=True)):
            own = term if number else total
            widen(row, operand.format, own)
            np.multiply(own, operand.weight, out=own)
            if number:
                np.add(total, term, out=total)
        return total

    def read(self, operands: Sequence[Operand], start: int, count: int) -> list[Array]:
        """They hold until the next."""
        sizes = [count * ITEM_BYTES[one.format] for one in operands]
        if len(self.room) < sum(sizes):
            self.room = memoryview(bytearray(sum(sizes)))
        ends = accumulate(sizes)
        rooms = (self.room[end - size : end] for end, size in zip(ends, sizes, strict=True))
        return [_array(one, count, start, room) for one, room in zip(operands, rooms, strict=True)]


def widen(row: Array, format: str, out: Array) -> None:
    """To doubles, which is exact."""
    if format == "BF16":
        np.copyto(out, np.left_shift(row, 16, dtype=np.uint32).view(np.float32))
    elif row.itemsize == 1:
        np.take(_eight_bits(format), row, out=out, mode="clip")
    else:
        np.copyto(out, row)


def narrow(exact: Array, format: str, out: Array) -> None:
    """From doubles, rounded once."""
    if format == "BF16":
        np.copyto(out, _brain(exact), casting="unsafe")
    elif out.itemsize == 1:
        np.copyto(out, _nearest(exact, format), casting="unsafe")
    else:
        np.copyto(out, exact, casting="same_kind")


def _brain(exact: Array) -> Array:
    """By way of floats: what is cut off at 24 bits sets the last of them, so that nothing is rounded twice
    ("round to odd"; Boldo and Melquiond 2008)."""
    bits = exact.view(np.int64)
    odd = ((bits | ((bits & CUT) + CUT)) & ~CUT).view(np.float64)
    words = odd.astype(np.float32).view(np.uint32)
    rounded = (words + 0x7FFF + (words >> 16 & 1)) >> 16
    return np.where((words & 0x7FFFFFFF) > ONES["F32"], 0x7FC0, rounded)


@cache
def _eight_bits(format: str) -> Array:
    """What each of 256 codes means (Micikevicius et al. 2022, arXiv 2209.05433)."""
    if format == "F8_E5M2":  # half of a half
        return np.left_shift(np.arange(256), 8).astype(np.uint16).view(np.float16).astype(np.float64)
    exponent, fraction = np.divmod(np.arange(128), 8)
    sizes = np.ldexp(np.where(exponent, 8 + fraction, fraction), np.maximum(exponent, 1) - 10)
    sizes[-1] = np.nan
    return np.concatenate([sizes, -sizes])


def _nearest(exact: Array, format: str) -> Array:
    """The code of the nearest value, of two the even one. As in torch, what is too large becomes infinity,
    and in E4M3, which has none, the largest value."""
    sizes = np.nan_to_num(_eight_bits(format)[: LARGEST[format] + 1], posinf=2.0**16)
    middles = (sizes[:-1] + sizes[1:]) / 2
    below, above = (np.searchsorted(middles, np.abs(exact), side) for side in ("left", "right"))
    code = np.where(np.isnan(exact), 0x7F, np.where(below % 2, above, below))
    return np.where(np.signbit(exact), code + 0x80, code)


@dataclass(frozen=True)
class Portable:
    """`Arithmetic` without a compiler."""

    desk: Desk = field(default_factory=Desk)

    def blend(self, operands: Sequence[Operand], count: int, format: str, out: memoryview) -> int:
        result = _array(Operand(out, format), count)
        size = sum(ITEM_BYTES[one.format] for one in operands)
        step = max(1, ROOM_BYTES // size // PART) * PART
        for start in range(0, count, step):
            whole = result[start : start + step]
            rows = self.desk.read(operands, start, len(whole))
            with np.errstate(all="ignore"):
                for part, *parts in zip(*map(_parts, (whole, *rows)), strict=True):
                    narrow(self.desk.sum(parts, operands), format, part)
        if self.is_finite(Operand(out, format), count):
            return 0
        broken = (not self.is_finite(one, count) for one in operands)
        return next((number for number, found in enumerate(broken, 1) if found), -1)

    def is_finite(self, operand: Operand, count: int) -> bool:
        ones = ONES[operand.format]
        bits = _array(operand, count).view(f"u{ITEM_BYTES[operand.format]}")
        return all(np.bitwise_and(part, ones).max() < ones for part in _parts(bits))

    def square(self, operand: Operand, less: Operand | None, count: int) -> float:
        rows = [_floats(one, count) for one in (operand, less) if one]
        differences = (reduce(np.subtract, parts) for parts in zip(*rows, strict=True))
        with np.errstate(all="ignore"):
            return reduce(_add_squares, differences, 0.0)


PORTABLE = Portable()


def _array(operand: Operand, count: int, start: int = 0, room: memoryview | None = None) -> Array:
    """Some of its values, read into the room if they are in a file."""
    item, dtype = ITEM_BYTES[operand.format], STORED[operand.format]
    raw = part_of(operand.values, start * item, count * item)
    if isinstance(raw, InFile):
        raw = raw.read(memoryview(bytearray(count * item)) if room is None else room[: count * item])
    return np.frombuffer(raw, dtype, count) if count else np.empty(0, dtype)


def _parts(values: Array) -> Iterator[Array]:
    return (values[at : at + PART] for at in range(0, len(values), PART))


def _floats(operand: Operand, count: int) -> Iterator[Array]:
    for part in _parts(_array(operand, count)):
        exact = np.empty(len(part))
        widen(part, operand.format, exact)
        yield exact.astype(np.float32)


def _add_squares(so_far: float, row: Array) -> float:
    """The sum of squares, in the kernel's order: a block in LANES sums, these in halves, block by block."""
    padded = np.pad(row, (0, -len(row) % BLOCK)).reshape(-1, BLOCK // LANES, LANES)
    sums, left = reduce(np.add, (padded * padded).swapaxes(0, 1)), LANES
    while left > 1:
        left //= 2
        sums = sums[:, :left] + sums[:, left:]
    return reduce(add, sums[:, 0].tolist(), so_far)  # `sum` has its own way with floats
