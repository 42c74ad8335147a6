"""AdamW and averages with random rounding on a GPU: all weights in one launch, each number read and written
once.

The bits that a number is rounded by are Philox's (Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1,
2, 3"), of the seed, the weight's place among the others, and the number's place in it.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from aid.sd.model.device import sent
from aid.train.optimiser.kernel import places_of

NUMBERS = 2048  # of a program
ALIGNMENT = 16  # bytes


@triton.jit
def _place(row, column, first, KIND: tl.constexpr, ALIGNED: tl.constexpr):
    """Where a program's numbers begin, in a column of the table."""
    place = tl.load(row + column).to(tl.pointer_type(KIND)) + first
    if ALIGNED:
        place = tl.multiple_of(place, 16)
    return place


@triton.jit
def _read(place, lane, count, WHOLE: tl.constexpr):
    """Without a mask where there is all: many numbers are read at once then."""
    if WHOLE:
        return tl.load(place + lane).to(tl.float32)
    return tl.load(place + lane, lane < count, 0.0).to(tl.float32)


@triton.jit
def _store(place, lane, count, value, noise, KIND: tl.constexpr, WHOLE: tl.constexpr):
    """A float32, or for it one of the two nearest bfloat16: 16 random bits are added below what stays."""
    if tl.bfloat16 == KIND:
        raw = value.to(tl.int32, bitcast=True) + (noise & 0xFFFF).to(tl.int32)
        cut = (raw & -65536).to(tl.float32, bitcast=True)
        value = tl.where(tl.abs(value) < float("inf"), cut, value)
    if WHOLE:
        tl.store(place + lane, value.to(KIND))
    else:
        tl.store(place + lane, value.to(KIND), lane < count)


@triton.jit
def _noise(first, lane, number, seed):
    """Random bits for each number, four times 32."""
    at, zero = first + lane, lane * 0
    low, high = at.to(tl.uint32), (at >> 32).to(tl.uint32)
    return tl.philox(seed, low, high, (zero + number).to(tl.uint32), zero.to(tl.uint32))


@triton.jit
def _step(
    weights, gradients, means, squares, count, first, number, seed, rule,
    KIND: tl.constexpr, NUMBERS: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    to_mean, to_square, mean_whole, square_whole, rate, kept, epsilon = rule
    lane = tl.arange(0, NUMBERS)
    weight, gradient = _read(weights, lane, count, WHOLE), _read(gradients, lane, count, WHOLE)
    mean, square = _read(means, lane, count, WHOLE), _read(squares, lane, count, WHOLE)
    mean += (gradient - mean) * to_mean
    square += (gradient * gradient - square) * to_square
    moved = mean / mean_whole / (tl.sqrt(square / square_whole) + epsilon)
    one, two, three, _ = _noise(first, lane, number, seed)
    _store(means, lane, count, mean, one, KIND, WHOLE)
    _store(squares, lane, count, square, two, KIND, WHOLE)
    _store(weights, lane, count, weight * kept - moved * rate, three, KIND, WHOLE)


@triton.jit(do_not_specialize=["seed"])
def _change(
    table, tensors, firsts, seed, to_mean, to_square, mean_whole, square_whole, rate, kept, epsilon,
    KIND: tl.constexpr, ALIGNED: tl.constexpr, COLUMNS: tl.constexpr, NUMBERS: tl.constexpr,
):  # fmt: skip
    """Some numbers of one weight. The table has a row for each: where it, its gradient, its mean and its
    square are, how many numbers it has, and its place."""
    program = tl.program_id(0)
    row, first = table + tl.load(tensors + program) * COLUMNS, tl.load(firsts + program)
    first = tl.multiple_of(first, NUMBERS)
    weights, gradients = _place(row, 0, first, KIND, ALIGNED), _place(row, 1, first, KIND, ALIGNED)
    means, squares = _place(row, 2, first, KIND, ALIGNED), _place(row, 3, first, KIND, ALIGNED)
    count, number = tl.load(row + 4) - first, tl.load(row + 5)
    rule = to_mean, to_square, mean_whole, square_whole, rate, kept, epsilon
    if count >= NUMBERS:
        _step(weights, gradients, means, squares, count, first, number, seed, rule, KIND, NUMBERS, True)
    else:
        _step(weights, gradients, means, squares, count, first, number, seed, rule, KIND, NUMBERS, False)


@triton.jit
def _nearer(
    values, targets, count, first, number, seed, share,
    KIND: tl.constexpr, NUMBERS: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    lane = tl.arange(0, NUMBERS)
    value, target = _read(values, lane, count, WHOLE), _read(targets, lane, count, WHOLE)
    one, _, _, _ = _noise(first, lane, number, seed)
    _store(values, lane, count, value + (target - value) * share, one, KIND, WHOLE)


@triton.jit(do_not_specialize=["seed"])
def _follow(
    table, tensors, firsts, seed, share,
    KIND: tl.constexpr, ALIGNED: tl.constexpr, COLUMNS: tl.constexpr, NUMBERS: tl.constexpr,
):  # fmt: skip
    """Some numbers of one average. The table has a row for each: where it and its weight are, how many it
    has, and its place."""
    program = tl.program_id(0)
    row, first = table + tl.load(tensors + program) * COLUMNS, tl.load(firsts + program)
    first = tl.multiple_of(first, NUMBERS)
    values, targets = _place(row, 0, first, KIND, ALIGNED), _place(row, 1, first, KIND, ALIGNED)
    count, number = tl.load(row + 2) - first, tl.load(row + 3)
    if count >= NUMBERS:
        _nearer(values, targets, count, first, number, seed, share, KIND, NUMBERS, True)
    else:
        _nearer(values, targets, count, first, number, seed, share, KIND, NUMBERS, False)


class Known(NamedTuple):
    """Of weights that are changed together: where all lies, whether many numbers can be read at once, and the
    table."""

    places: list[array[int]]
    aligned: bool
    table: Tensor


class RoundingKernel:
    """Changes weights of one type, or averages."""

    def __init__(self) -> None:
        self.known: dict[tuple[int, ...], Known] = {}
        self.programs: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}
        """Each one's row in the table and first number, by how many numbers the weights have."""

    def move(
        self, weights: Sequence[Tensor], sides: Sequence[Sequence[Tensor]], numbered: Sequence[int],
        seed: int, step: int, group: dict[str, Any],
    ) -> None:  # fmt: skip
        """The `step`-th step, from 1. `sides` are gradients, means and squares, which lie as the weights do,
        and `numbered` the weights' places. Raises ValueError for sides of another size or type."""
        first, second = group["betas"]
        rule = (
            1 - first, 1 - second, 1 - first**step, 1 - second**step,
            group["lr"], 1 - group["lr"] * group["weight_decay"], group["eps"],
        )  # fmt: skip
        self._launch(_change, weights, sides, numbered, seed, *rule)

    def follow(
        self, values: Sequence[Tensor], targets: Sequence[Tensor], numbered: Sequence[int], seed: int,
        share: float,
    ) -> None:  # fmt: skip
        """Bring averages nearer to their targets, by a share of what lies between. Raises ValueError for
        targets of another size or type."""
        self._launch(_follow, values, [targets], numbered, seed, share)

    def _launch(
        self, kernel: Any, weights: Sequence[Tensor], sides: Sequence[Sequence[Tensor]],
        numbered: Sequence[int], seed: int, *rule: float,
    ) -> None:  # fmt: skip
        known, (tensors, firsts) = self._known(weights, sides, numbered), self._programs(weights)
        kind = {torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}[weights[0].dtype]
        kernel[(len(firsts),)](
            known.table, tensors, firsts, seed, *rule, KIND=kind, ALIGNED=known.aligned,
            COLUMNS=known.table.shape[1], NUMBERS=NUMBERS, num_warps=8,
        )  # fmt: skip

    def _known(
        self, weights: Sequence[Tensor], sides: Sequence[Sequence[Tensor]], numbered: Sequence[int]
    ) -> Known:
        """What was found for the same weights before, if all still lies there."""
        key, places = tuple(map(id, weights)), [*map(places_of, (weights, *sides))]
        if key not in self.known or self.known[key].places != places:
            for side in sides:
                for one, weight in zip(side, weights, strict=True):
                    if (one.shape, one.dtype) != (weight.shape, weight.dtype):
                        raise ValueError(
                            f"{one.dtype} {list(one.shape)} beside a weight {list(weight.shape)}"
                        )
            counts = [weight.numel() for weight in weights]
            rows = np.array([*places, counts, numbered], np.int64)
            table = sent(torch.from_numpy(rows.T.copy()), weights[0].device)
            self.known[key] = Known(places, not (rows[: len(places)] % ALIGNMENT).any(), table)
        return self.known[key]

    def _programs(self, weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        key = tuple(weight.numel() for weight in weights)
        if key not in self.programs:
            programs = [-(-count // NUMBERS) for count in key]
            tensors = np.repeat(np.arange(len(key)), programs)
            firsts = np.concatenate([np.arange(count) * NUMBERS for count in programs])
            device = weights[0].device
            self.programs[key] = (
                sent(torch.from_numpy(tensors), device),
                sent(torch.from_numpy(firsts), device),
            )
        return self.programs[key]
