"""Where the work is done: device, threads, and how progress is told. Never part of a lineage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Protocol


class Ticker(Protocol):
    """Counts one task: `tick(3, "loss 0.12")` adds 3 and shows the note."""

    def __call__(self, count: int = 1, note: str = "") -> None: ...


class Progress(Protocol):
    """How a person is told. The command line draws live bars; a library call is silent."""

    def task(
        self, label: str, total: int, unit: str = "", done: int = 0
    ) -> AbstractContextManager[Ticker]: ...

    def say(self, text: str) -> None: ...


class Silence:
    """Progress that tells nobody."""

    @contextmanager
    def task(self, label: str, total: int, unit: str = "", done: int = 0) -> Iterator[Ticker]:
        def tick(count: int = 1, note: str = "") -> None:
            pass

        yield tick

    def say(self, text: str) -> None:
        pass


@dataclass(frozen=True)
class Workbench:
    """`device` is a torch device name or "auto" (a GPU if there is one); `threads` 0 keeps torch's own.

    `rank` of `ranks` processes that train one model together, the `local_rank`-th on its machine; `sharded`,
    they share its weights out among them. `ray` is the address of a Ray cluster that prepares pictures.
    """

    device: str = "auto"
    threads: int = 0
    progress: Progress = field(default_factory=Silence)
    rank: int = 0
    ranks: int = 1
    local_rank: int = 0
    sharded: bool = False
    ray: str = ""
