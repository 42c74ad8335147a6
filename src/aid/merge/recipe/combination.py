"""A recipe of any depth as one sum for each tensor: models and their weights.

Steps that only weigh are multiplied out. What isn't a weighing (see `nonlinear`) stays a term of its own,
with sums as its operands. So every value is computed once and rounded once, and what has the weight 0 isn't
read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
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
Numbers = tuple[float, float, float]
"""Alpha, beta and gamma of one step, for one tensor."""


def models_in(combination: Combination) -> tuple[str, ...]:
    """Every model that a combination reads."""
    found: dict[str, None] = {}
    for leaf, _ in combination:
        found.update(dict.fromkeys((leaf,) if isinstance(leaf, str) else leaf.models()))
    return tuple(found)


def weighed(parts: Iterable[tuple[float, Combination]]) -> Combination:
    """The sum of combinations, each times a number."""
    total: dict[str | Call, float] = {}
    for number, combination in parts:
        for leaf, weight in combination:
            total[leaf] = total.get(leaf, 0.0) + number * weight
    return tuple((leaf, _settled(weight)) for leaf, weight in total.items() if abs(weight) > ROUNDING)


def _settled(weight: float) -> float:
    """1 where decimals missed it: such a tensor is then copied byte for byte."""
    return 1.0 if abs(weight - 1.0) <= ROUNDING else weight


@lru_cache(maxsize=4096)
def shared(shares: tuple[tuple[str, float], ...], held: tuple[str, ...]) -> Combination:
    """The models' shares. Those of models without the tensor go to the first that has it: MBW leaves or
    copies such tensors."""
    lent = sum(share for name, share in shares if name not in held)
    own = {name: share + (lent if name == held[0] else 0.0) for name, share in shares if name in held}
    return weighed([(1.0, tuple(own.items()))])


def applied(
    mode: str, operands: Sequence[Combination | None], numbers: Numbers | None, seed: int
) -> Combination | None:
    """One step for one tensor. An operand of None doesn't have the tensor: then it is that of the first which
    has it, a difference to nothing being none. `numbers` of None leave A as it is."""
    present = [operand for operand in operands if operand is not None]
    if numbers is None or len(present) < len(operands):
        return present[0] if present else None
    alpha, beta, gamma = numbers
    if mode in LINEAR:
        return weighed(zip(LINEAR[mode](alpha, beta), present, strict=True))
    return ((Call(mode, tuple(present), alpha, beta, gamma, seed), 1.0),)


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
    made: dict[str, Combination | None] = {name: ((name, 1.0),) for name in held}
    for link, own in zip(links, numbers, strict=True):
        made[link.name] = applied(link.mode, [made.get(name) for name in link.operands], own, link.seed)
    return made[links[-1].name] or ()
