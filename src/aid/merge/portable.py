"""Weighted sums by torch, bit for bit as `kernel.c` computes them: where there is no kernel, or for formats
that it doesn't know."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add

import torch
from torch import Tensor

from aid.merge.arithmetic import Found, Operand
from aid.sd.file.tensorfile import DTYPES

BLOCK = 1024
CUT = (1 << 29) - 1  # the bits of a double beyond a float's


class Torch:
    """`Arithmetic` without a compiler."""

    def blend(self, operands: Sequence[Operand], count: int, format: str, out: memoryview) -> Found:
        rows = [_row(one, count) for one in operands]
        total = rows[0].double() * operands[0].weight
        for row, one in zip(rows[1:], operands[1:], strict=True):
            total += row.double() * one.weight
        result = torch.frombuffer(out, dtype=DTYPES[format], count=count).copy_(rounded(total, format))
        final = result.float()
        distances = tuple(_square(row.float() - final) for row in rows)
        return Found(distances, _square(final), _fault(rows, result))

    def look(self, operand: Operand, count: int) -> Found:
        row = _row(operand, count)
        return Found((0.0,), _square(row.float()), _fault([row], row))


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


def _square(row: Tensor) -> float:
    """The sum of squares, in the kernel's order: each block in halves, then block by block."""
    padded = torch.nn.functional.pad(row, (0, -row.numel() % BLOCK)).view(-1, BLOCK)
    halves, left = padded * padded, BLOCK
    while left > 1:
        left //= 2
        halves = halves[:, :left] + halves[:, left:]
    return reduce(add, halves[:, 0].tolist(), 0.0)  # `sum` has its own way with floats


def _fault(rows: Sequence[Tensor], result: Tensor) -> int:
    if torch.isfinite(result.float()).all():
        return 0
    bad = (number for number, row in enumerate(rows, 1) if not torch.isfinite(row.float()).all())
    return next(bad, -1)
