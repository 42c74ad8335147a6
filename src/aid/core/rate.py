"""Learning rates over a run."""

from __future__ import annotations

import math
import re

PIECE = re.compile(r"(?P<rate>\d*\.?\d+(?:[eE][+-]?\d+)?)\s*(?::\s*(?P<end>\d+|-1))?")


def rate_factor(index: int, steps: int, warmup: int, schedule: str) -> float:
    """The learning rate at step `index` of `steps`, as a factor."""
    if index < warmup:
        return (index + 1) / warmup
    passed = (index - warmup) / max(1, steps - warmup)
    return {"constant": 1.0, "linear": 1 - passed, "cosine": 0.5 * (1 + math.cos(math.pi * passed))}[schedule]


def read_rates(text: str) -> tuple[tuple[float, int], ...]:
    """Rates with the step that each goes up to, of which the last doesn't count: `0.005:100, 1e-3`, or
    `0.005:100, 1e-3:-1`, as A1111 writes them. Raises ValueError."""
    found = [PIECE.fullmatch(piece.strip()) for piece in text.split(",")]
    rates = tuple((float(one["rate"]), int(one["end"] or 0)) for one in found if one)
    ends = [end for _, end in rates[:-1]]
    if len(rates) < len(found) or not all(0 < rate < math.inf for rate, _ in rates):
        raise ValueError(f"{text!r} are no rates; expected such as `0.005:100, 1e-3`")
    if ends != sorted({end for end in ends if end > 0}):
        raise ValueError(f"{text!r}: each rate but the last needs a later step than the one before")
    return rates


def stepped_rate(rates: tuple[tuple[float, int], ...], index: int) -> float:
    """The rate at step `index`, from 0."""
    return next((rate for rate, end in rates[:-1] if index < end), rates[-1][0])
