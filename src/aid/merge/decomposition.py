"""A matrix as the product of two narrow ones: what a LoRA can hold of a difference."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import NamedTuple

import torch
from torch import Tensor

NOISE = 1e-14  # of the largest squared singular value: below, it is rounding


class Pair(NamedTuple):
    """`up` [n, rank] @ `down` [rank, m], and the shares of the squared matrix that are kept and there."""

    up: Tensor
    down: Tensor
    kept: float
    total: float


def nearest(matrix: Tensor, rank: int) -> Pair:
    """The product of that rank nearest to a matrix [n, m] (Eckart and Young 1936), in float32; both factors
    have the same lengths.

    By the eigenvectors of the smaller Gram matrix, in doubles: exact to a float's rounding, and ten times as
    fast as a singular value decomposition of what is long and narrow.
    """
    exact = matrix.double()
    tall = exact.shape[0] > exact.shape[1]
    wide = exact.T if tall else exact
    squares, vectors = torch.linalg.eigh(wide @ wide.T)
    rank = min(rank, len(squares))
    squares, vectors = squares.flip(0).clamp(min=0), vectors.flip(1)[:, :rank]
    largest = squares[:rank]
    roots = torch.where(largest > NOISE * squares[0], largest, 0).pow(0.25)
    left = vectors * roots
    right = torch.where(roots > 0, 1 / roots, 0)[:, None] * (vectors.T @ wide)
    up, down = (right.T, left.T) if tall else (left, right)
    kept, total = float(largest.sum()), float(squares.sum())
    return Pair(up.float().contiguous(), down.float().contiguous(), kept, total)


@dataclass
class _Within:
    """Whoever computes with one thread of torch's at the moment, and how many there are to be afterwards."""

    lock: Lock = field(default_factory=Lock)
    count: int = 0
    threads: int = 0


_WITHIN = _Within()


@contextmanager
def one_thread() -> Iterator[None]:
    """With more, products are summed in another order, and the same inputs give other bytes. Several of our
    own threads may be within: the number is each one's and the process's, so each puts it back."""
    with _WITHIN.lock:
        threads = torch.get_num_threads()
        if not _WITHIN.count:
            _WITHIN.threads = threads
        _WITHIN.count += 1
        torch.set_num_threads(1)
    try:
        yield
    finally:
        with _WITHIN.lock:
            _WITHIN.count -= 1
            torch.set_num_threads(_WITHIN.threads)
