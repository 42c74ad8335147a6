"""The modes that only weigh: result = sum of weight times model. A mode is a function of a step's weights."""

from __future__ import annotations

from collections.abc import Callable

Linear = Callable[[float, float], tuple[float, ...]]
"""(alpha, beta) -> the weight of A, B and C."""


def weighted_sum(alpha: float, beta: float) -> tuple[float, ...]:
    """(1 - alpha) A + alpha B."""
    return (1 - alpha, alpha)


def add_difference(alpha: float, beta: float) -> tuple[float, ...]:
    """A + alpha (B - C): what B learned beyond C."""
    return (1.0, alpha, -alpha)


def subtract(alpha: float, beta: float) -> tuple[float, ...]:
    """A - alpha (B - C): what B, a bad model, learned beyond C is taken away."""
    return (1.0, -alpha, alpha)


def sum_twice(alpha: float, beta: float) -> tuple[float, ...]:
    """(1 - beta) ((1 - alpha) A + alpha B) + beta C."""
    return ((1 - beta) * (1 - alpha), (1 - beta) * alpha, beta)


def triple_sum(alpha: float, beta: float) -> tuple[float, ...]:
    """(1 - alpha - beta) A + alpha B + beta C."""
    return (1 - alpha - beta, alpha, beta)


LINEAR: dict[str, Linear] = {
    mode.__name__: mode for mode in (weighted_sum, add_difference, subtract, sum_twice, triple_sum)
}
