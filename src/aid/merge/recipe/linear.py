"""The modes that only weigh: result = sum of weight times model. A mode is a function of a step's weights."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

Weights = tuple[Fraction, ...]
Linear = Callable[[Fraction, Fraction], Weights]
"""(alpha, beta) -> the weight of A, B and C."""
ONE = Fraction(1)


def weighted_sum(alpha: Fraction, beta: Fraction) -> Weights:
    """(1 - alpha) A + alpha B."""
    return (1 - alpha, alpha)


def add_difference(alpha: Fraction, beta: Fraction) -> Weights:
    """A + alpha (B - C): what B learned beyond C."""
    return (ONE, alpha, -alpha)


def subtract(alpha: Fraction, beta: Fraction) -> Weights:
    """A - alpha (B - C): what B, a bad model, learned beyond C is taken away."""
    return (ONE, -alpha, alpha)


def sum_twice(alpha: Fraction, beta: Fraction) -> Weights:
    """(1 - beta) ((1 - alpha) A + alpha B) + beta C."""
    return ((1 - beta) * (1 - alpha), (1 - beta) * alpha, beta)


def triple_sum(alpha: Fraction, beta: Fraction) -> Weights:
    """(1 - alpha - beta) A + alpha B + beta C."""
    return (1 - alpha - beta, alpha, beta)


LINEAR: dict[str, Linear] = {
    mode.__name__: mode for mode in (weighted_sum, add_difference, subtract, sum_twice, triple_sum)
}
