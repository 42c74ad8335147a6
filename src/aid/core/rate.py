"""Learning rates over a run, as factors."""

from __future__ import annotations

import math


def rate_factor(index: int, steps: int, warmup: int, schedule: str) -> float:
    """The learning rate at step `index` of `steps`, as a factor."""
    if index < warmup:
        return (index + 1) / warmup
    passed = (index - warmup) / max(1, steps - warmup)
    return {"constant": 1.0, "linear": 1 - passed, "cosine": 0.5 * (1 + math.cos(math.pi * passed))}[schedule]
