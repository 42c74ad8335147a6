"""Weighted sums by torch, bit for bit as `kernel.c` computes them: where there is no kernel, or for formats
that it doesn't know."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from functools import reduce
from operator import add

import torch
from torch import Tensor

from aid.merge.arithmetic import Operand
from aid.merge.place import Place, part_of
from aid.sd.file.header import ITEM_BYTES
from aid.sd.file.tensorfile import DTYPES

BLOCK, LANES = 1024, 64
PART = 32 * BLOCK  # values at a time: what a processor's cache holds, in doubles
CUT = (1 << 29) - 1  # the bits of a double beyond a float's


class Desk(threading.local):
    """A thread's own memory. New memory for each part would cost more than the arithmetic."""

    def __init__(self) -> None:
        self.total, self.term = (torch.empty(PART, dtype=torch.float64) for _ in range(2))
        self.floats = torch.empty(PART)

    def sum(self, rows: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        """Of a part at most; holds until the next."""
        total, *_ = wide = [self.total[: len(rows[0])], self.term[: len(rows[0])]]
        for number, (row, weight) in enumerate(zip(rows, weights, strict=True)):
            term = wide[number > 0].copy_(self.widened(row)).mul_(weight)
            total = total.add_(term) if number else term
        return total

    def round(self, exact: Tensor, result: Tensor) -> None:
        """Doubles in another format, rounded once. Through float, torch would round a second time: so what is
        cut off at 24 bits sets the last of them ("round to odd"; Boldo and Melquiond 2008)."""
        if result.itemsize >= 4:
            result.copy_(exact)
            return
        bits, odd = exact.view(torch.int64), self.term[: len(exact)].view(torch.int64)
        torch.bitwise_and(bits, CUT, out=odd).add_(CUT).bitwise_or_(bits).bitwise_and_(~CUT)
        result.copy_(self.floats[: len(exact)].copy_(odd.view(torch.float64)))

    def widened(self, row: Tensor) -> Tensor:
        """In float at least: to double, torch is three times as quick by that way."""
        return row if row.itemsize >= 4 else self.floats[: len(row)].copy_(row)

    def is_finite(self, row: Tensor) -> bool:
        """A sum, which is quick, mostly tells."""
        wide = self.widened(row)
        return math.isfinite(wide.sum()) or bool(torch.isfinite(wide).all())


DESK = Desk()


class Torch:
    """`Arithmetic` without a compiler."""

    def blend(self, operands: Sequence[Operand], count: int, format: str, out: memoryview) -> int:
        rows, weights = [_parts(one, count) for one in operands], [one.weight for one in operands]
        finite = True
        for result, *parts in zip(_parts(Operand(out, format), count), *rows, strict=True):
            DESK.round(DESK.sum(parts, weights), result)
            finite = finite and DESK.is_finite(result)
        if finite:
            return 0
        broken = (not self.is_finite(one, count) for one in operands)
        return next((number for number, found in enumerate(broken, 1) if found), -1)

    def is_finite(self, operand: Operand, count: int) -> bool:
        return all(map(DESK.is_finite, _parts(operand, count)))

    def square(self, operand: Operand, less: Operand | None, count: int) -> float:
        rows = [[row.float() for row in _parts(one, count)] for one in (operand, less) if one]
        differences = (reduce(Tensor.sub, parts) for parts in zip(*rows, strict=True))
        return reduce(_add_squares, differences, 0.0)


TORCH = Torch()


def _parts(operand: Operand, count: int) -> Iterator[Tensor]:
    """Of a file too, from which each part is read when it is asked for; it holds until the next."""
    item = ITEM_BYTES[operand.format]
    room = memoryview(bytearray(min(count, PART) * item if isinstance(operand.values, Place) else 0))
    for start in range(0, count, PART):
        size = min(PART, count - start)
        values = part_of(operand.values, start * item, size * item)
        raw = values.read(room[: size * item]) if isinstance(values, Place) else values
        yield torch.frombuffer(raw, dtype=DTYPES[operand.format], count=size)


def _add_squares(so_far: float, row: Tensor) -> float:
    """The sum of squares, in the kernel's order: a block in LANES sums, these in halves, block by block."""
    padded = torch.nn.functional.pad(row, (0, -row.numel() % BLOCK))
    sums, left = reduce(Tensor.add_, (padded * padded).view(-1, BLOCK // LANES, LANES).unbind(1)), LANES
    while left > 1:
        left //= 2
        sums = sums[:, :left] + sums[:, left:]
    return reduce(add, sums[:, 0].tolist(), so_far)  # `sum` has its own way with floats
