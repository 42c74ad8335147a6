"""What smooth_add is: a median over 3 neighbours along each axis, then a Gaussian of sigma 1 along each."""

from __future__ import annotations

import math
from functools import cache

from aid.merge.modes.mode import Shape

WEIGHTS = (  # from the middle on; as scipy has it, what is more than 4 places away counts for nothing
    0.39894346935609776,
    0.24197144565660073,
    0.05399112742070441,
    0.0044318616200312655,
    0.00013383062461474175,
)
MANY = 1 << 18
"""Values at a time: many rows, as one hangs on 5 to each side, 4 medians and the last one's neighbour."""
MOST_STAGES = 4
"""That the kernel has room for."""
Network = tuple[list[tuple[int, int]], list[int]]
"""Wires to be compared, the lesser going to the first; and the wires where the results are then."""


def row_of(shape: Shape) -> int:
    """How many values one place of the first axis has."""
    return math.prod(shape[1:])


def around(shape: Shape) -> int:
    """How many values more, to each side, a part hangs on."""
    return len(WEIGHTS) * row_of(shape)


def stages(shape: Shape) -> int:
    """One for each axis; of the third and further ones those that aren't 1 long."""
    return 2 + sum(size > 1 for size in shape[2:])


@cache
def networks(stages: int) -> tuple[int, ...]:
    """Of all stages, as `modes.c` reads them. Each makes one sorted list of three that the one before has
    made, in two steps; the last has the first step alone."""
    flat = list[int]()
    for stage in range(stages):
        for pairs, results in merging(3**stage, only_median=stage == stages - 1):
            flat += [len(pairs), len(results), *(wire for pair in pairs for wire in pair), *results]
    return tuple(flat)


def merging(each: int, only_median: bool) -> list[Network]:
    """Of two sorted lists as long as `each`, then of these and a third. The median of all is the least of
    what is greater, a value of the third or that of the first step's `each` + 1 results opposite."""
    first, second = list[tuple[int, int]](), list[tuple[int, int]]()
    results = _merge(list(range(each)), list(range(each, 2 * each)), first)
    if only_median:
        results = results[each // 2 : each // 2 + each + 1]
        return [(_needed(first, results), results)]
    return [(first, results), (second, _merge(results, list(range(2 * each, 3 * each)), second))]


def _merge(one: list[int], other: list[int], pairs: list[tuple[int, int]]) -> list[int]:
    """Batcher's odd-even merging (Knuth, The Art of Computer Programming 3, 5.3.4)."""
    if not one or not other:
        return one or other
    if len(one) == len(other) == 1:
        pairs.append((one[0], other[0]))
        return one + other
    even, odd = (_merge(one[half::2], other[half::2], pairs) for half in (0, 1))
    pairs += zip(odd, even[1:])  # noqa: B905 (either may be longer)
    results = [wire for pair in zip(odd, even[1:]) for wire in pair]  # noqa: B905
    return [even[0], *results, *even[1 + len(odd) :], *odd[len(even) - 1 :]]


def _needed(pairs: list[tuple[int, int]], results: list[int]) -> list[tuple[int, int]]:
    """Those that any of these results hangs on."""
    wires, found = set(results), list[tuple[int, int]]()
    for pair in reversed(pairs):
        if wires.intersection(pair):
            wires.update(pair)
            found.append(pair)
    return found[::-1]
