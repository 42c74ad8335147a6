"""A recipe of any depth as one sum for each tensor: models and their weights.

Steps that only weigh are multiplied out. What isn't a weighing (see `nonlinear`) stays a term of its own,
with sums as its operands. So every value is computed once and rounded once, and what has the weight 0 isn't
read. Weights are multiplied as the decimals that people write: 1 - .7 is .3.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from typing import Union

from aid.merge.recipe.linear import LINEAR

ROUNDING = 1e-9  # a weight this small is what decimals such as 0.1 + 0.2 + 0.7 leave over


@dataclass(frozen=True)
class Call:
    """A mode that doesn't only weigh, and what it is given."""

    mode: str
    operands: tuple[Combination, ...]
    alpha: float
    beta: float
    gamma: float
    seed: int

    def models(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for operand in self.operands for name in models_in(operand)))


Term = tuple[Union[str, Call], float]  # noqa: UP007 (Call is defined by it)
Combination = tuple[Term, ...]
"""Models, or calls, with the weights other than 0 that they have."""
Exact = Mapping[Union[str, Call], Fraction]  # noqa: UP007
"""The same while it is worked out."""
Numbers = tuple[float, float, float]
"""Alpha, beta and gamma of one step, for one tensor."""


def models_in(combination: Combination) -> tuple[str, ...]:
    """Every model that a combination reads."""
    found: dict[str, None] = {}
    for leaf, _ in combination:
        found.update(dict.fromkeys((leaf,) if isinstance(leaf, str) else leaf.models()))
    return tuple(found)


def exact(number: float) -> Fraction:
    """The decimal that a person means by it."""
    return Fraction(repr(number))


def weighed(parts: Iterable[tuple[Fraction, Exact]]) -> Exact:
    """The sum of combinations, each times a number."""
    total: dict[str | Call, Fraction] = {}
    for number, combination in parts:
        for leaf, weight in combination.items():
            total[leaf] = total.get(leaf, Fraction()) + number * weight
    return total


def settled(combination: Exact) -> Combination:
    """As floats. What decimals leave over is dropped, and 1 is 1 where they missed it: then the tensor is
    copied byte for byte."""
    floats = ((leaf, float(weight)) for leaf, weight in combination.items())
    return tuple(
        (leaf, 1.0 if abs(weight - 1.0) <= ROUNDING else weight)
        for leaf, weight in floats
        if abs(weight) > ROUNDING
    )


@lru_cache(maxsize=4096)
def shared(shares: tuple[tuple[str, float], ...], held: tuple[str, ...]) -> Combination:
    """The models' shares. Those of models without the tensor go to the first that has it: MBW leaves or
    copies such tensors."""
    own = {name: exact(share) for name, share in shares}
    lent = sum((share for name, share in own.items() if name not in held), Fraction())
    return settled({name: own[name] + (lent if name == held[0] else 0) for name in own if name in held})


def applied(mode: str, operands: Sequence[Exact | None], numbers: Numbers | None, seed: int) -> Exact | None:
    """One step for one tensor. An operand of None doesn't have the tensor: then it is that of the first which
    has it, a difference to nothing being none. `numbers` of None leave A as it is."""
    present = [operand for operand in operands if operand is not None]
    if numbers is None or len(present) < len(operands):
        return present[0] if present else None
    alpha, beta, gamma = numbers
    if mode in LINEAR:
        return weighed(zip(LINEAR[mode](exact(alpha), exact(beta)), present, strict=True))
    return {Call(mode, tuple(map(settled, present)), alpha, beta, gamma, seed): Fraction(1)}


@dataclass(frozen=True)
class Link:
    """One step's place in a chain: its mode, and its operands by name."""

    name: str
    mode: str
    operands: tuple[str, ...]
    seed: int = 0


@lru_cache(maxsize=4096)
def chained(
    links: tuple[Link, ...], numbers: tuple[Numbers | None, ...], held: tuple[str, ...]
) -> Combination:
    """The last step's result for one tensor; given are each step's numbers and the models that have it."""
    made: dict[str, Exact | None] = {name: {name: Fraction(1)} for name in held}
    for link, own in zip(links, numbers, strict=True):
        made[link.name] = applied(link.mode, [made.get(name) for name in link.operands], own, link.seed)
    return settled(made[links[-1].name] or {})


def in_place(combination: Combination, places: Mapping[str, int]) -> Combination:
    """The same with models added up by their `places`, then modes: so sums of three or more don't hang on who
    was named first. Operands of modes stay where they are; their own sums are put in order."""

    def place(term: Term) -> tuple[int, float]:
        leaf, weight = term
        return (places[leaf] if isinstance(leaf, str) else len(places)), weight

    def inner(leaf: str | Call) -> str | Call:
        if isinstance(leaf, str):
            return leaf
        return replace(leaf, operands=tuple(in_place(operand, places) for operand in leaf.operands))

    return tuple(sorted(((inner(leaf), weight) for leaf, weight in combination), key=place))


def is_ordered(combination: Combination) -> bool:
    """Whether the order of its terms may tell: two can be added either way."""
    inner = (operand for leaf, _ in combination if isinstance(leaf, Call) for operand in leaf.operands)
    return len(combination) > 2 or any(map(is_ordered, inner))
