"""An interruption at a point that is known."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

from aid.core.workbench import Silence, Ticker


class Interrupting(Silence):
    """Stands for Ctrl-C: raises after a number of ticks, of tasks of the label if one is given. `done` tells
    where each of these tasks went on."""

    def __init__(self, after: float = math.inf, label: str = "") -> None:
        self.left, self.label = after, label
        self.done: list[int] = []

    @contextmanager
    def task(self, label: str, total: int, unit: str = "", done: int = 0) -> Iterator[Ticker]:
        counts = self.label in ("", label)
        self.done += [done] * counts

        def tick(count: int = 1, note: str = "") -> None:
            self.left -= count * counts
            if self.left <= 0:
                raise KeyboardInterrupt

        yield tick
