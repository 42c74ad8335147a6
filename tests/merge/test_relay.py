"""Threads that take turns, and the number of torch's threads beside them."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch

from aid.merge.decomposition import one_thread
from aid.merge.modes.mode import parts_of
from aid.merge.streaming.relay import Relay


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_pieces_are_finished_in_order(threads: int) -> None:
    finished: list[int] = []
    relay = Relay(iter(range(100)))

    def work() -> None:
        for number, piece in relay:
            with relay.turn(number):
                finished.append(piece)

    relay.run(work, threads)
    assert finished == list(range(100))


def test_a_thread_that_cannot_start_ends_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    started, start = [], threading.Thread.start

    def second_fails(thread: threading.Thread) -> None:
        started.append(thread)
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", second_fails)
    relay = Relay(iter(int, 1))  # without end
    with pytest.raises(RuntimeError, match="new thread"):
        relay.run(_turns(relay), 4)
    assert not any(thread.is_alive() for thread in started)


def _turns(relay: Relay[int]) -> Callable[[], None]:
    def work() -> None:
        for number, _ in relay:
            with relay.turn(number):
                pass

    return work


def test_every_thread_has_as_many_of_torchs_afterwards_as_before() -> None:
    used = torch.get_num_threads()
    torch.set_num_threads(3)
    inside, left = threading.Event(), threading.Event()

    def other() -> None:
        with one_thread():
            inside.set()
            left.wait(10)
            assert torch.get_num_threads() == 1

    thread = threading.Thread(target=other)
    try:
        with one_thread():
            thread.start()
            assert inside.wait(10)
        found = torch.get_num_threads()
        left.set()
        thread.join()
        assert (found, torch.get_num_threads()) == (3, 3)
    finally:
        torch.set_num_threads(used)


def test_a_tensor_without_values_has_parts() -> None:
    assert parts_of(0) > 0
