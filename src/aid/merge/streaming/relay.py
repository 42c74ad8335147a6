"""Pieces of work, shared out to threads, the results of which are needed in the pieces' order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Condition, Thread
from typing import Generic, TypeVar

P = TypeVar("P")


class Relay(Generic[P]):
    """Each thread takes the next piece, works, and finishes it when its turn has come. So what is finished is
    still in that thread's cache, and nobody hands anything over."""

    def __init__(self, pieces: Iterator[P]) -> None:
        self._pieces = enumerate(pieces)
        self._change = Condition()
        self._finished = 0
        self._error: BaseException | None = None

    def run(self, work: Callable[[], None], threads: int) -> None:
        """`work` is what each thread does, this one first. Raises the first error that there was."""
        others = [Thread(target=self._guarded, args=(work,), name="merge") for _ in range(threads - 1)]
        for other in others:
            self._guarded(other.start)
        self._guarded(work)
        for other in others:
            while other.is_alive():
                self._guarded(other.join)  # an interruption here ends the others' work too
        if self._error is not None:
            raise self._error

    def __iter__(self) -> Iterator[tuple[int, P]]:
        """Pieces with their numbers, as long as there was no error."""
        while (taken := self._taken()) is not None:
            yield taken

    @contextmanager
    def turn(self, number: int) -> Iterator[None]:
        """Once all before that piece are finished."""
        self.wait(number)
        yield
        with self._change:
            self._finished += 1
            self._change.notify_all()

    def wait(self, number: int) -> None:
        """For that piece's turn. Raises another thread's error, if there was one."""
        with self._change:
            self._change.wait_for(lambda: self._error is not None or self._finished == number)
        if self._error is not None:
            raise self._error

    def _taken(self) -> tuple[int, P] | None:
        with self._change:
            return None if self._error is not None else next(self._pieces, None)

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # an interruption too: nobody must wait for this thread
            with self._change:
                self._error = self._error or error
                self._change.notify_all()
