"""Where a run's time goes: the seconds of named functions, each without those that it calls."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any


class PartClock:
    """`spent` is the seconds of each part; parts of another thread count too, beside those of the first."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}
        self._inner = threading.local()

    @contextmanager
    def parts(self, functions: Mapping[str, Sequence[tuple[Any, str]]]) -> Iterator[None]:
        """Time the functions, which are attributes of modules, classes or objects, inside the `with`."""
        kept = [
            (part, owner, name, vars(owner).get(name))
            for part, all in functions.items()
            for owner, name in all
        ]
        for part, owner, name, _ in kept:
            setattr(owner, name, self._timed(part, getattr(owner, name)))
        try:
            yield
        finally:
            for _, owner, name, own in kept:
                setattr(owner, name, own) if own is not None else delattr(owner, name)

    def _timed(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            before, self._inner.seconds = getattr(self._inner, "seconds", 0.0), 0.0
            started = time.perf_counter()
            try:
                return call(*arguments, **named)
            finally:
                whole = time.perf_counter() - started
                self.spent[part] = self.spent.get(part, 0.0) + whole - self._inner.seconds
                self._inner.seconds = before + whole

        return run
