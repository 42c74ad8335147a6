"""How the command line tells what is going on where there is no terminal, without waiting for rich."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from aid.core.workbench import Ticker

PLAIN_SECONDS = 15.0  # between two lines


class Lines:
    """Progress on standard error, so that standard output holds only results."""

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    @contextmanager
    def task(self, label: str, total: int, unit: str = "", done: int = 0) -> Iterator[Ticker]:
        began = told = time.monotonic()
        start, count_done = done, done

        def line(note: str) -> None:
            rate = (count_done - start) / max(1e-9, time.monotonic() - began)
            left = f", {(total - count_done) / rate:.0f} s left" if rate and count_done < total else ""
            self.say(
                f"  {label}: {count_done}/{total} {unit}, {rate:.1f}/s{left}{', ' if note else ''}{note}"
            )

        def tick(count: int = 1, note: str = "") -> None:
            nonlocal told, count_done
            count_done += count
            if time.monotonic() - told > PLAIN_SECONDS:
                told = time.monotonic()
                line(note)

        yield tick
        line("")
