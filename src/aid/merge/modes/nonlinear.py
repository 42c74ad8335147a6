"""The modes that don't only weigh: pure functions of a part of A, B, ... and of what a step is told.

Each works part by part, after a first pass over the whole tensor where it needs one. Arrays are flat,
float32, or float64 where the result is; sums are taken in float64 over parts that are always the same, so
that the same tensors give the same bytes everywhere. Sources: hako-mikan's sd-webui-supermerger, s1dlx's meh,
ljleb's sd-mecha; TIES: Yadav et al. 2023; DARE: Yu et al. 2023; SLERP: Shoemake 1985.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aid.merge.arithmetic.source import Operand
from aid.merge.arithmetic.sums import arithmetic, in_memory
from aid.merge.modes import smooth
from aid.merge.modes.mode import Given, Mode, Shape, Told
from aid.merge.modes.selection import place_of, ranked
from aid.merge.modes.slerp import slerp
from aid.sd.file.header import ITEM_BYTES

LANES = 8
TINIEST = (
    1e-40  # of a column's square: it is brought to length 1 first, so only what is less counts as nothing
)
DTYPES = {"F32": np.float32, "F64": np.float64}
Array = NDArray[Any]
Arrays = Sequence[Array]
Kept = Callable[[], Array]
"""Doubles that were laid aside."""


def _of_arrays(part: Callable[[Arrays, Told], Array]) -> Callable[[Sequence[Operand], Told], memoryview]:
    def of_operands(models: Sequence[Operand], told: Told) -> memoryview:
        result = part([_array(one, told.given[1], told.working) for one in models], told)
        return _bytes_of(result.astype(DTYPES[told.working], copy=False))

    return of_operands


def _array(operand: Operand, count: int, working: str) -> Array:
    if operand.format != working:
        room = memoryview(bytearray(count * ITEM_BYTES[working]))
        arithmetic([operand.format, working]).blend([operand], count, working, room)
        operand = Operand(room, working)
    return np.frombuffer(in_memory(operand), DTYPES[working], count)


def _bytes_of(values: Array) -> memoryview:
    return memoryview(np.ascontiguousarray(values).view(np.uint8).data)


def _parts(given: Given, which: Sequence[int], grain: int = 1, every: int = 1) -> Iterator[list[Array]]:
    for count, operands in given.parts(which, grain, every):
        yield [_array(one, count, given.working) for one in operands]


def train_difference(models: Arrays, told: Told) -> Array:
    """A + 1.8 alpha s (B - C), s = |B - A| / (|B - A| + |B - C|): the more where A hasn't learned it yet."""
    a, b, c = models
    learned, left = b - c, np.abs(b - a)
    both = left + np.abs(learned)
    share = np.divide(left, both, out=np.zeros_like(both), where=both != 0)
    return np.asarray(a + 1.8 * told.alpha * share * learned)


def smooth_add(models: Arrays, told: Told) -> Array:
    """A + alpha S(B - C): the median over 3 neighbours along each axis, then a Gaussian of sigma 1. Beyond an
    edge the tensor is mirrored."""
    (count, *rest), row = told.shape or (1,), smooth.row_of(told.shape)
    given = told.given[0] // row
    wanted = np.arange(told.start // row, (told.start + told.length) // row)
    a, b, c = (one.reshape(-1, *rest) for one in models)
    reach = len(smooth.WEIGHTS) - 1
    rows = range(max(0, told.start // row - reach), min(count, wanted[-1] + 1 + reach))
    difference = b - c + 0.0  # two zeros of different signs would have no order
    medians = np.stack(
        [_median(difference[_mirrored(np.arange(at - 1, at + 2), count) - given]) for at in rows]
    )
    if told.shape:
        medians = _blurred(lambda shift: medians[_mirrored(wanted + shift, count) - rows[0]])
    for axis in range(1, len(told.shape)):
        medians = _blurred(partial(_beside, medians, axis))
    return np.asarray(a[wanted - given] + told.alpha * medians).reshape(-1)


def _median(rows: Array) -> Array:
    """Of a row, with the one before and the one after, along all axes."""
    for axis in range(1, rows.ndim):
        rows = np.concatenate([_beside(rows, axis, shift) for shift in (-1, 0, 1)])
    return np.asarray(np.partition(rows, len(rows) // 2, axis=0)[len(rows) // 2])


def _blurred(beside: Callable[[int], Array]) -> Array:
    """`beside` gives what is so many places further."""
    total = beside(0) * smooth.WEIGHTS[0]
    for shift in range(len(smooth.WEIGHTS) - 1, 0, -1):  # scipy's order
        total += (beside(-shift) + beside(shift)) * smooth.WEIGHTS[shift]
    return np.asarray(total)


def _beside(values: Array, axis: int, shift: int) -> Array:
    size = values.shape[axis]
    return np.asarray(np.take(values, _mirrored(np.arange(size) + shift, size), axis))


def _mirrored(places: Array, size: int) -> Array:
    turn = places % (2 * size)
    return np.asarray(np.minimum(turn, 2 * size - 1 - turn))


def cosine_a(models: Arrays, told: Told) -> Array:
    """A where the two are alike, B elsewhere: each column's cosine and all columns' together, averaged. The
    range is of the columns' alone, and alpha counts by its size."""
    columns, whole = told.measured
    return _favoured(models, told, (columns() + whole) / 2, abs(told.alpha))


def cosine_b(models: Arrays, told: Told) -> Array:
    """As `cosine_a`, by each column's cosine and the whole tensors', averaged; so is the range."""
    return _favoured(models, told, told.measured(), told.alpha)


def _favoured(models: Arrays, told: Told, alike: Array, alpha: float) -> Array:
    """A's share is where in the range a column's likeness lies, less alpha; none where a tensor is all 0."""
    a, b = models
    lowest, highest = told.bounds
    places = np.arange(told.start, told.start + len(a)) % math.prod(told.shape[1:])
    share = np.clip((alike[places] - lowest) / (highest - lowest or 1.0) - alpha, 0.0, 1.0)
    share = np.nan_to_num(share).astype(a.dtype)
    return np.asarray(b * (1 - share) + a * share)


def alike_a(given: Given, beta: float) -> tuple[Kept, float]:
    """Each column's cosine, and that of all columns together, each of length 1."""
    product, *squares = _column_sums(given)
    columns = _cosine(product, *squares, least=TINIEST)
    whole = _whole(columns.sum(), *(float(np.count_nonzero(one)) for one in squares))
    return _kept(given, columns), whole


def alike_b(given: Given, beta: float) -> Kept:
    """Each column's cosine and the whole tensors', averaged."""
    sums = _column_sums(given)
    return _kept(given, (_cosine(*sums) + _whole(*(one.sum() for one in sums))) / 2)


def _kept(given: Given, doubles: Array) -> Kept:
    read = given.keep(doubles.tobytes())
    return lambda: np.frombuffer(read())


def _column_sums(given: Given) -> Array:
    """Of A B, A A and B B."""
    columns = math.prod(given.shape[1:])
    sums = np.zeros((3, columns))
    for a, b in _parts(given, (0, 1), columns):
        a, b = (one.reshape(-1, columns).astype(np.float64) for one in (a, b))
        for total, (x, y) in zip(sums, ((a, b), (a, a), (b, b)), strict=True):
            total += np.sum(x * y, axis=0)
    return sums


def _cosine(product: Any, *squares: Any, least: float = 1e-16) -> Any:
    """Squares of lengths count as `least` at least, as torch has it."""
    return product / np.sqrt(np.maximum(squares[0], least) * np.maximum(squares[1], least))


def _whole(product: float, *squares: float) -> float:
    """NaN if a tensor is all 0."""
    length = math.sqrt(squares[0]) * math.sqrt(squares[1])
    return float(product) / length if length else math.nan


def tensor(models: Arrays, told: Told) -> Array:
    """A, but B in the rows from beta to alpha + beta of their number, going round beyond the last."""
    return _taken(models, told, math.prod(told.shape[1:]), told.shape[0]) if told.shape else models[0]


def tensor2(models: Arrays, told: Told) -> Array:
    """As `tensor`, by columns where there are more than a hundred."""
    if len(told.shape) < 2 or told.shape[1] <= 100:
        return tensor(models, told)
    return _taken(models, told, math.prod(told.shape[2:]), told.shape[1])


def _taken(models: Arrays, told: Told, width: int, count: int) -> Array:
    """By places along an axis `count` long, each of `width` values."""
    a, b = models
    places = np.arange(told.start, told.start + len(a)) // width % count
    end = told.alpha + told.beta
    if end <= 1:
        first, last = told.beta, end
    else:
        a, b, first, last = b, a, end - 1, told.beta
    return np.where((places >= int(count * first)) & (places < int(count * last)), b, a)


def extract(models: Arrays, told: Told) -> Array:
    """A + what B and C, mixed by alpha, have in common beyond A; with beta 1 what they don't have in common.
    The greater gamma, the more alike it must be."""
    base, b, c = models
    b, c = b - base, c - base
    rows = [one.reshape(-1, last_axis(told.shape)).astype(np.float64) for one in (b, c)]
    sums = [np.sum(x * y, axis=1, keepdims=True) for x, y in (rows, rows[:1] * 2, rows[1:] * 2)]
    alike = (((np.clip(_cosine(*sums), -1, 1) + 1) / 2) ** told.gamma).astype(base.dtype)
    kept = np.repeat(alike + told.beta * (1 - 2 * alike), last_axis(told.shape))
    return np.asarray(base + (b + told.alpha * (c - b)) * kept)


def last_axis(shape: Shape) -> int:
    return max(1, shape[-1]) if shape else 1


def ties(models: Arrays, told: Told) -> Array:
    """A + alpha times the mean of what the others agree on: of each one's differences the largest, a share of
    beta, and of these only those with the sign that most have."""
    return _agreed(models, told, np.sign)


def ties_mass(models: Arrays, told: Told) -> Array:
    """`ties`, the sign being that of the differences' sum, as in the paper."""
    return _agreed(models, told, lambda difference: difference)


def _agreed(models: Arrays, told: Told, vote: Callable[[Array], Array]) -> Array:
    own, *others = models
    differences = [
        np.where(np.abs(d := other - own) >= end, d, 0)
        for other, end in zip(others, told.measured, strict=True)
    ]
    return np.asarray(own + told.alpha * _mean_of_agreed(differences, vote))


def _mean_of_agreed(differences: Arrays, vote: Callable[[Array], Array]) -> Array:
    elected = np.sign(sum(map(vote, differences)))
    agree = [np.sign(one) == elected for one in differences]
    total = sum(np.where(own, one, 0) for own, one in zip(agree, differences, strict=True))
    count = sum(own.astype(elected.dtype) for own in agree)
    return np.asarray(np.divide(total, count, out=np.zeros_like(elected), where=count != 0))


def least(given: Given, share: float) -> list[float]:
    """The size of each model's smallest difference among its largest, a share of all."""
    return [_least(given, number, place_of(share, given.size)) for number in range(1, given.models)]


def _least(given: Given, number: int, place: int) -> float:
    def count(lowest: int, shift: int, bin_bits: int, every: int) -> Counts:
        sizes = (np.abs(one - base) for base, one in _parts(given, (0, number), every=every))
        return Counts.of(sizes, lowest, shift, 1 << bin_bits)

    item = ITEM_BYTES[given.working]
    found = ranked(place, given.size, count, 8 * item - 1)
    return float(np.array(found, f"u{item}").view(f"f{item}"))


@dataclass(frozen=True)
class Counts:
    below: int
    total: int
    counts: Array

    @classmethod
    def of(cls, sizes: Iterable[Array], lowest: int, shift: int, bins: int) -> Counts:
        below, total, counts = 0, 0, np.zeros(bins, np.int64)
        for values in sizes:
            bits = values.view(f"u{values.itemsize}")
            above = bits[bits >= lowest]
            below, total = below + len(bits) - len(above), total + len(bits)
            own = (above - above.dtype.type(lowest)) >> shift
            np.add.at(counts, own[own < bins].astype(np.intp), 1)
        return cls(below, total, counts)

    def bin(self, place: int) -> int | None:
        found = int(np.searchsorted(np.cumsum(self.counts), place, side="right"))
        return found if found < len(self.counts) else None


def dare(models: Arrays, told: Told) -> Array:
    """A + alpha times the mean of the others' differences, of which a share of beta is dropped by chance and
    the rest enlarged to make up for it."""
    base, total, size = models[0], np.zeros_like(models[0]), math.prod(told.shape)
    for number, model in enumerate(models[1:]):
        bits, taken = _generator(told, number * size)
        chance = np.random.Generator(bits)
        chance.random(taken, dtype=np.float32)
        kept = chance.random(told.length, dtype=np.float32) >= told.beta
        total += np.where(kept, model - base, 0)
    return base + dare_scale(told, len(models)) * total


def dare_scale(told: Told, models: int) -> float:
    return told.alpha / ((1 - told.beta) * (models - 1))


def states(told: Told, models: int) -> list[int]:
    """PCG64's before the first draw for each model but the first: state and increment, each the upper half
    first, and 1 if half of the next draw belongs to the part before."""
    size, words, low = math.prod(told.shape), list[int](), (1 << 64) - 1
    for number in range(models - 1):
        bits, taken = _generator(told, number * size)
        own = bits.state["state"]
        words += [half for word in (own["state"], own["inc"]) for half in (word >> 64, word & low)]
        words.append(taken)
    return words


def _generator(told: Told, row: int) -> tuple[np.random.PCG64, int]:
    """Of a tensor's own numbers, whatever has been drawn before, at a part of one of the rows; and 1 if half
    of the next draw belongs to the part before."""
    digest = hashlib.sha256(f"{told.seed} {told.key}".encode()).digest()
    bits, first = np.random.PCG64(int.from_bytes(digest[:16], "little")), row + told.start
    bits.advance(first // 2)
    return bits, first % 2


def products(given: Given, beta: float) -> list[float]:
    """A B, A A and B B: of each part in eight sums side by side, which are then added in halves."""
    found = [0.0] * 3
    for arrays in _parts(given, (0, 1)):
        a, b = (np.pad(one.astype(np.float64), (0, -len(one) % LANES)).reshape(-1, LANES) for one in arrays)
        for number, (x, y) in enumerate(((a, b), (a, a), (b, b))):
            sums = np.sum(x * y, axis=0)
            while len(sums) > 1:
                sums = sums[: len(sums) // 2] + sums[len(sums) // 2 :]
            found[number] += float(sums[0])
    return found


NONLINEAR: dict[str, Mode] = {
    "train_difference": Mode(_of_arrays(train_difference), exact=True),
    "smooth_add": Mode(
        _of_arrays(smooth_add), grain=smooth.row_of, around=smooth.around, values=smooth.MANY, exact=True
    ),
    "cosine_a": Mode(_of_arrays(cosine_a), alike_a, exact=True, ranged=lambda measured: measured[0]),
    "cosine_b": Mode(_of_arrays(cosine_b), alike_b, exact=True),
    "tensor": Mode(_of_arrays(tensor)),
    "tensor2": Mode(_of_arrays(tensor2)),
    "extract": Mode(_of_arrays(extract), grain=last_axis, exact=True),
    "ties": Mode(_of_arrays(ties), least),
    "ties_mass": Mode(_of_arrays(ties_mass), least),
    "dare": Mode(_of_arrays(dare)),
    "slerp": Mode(slerp, products),
}


def range_of(found: Sequence[Kept]) -> tuple[float, float]:
    """As supermerger takes it: what lies below the first percentile goes, then what is above the last. A
    percentile between two values is their mean; NaN counts as nothing."""
    count = sum(int(np.count_nonzero(one() <= math.inf)) for one in found)
    before, after = (count - 1) // 100, -(-(count - 1) // 100)
    lowest = _nth(found, after)
    middle = (_nth(found, before) + lowest) / 2
    gone = sum(int(np.count_nonzero(one() < middle)) for one in found)
    return lowest, _nth(found, gone + (count - gone - 1) * 99 // 100)


def _nth(found: Sequence[Kept], place: int) -> float:
    """The value with that many before it, by halving the doubles: to sort them all would take their memory
    once more."""
    low, high = -INFINITY, INFINITY
    while low < high:
        middle = (low + high) // 2
        if sum(int(np.count_nonzero(one() <= _double(middle))) for one in found) > place:
            high = middle
        else:
            low = middle + 1
    return _double(low)


INFINITY = 0x7FF << 52  # its bits


def _double(number: int) -> float:
    """Doubles in their order, 0 at 0."""
    size = float(struct.unpack("=d", struct.pack("=q", abs(number)))[0])
    return size if number >= 0 else -size
