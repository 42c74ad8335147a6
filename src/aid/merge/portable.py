"""Weighted sums by torch, bit for bit as `kernel.c` computes them: where there is no kernel, or for formats
that it doesn't know."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from operator import add

import torch
from torch import Tensor

from aid.merge.arithmetic import Found, Operand
from aid.sd.file.tensorfile import DTYPES

BLOCK, LANES = 1024, 64
PART = 64 * BLOCK  # values at a time: what a processor's cache holds, in doubles
CUT = (1 << 29) - 1  # the bits of a double beyond a float's


class Torch:
    """`Arithmetic` without a compiler."""

    def blend(self, operands: Sequence[Operand], count: int, format: str, out: memoryview) -> Found:
        rows = [_row(one, count) for one in operands]
        result = torch.frombuffer(out, dtype=DTYPES[format], count=count)
        distances, square = [0.0] * len(rows), 0.0
        for start in range(0, count, PART):
            part = result[start : start + PART]
            parts = [row[start : start + PART] for row in rows]
            _sum(parts, [one.weight for one in operands], part, format)
            final = part.float()
            for number, row in enumerate(parts):
                distances[number] = _add_squares(distances[number], row.float() - final)
            square = _add_squares(square, final)
        return Found(tuple(distances), square, _fault(rows, result, square))

    def look(self, operand: Operand, count: int) -> Found:
        row = _row(operand, count)
        square = _add_squares(0.0, row.float())
        return Found((0.0,), square, _fault([row], row, square))


TORCH = Torch()


def rounded(exact: Tensor, format: str) -> Tensor:
    """Doubles in another format, rounded once. Through float, torch would round a second time: so what is cut
    off at 24 bits sets the last of them ("round to odd"; Boldo and Melquiond 2008)."""
    dtype = DTYPES[format]
    if dtype.itemsize >= 4:
        return exact.to(dtype)
    bits = exact.view(torch.int64)
    odd = (bits | ((bits & CUT) + CUT)) & ~CUT
    return odd.view(torch.float64).float().to(dtype)


def _row(operand: Operand, count: int) -> Tensor:
    return torch.frombuffer(operand.values, dtype=DTYPES[operand.format], count=count)


def _sum(rows: Sequence[Tensor], weights: Sequence[float], result: Tensor, format: str) -> None:
    total = rows[0].double() * weights[0]
    for row, weight in zip(rows[1:], weights[1:], strict=True):
        total += row.double() * weight
    result.copy_(rounded(total, format))


def _add_squares(so_far: float, row: Tensor) -> float:
    """The sum of squares, in the kernel's order: a block in LANES sums, these in halves, block by block."""
    padded = torch.nn.functional.pad(row, (0, -row.numel() % BLOCK))
    sums, left = reduce(Tensor.add_, (padded * padded).view(-1, BLOCK // LANES, LANES).unbind(1)), LANES
    while left > 1:
        left //= 2
        sums = sums[:, :left] + sums[:, left:]
    return reduce(add, sums[:, 0].tolist(), so_far)  # `sum` has its own way with floats


def _fault(rows: Sequence[Tensor], result: Tensor, square: float) -> int:
    if math.isfinite(square) or torch.isfinite(result.float()).all():
        return 0
    bad = (number for number, row in enumerate(rows, 1) if not torch.isfinite(row.float()).all())
    return next(bad, -1)
