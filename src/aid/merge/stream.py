"""A safetensors file written while its parents are read, piece by piece: memory doesn't grow with the models.

Pieces are computed by threads, each in buffers of its own, and looked at in the file's order. So the bytes
and the hash are the same for any number of threads.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from aid.core.files import replacing
from aid.core.workbench import Workbench
from aid.merge.arithmetic import Operand, arithmetic
from aid.merge.parent import Parent
from aid.sd.file.header import FLOATING, ITEM_BYTES, Format, layout_bytes, written_order

DESK_BYTES = 3 << 19  # what a thread works on at once: memory doesn't grow with the number of models either
STEP_BYTES = 8 << 10  # pieces are whole blocks of the kernel's, in any format
THREADS = 4  # more don't help: a disk, or memory, is what is waited for
SPARE = 2  # pieces that are done and wait for their turn to be hashed


@dataclass(frozen=True)
class Sum:
    """Parents' tensors, each times its weight. One alone with weight 1, in its own format, is copied."""

    terms: tuple[tuple[Parent, float], ...]


@dataclass(frozen=True)
class Whole:
    """A tensor that is made at once: all its bytes, and its fault as `Arithmetic.blend` tells it."""

    make: Callable[[], tuple[memoryview, int]]


@dataclass(frozen=True)
class Output:
    """One tensor of the file to be written."""

    format: Format
    source: Sum | Whole


@dataclass(frozen=True, slots=True)
class Piece:
    """`count` values of a tensor from value `start` on; `at` is their place in the file."""

    key: str
    output: Output
    start: int
    count: int
    at: int


Seen = Callable[[Piece, int], None]
"""Told of each piece, in the file's order, and its fault."""


class Desk:
    """One thread's buffers: a piece of each parent, and of the result."""

    def __init__(self, parents: int, piece_bytes: int) -> None:
        self.rows = [memoryview(bytearray(piece_bytes)) for _ in range(parents)]
        self.result = memoryview(bytearray(piece_bytes))


def threads_of(bench: Workbench) -> int:
    return bench.threads or min(THREADS, len(os.sched_getaffinity(0)))


def write_stream(
    path: Path, outputs: Mapping[str, Output], metadata: Mapping[str, str], threads: int, seen: Seen
) -> str:
    """Write the file atomically, its room reserved beforehand; returns its sha256.

    `seen` may raise, which ends the work and leaves no file. Raises FileError if the disk is full.
    """
    head = layout_bytes({key: one.format for key, one in outputs.items()}, metadata)
    size = len(head) + sum(one.format.size for one in outputs.values())
    digest = hashlib.sha256(head)
    with replacing(path, size) as stream:
        stream.write(head)
        stream.flush()
        for piece, written, fault in _results(stream.fileno(), outputs, len(head), threads):
            digest.update(written)
            seen(piece, fault)
    return digest.hexdigest()


def fill(key: str, output: Output, into: memoryview) -> Iterator[tuple[Piece, int]]:
    """One tensor's bytes, put `into` memory piece by piece."""
    source, item = output.source, ITEM_BYTES[output.format.name]
    if isinstance(source, Whole):
        values, fault = source.make()
        into[:] = values
        yield Piece(key, output, 0, len(values) // item, 0), fault
        return
    parents = len(source.terms)
    piece_bytes = min(_piece_bytes(parents), len(into) // item * _widest(key, source, item))
    desk = Desk(parents, piece_bytes)
    for piece in _pieces_of(key, output, 0, piece_bytes):
        own = into[piece.at : piece.at + piece.count * item]
        values, fault = _computed(piece, source, desk, own)
        if values is not own:
            own[:] = values
        yield piece, fault


Result = tuple[Piece, memoryview, int]
"""A piece, its bytes as they were written, and its fault."""
Pending = deque[tuple[Desk, Future[Result]]]


def _results(file: int, outputs: Mapping[str, Output], data_start: int, threads: int) -> Iterator[Result]:
    """Of each piece, in order; its bytes hold until the next."""
    sums = (one.source for one in outputs.values())
    widest = max((len(one.terms) for one in sums if isinstance(one, Sum)), default=0)
    piece_bytes = _piece_bytes(widest)
    pieces = _pieces(outputs, data_start, piece_bytes)
    desks = deque(Desk(widest, piece_bytes) for _ in range(threads + SPARE if threads > 1 else 1))
    if threads == 1:  # what was computed is hashed while it is in the cache
        yield from (_made(file, piece, desks[0]) for piece in pieces)
        return
    pending: Pending = deque()
    with ThreadPoolExecutor(threads, "merge") as pool:
        try:
            for piece in pieces:
                if isinstance(piece.output.source, Whole):  # alone: it takes memory
                    yield from _finished(pending, desks, 0)
                    yield _made(file, piece, desks[0])
                else:
                    yield from _finished(pending, desks, threads + SPARE - 1)
                    desk = desks.popleft()
                    pending.append((desk, pool.submit(_made, file, piece, desk)))
            yield from _finished(pending, desks, 0)
        finally:
            pool.shutdown(cancel_futures=True)


def _finished(pending: Pending, desks: deque[Desk], most: int) -> Iterator[Result]:
    """The oldest results, until at most `most` pieces are under way."""
    while len(pending) > most:
        desk, future = pending.popleft()
        yield future.result()
        desks.append(desk)


def _made(file: int, piece: Piece, desk: Desk) -> Result:
    source = piece.output.source
    if isinstance(source, Whole):
        values, fault = source.make()
    else:
        room = desk.result[: piece.count * ITEM_BYTES[piece.output.format.name]]
        values, fault = _computed(piece, source, desk, room)
    return piece, _written(file, piece, values), fault


def _computed(piece: Piece, source: Sum, desk: Desk, room: memoryview) -> tuple[memoryview, int]:
    """The piece, in `room` or, where it is one parent's alone, as it was read."""
    operands = []
    for (parent, weight), row in zip(source.terms, desk.rows, strict=False):
        name = parent.formats[piece.key].name
        item = ITEM_BYTES[name]
        values = parent.values(piece.key, piece.start * item, row[: piece.count * item])
        operands.append(Operand(values, name, weight))
    return _blended(operands, piece.count, piece.output.format.name, room)


def _blended(
    operands: Sequence[Operand], count: int, format: str, room: memoryview
) -> tuple[memoryview, int]:
    first = operands[0]
    if len(operands) == 1 and first.weight == 1.0 and first.format == format:
        sound = format not in FLOATING or arithmetic([format]).is_finite(first, count)
        return first.values, 0 if sound else 1
    way = arithmetic([*(one.format for one in operands), format])
    return room, way.blend(operands, count, format, room)


def _written(file: int, piece: Piece, values: memoryview) -> memoryview:
    done = 0
    while done < len(values):
        done += os.pwrite(file, values[done:], piece.at + done)
    return values


def _piece_bytes(parents: int) -> int:
    """Of the widest format at work; a step at least, however many parents share the desk."""
    return max(1, DESK_BYTES // (parents + 1) // STEP_BYTES) * STEP_BYTES


def _pieces(outputs: Mapping[str, Output], data_start: int, piece_bytes: int) -> Iterator[Piece]:
    """Every piece in the file's order."""
    names = written_order({key: one.format for key, one in outputs.items()})
    starts = accumulate((outputs[key].format.size for key in names), initial=data_start)
    for key, start in zip(names, starts, strict=False):
        yield from _pieces_of(key, outputs[key], start, piece_bytes)


def _pieces_of(key: str, output: Output, at: int, piece_bytes: int) -> Iterator[Piece]:
    source, item = output.source, ITEM_BYTES[output.format.name]
    total = output.format.size // item
    step = total if isinstance(source, Whole) else piece_bytes // _widest(key, source, item)
    for start in range(0, total, max(1, step)):
        yield Piece(key, output, start, min(step, total - start), at + start * item)


def _widest(key: str, source: Sum, item: int) -> int:
    """Bytes of a value in the widest format at work."""
    return max(item, *(ITEM_BYTES[parent.formats[key].name] for parent, _ in source.terms))
