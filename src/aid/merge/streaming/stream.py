"""A safetensors file written while its parents are read, bit by bit: memory doesn't grow with the models.

Threads compute stretches of it, each in a room of its own. Every stretch has its place in the file, so the
bytes are the same for any number of threads.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from aid.core.files import begin_writing, replacing
from aid.core.workbench import Workbench
from aid.merge.arithmetic.source import InFile, Operand, part_of
from aid.merge.arithmetic.sums import arithmetic
from aid.merge.streaming.parent import Parent
from aid.merge.streaming.relay import Relay
from aid.sd.file.header import FLOATING, ITEM_BYTES, Format, layout_bytes, written_order

STRETCH_BYTES = 1 << 20  # of the result, which a thread makes at once
THREADS = 4  # more don't help: a disk, or memory, is what is waited for


Fault = str
"""Where NaN or infinity comes from: a parent, or THE_SUM; empty if there is none."""
THE_SUM = "the sum"


@dataclass(frozen=True)
class Sum:
    """Parents' tensors, each times its weight. One alone with weight 1, in its own format, is copied."""

    terms: tuple[tuple[Parent, float], ...]


@dataclass(frozen=True)
class Made:
    """A tensor that is no mere sum: `fill` puts values from one on into a buffer, as many as it has room for,
    and returns their fault. Pieces begin at a multiple of `grain` values."""

    fill: Callable[[int, memoryview], Fault]
    grain: int = 1


@dataclass(frozen=True)
class Output:
    """One tensor of the file to be written."""

    format: Format
    source: Sum | Made


@dataclass(frozen=True, slots=True)
class Piece:
    """`count` values of a tensor from value `start` on; `at` is their place in the file."""

    key: str
    output: Output
    start: int
    count: int
    at: int

    @property
    def size(self) -> int:
        """In bytes."""
        return self.count * ITEM_BYTES[self.output.format.name]


Stretch = list[Piece]
"""Pieces that stand side by side in the file."""
Seen = Callable[[Piece, Fault], None]
"""Told of each piece, in the file's order, and its fault."""


def threads_of(bench: Workbench) -> int:
    return bench.threads or min(THREADS, len(os.sched_getaffinity(0)))


def write_stream(
    path: Path, outputs: Mapping[str, Output], metadata: Mapping[str, str], threads: int, seen: Seen
) -> None:
    """Write the file atomically, its room reserved beforehand.

    `seen` may raise, which ends the work and leaves no file. Raises FileError if the disk is full.
    """
    head = layout_bytes({key: one.format for key, one in outputs.items()}, metadata)
    size = len(head) + sum(one.format.size for one in outputs.values())
    with replacing(path, size) as stream:
        stream.write(head)
        stream.flush()
        relay = Relay(_stretches(outputs, len(head)))

        def make(number: int, stretch: Stretch, room: memoryview) -> None:
            size = sum(piece.size for piece in stretch)
            if size > len(room):
                relay.wait(number)  # one at a time: it takes memory
                room = memoryview(bytearray(size))
            values, faults = room[:size], _made(stretch, room)
            _write(stream.fileno(), stretch[0].at, values)
            with relay.turn(number):
                for piece, fault in zip(stretch, faults, strict=True):
                    seen(piece, fault)

        def work() -> None:
            room = memoryview(bytearray(STRETCH_BYTES))
            for number, stretch in relay:
                make(number, stretch, room)

        relay.run(work, threads)


def fill(key: str, output: Output, into: memoryview) -> Iterator[tuple[Piece, Fault]]:
    """One tensor's bytes, put `into` memory piece by piece."""
    for stretch in _stretches({key: output}, 0):
        room = into[stretch[0].at :][: stretch[0].size]
        yield stretch[0], _made(stretch, room)[0]


def _made(stretch: Stretch, room: memoryview) -> list[Fault]:
    """Each piece's fault; the bytes are in `room`."""
    at = stretch[0].at
    return [_filled(piece, room[piece.at - at :][: piece.size]) for piece in stretch]


def _filled(piece: Piece, room: memoryview) -> Fault:
    source, format = piece.output.source, piece.output.format.name
    if isinstance(source, Made):
        return source.fill(piece.start, room)
    operands = [_operand(piece, *term) for term in source.terms]
    first = operands[0]
    if len(operands) == 1 and first.weight == 1.0 and first.format == format:
        return "" if _copy(first, piece.count, room) else str(source.terms[0][0])
    way = arithmetic([*(one.format for one in operands), format])
    number = way.blend(operands, piece.count, format, room)
    return str(source.terms[number - 1][0]) if number > 0 else THE_SUM if number else ""


def _operand(piece: Piece, parent: Parent, weight: float) -> Operand:
    name = parent.formats[piece.key].name
    item = ITEM_BYTES[name]
    values = part_of(parent.source(piece.key), piece.start * item, piece.count * item)
    return Operand(values, name, weight)


def _copy(operand: Operand, count: int, room: memoryview) -> bool:
    """Whether all values are finite."""
    if isinstance(operand.values, InFile):
        operand.values.read(room)
    else:
        room[:] = operand.values
    return operand.format not in FLOATING or arithmetic([operand.format]).is_finite(
        operand._replace(values=room), count
    )


def _write(file: int, at: int, values: memoryview) -> None:
    done = 0
    while done < len(values):
        done += os.pwrite(file, values[done:], at + done)
    begin_writing(file, at, done)


def _stretches(outputs: Mapping[str, Output], at: int) -> Iterator[Stretch]:
    """All that stands in the file from byte `at` on; a stretch is longer only where a grain is."""
    stretch, left = list[Piece](), STRETCH_BYTES
    for key in written_order({key: one.format for key, one in outputs.items()}):
        output, start, item = outputs[key], 0, ITEM_BYTES[outputs[key].format.name]
        grain = output.source.grain if isinstance(output.source, Made) else 1
        while start < (total := output.format.size // item):
            count = left // item // grain * grain
            if count or not stretch:
                piece = Piece(key, output, start, min(total - start, count or grain), at)
                stretch.append(piece)
                start, at, left = start + piece.count, at + piece.size, left - piece.size
            if left <= 0 or not count:
                yield stretch
                stretch, left = [], STRETCH_BYTES
    if stretch:
        yield stretch
