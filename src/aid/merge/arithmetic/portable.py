"""Weighted sums by torch, bit for bit as `kernel.c` computes them: where there is no kernel, or for formats
that it doesn't know."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import accumulate
from operator import add
from threading import Lock, local
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aid.merge.arithmetic.source import InFile, part_of
from aid.merge.arithmetic.sums import Operand
from aid.sd.file.header import ITEM_BYTES
from aid.sd.file.tensorfile import DTYPES

Array = NDArray[Any]
BLOCK, LANES = 1024, 64
PART = 32 * BLOCK  # values at a time: what a processor's cache holds, in doubles
ROOM_BYTES = 1 << 21  # what is read at once, of all operands together
CUT = np.int64((1 << 29) - 1)  # the bits of a double beyond a float's


class Desk:
    """Memory for a part: new memory for each would cost more than the arithmetic. That is numpy's, whose
    operations are quicker than torch's but where half precision is concerned."""

    def __init__(self) -> None:
        self.total, self.term = np.empty(PART), np.empty(PART)
        self.floats = torch.empty(PART)

    def sum(self, rows: Sequence[Tensor], weights: Sequence[float]) -> Array:
        """Of a part at most; holds until the next."""
        total, term = self.total[: (count := rows[0].numel())], self.term[:count]
        for number, (row, weight) in enumerate(zip(rows, weights, strict=True)):
            own = term if number else total
            np.copyto(own, self.widened(row).numpy())
            np.multiply(own, weight, out=own)
            if number:
                np.add(total, term, out=total)
        return total

    def round(self, exact: Array, result: Tensor) -> None:
        """Doubles in another format, rounded once. Through float, torch would round a second time: so what is
        cut off at 24 bits sets the last of them ("round to odd"; Boldo and Melquiond 2008)."""
        if result.itemsize >= 4:
            np.copyto(result.numpy(), exact, casting="same_kind")
            return
        bits, odd, floats = exact.view(np.int64), self.term[: exact.size], self.floats[: exact.size]
        rounded = np.bitwise_and(bits, CUT, out=odd.view(np.int64))
        np.add(rounded, CUT, out=rounded)
        np.bitwise_or(rounded, bits, out=rounded)
        np.bitwise_and(rounded, ~CUT, out=rounded)
        np.copyto(floats.numpy(), odd, casting="same_kind")
        result.copy_(floats)

    def widened(self, row: Tensor) -> Tensor:
        """In float at least."""
        return row if row.itemsize >= 4 else self.floats[: row.numel()].copy_(row)


class Rows(local):
    """A thread's own memory for what it reads."""

    def __init__(self) -> None:
        self.room = memoryview(b"")

    def read(self, operands: Sequence[Operand], start: int, count: int) -> list[Tensor]:
        """They hold until the next."""
        sizes = [count * ITEM_BYTES[one.format] for one in operands]
        if len(self.room) < sum(sizes):
            self.room = memoryview(bytearray(sum(sizes)))
        ends = accumulate(sizes)
        rooms = (self.room[end - size : end] for end, size in zip(ends, sizes, strict=True))
        return [_tensor(one, count, start, room) for one, room in zip(operands, rooms, strict=True)]


@dataclass(frozen=True)
class Torch:
    """`Arithmetic` without a compiler. Its operations are so short that threads would mostly wait for the
    interpreter: so one computes at a time, while others read, write or hash."""

    desk: Desk = field(default_factory=Desk)
    turn: Lock = field(default_factory=Lock)
    rows: Rows = field(default_factory=Rows)

    def blend(self, operands: Sequence[Operand], count: int, format: str, out: memoryview) -> int:
        weights, result = [one.weight for one in operands], _tensor(Operand(out, format), count)
        size = sum(ITEM_BYTES[one.format] for one in operands)
        step = max(1, ROOM_BYTES // size // PART) * PART
        for start in range(0, count, step):
            whole = result[start : start + step]
            rows = self.rows.read(operands, start, len(whole))
            with self.turn, np.errstate(all="ignore"):
                for part, *parts in zip(*map(_parts, (whole, *rows)), strict=True):
                    self.desk.round(self.desk.sum(parts, weights), part)
        if self.is_finite(Operand(out, format), count):
            return 0
        broken = (not self.is_finite(one, count) for one in operands)
        return next((number for number, found in enumerate(broken, 1) if found), -1)

    def is_finite(self, operand: Operand, count: int) -> bool:
        values = _tensor(operand, count)
        ends = torch.aminmax(values if values.itemsize > 1 else values.float()) if count else ()
        return all(map(math.isfinite, ends))

    def square(self, operand: Operand, less: Operand | None, count: int) -> float:
        rows = [_parts(_tensor(one, count)) for one in (operand, less) if one]
        differences = (reduce(Tensor.sub, map(Tensor.float, parts)) for parts in zip(*rows, strict=True))
        return reduce(_add_squares, differences, 0.0)


TORCH = Torch()


def _tensor(operand: Operand, count: int, start: int = 0, room: memoryview | None = None) -> Tensor:
    """Some of its values, read into the room if they are in a file."""
    item = ITEM_BYTES[operand.format]
    raw = part_of(operand.values, start * item, count * item)
    if isinstance(raw, InFile):
        raw = raw.read(memoryview(bytearray(count * item)) if room is None else room[: count * item])
    return torch.frombuffer(raw, dtype=DTYPES[operand.format], count=count) if count else torch.empty(0)


def _parts(values: Tensor) -> list[Tensor]:
    return [values[at : at + PART] for at in range(0, len(values), PART)]


def _add_squares(so_far: float, row: Tensor) -> float:
    """The sum of squares, in the kernel's order: a block in LANES sums, these in halves, block by block."""
    padded = torch.nn.functional.pad(row, (0, -row.numel() % BLOCK))
    sums, left = reduce(Tensor.add_, (padded * padded).view(-1, BLOCK // LANES, LANES).unbind(1)), LANES
    while left > 1:
        left //= 2
        sums = sums[:, :left] + sums[:, left:]
    return reduce(add, sums[:, 0].tolist(), so_far)  # `sum` has its own way with floats
