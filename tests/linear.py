"""Whether work grows with its input, told from its growth and not from the clock."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

TIMES = 16
BOUND = 100  # linear work takes 16 times as long, quadratic 256 times; a busy machine moves either


def is_linear(work: Callable[[int], object], size: int) -> bool:
    """Compares CPU time at `size` and at a sixteenth of it, each the best of three."""
    long, short = (min(_seconds(work, n) for _ in range(3)) for n in (size, size // TIMES))
    return long < BOUND * max(short, 1e-4)


def _seconds(work: Callable[[int], object], size: int) -> float:
    gc.collect()
    gc.disable()
    try:
        start = time.process_time()
        work(size)
        return time.process_time() - start
    finally:
        gc.enable()
