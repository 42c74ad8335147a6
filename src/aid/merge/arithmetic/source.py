"""What arithmetic takes: values in memory, or where they lie in an open file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from aid.errors import FileError


class InFile(NamedTuple):
    """`file` is a descriptor that stays open, `at` the first byte. Several threads may read."""

    path: Path
    key: str
    file: int
    at: int

    def read(self, room: memoryview) -> memoryview:
        """As many bytes as there is room for. Raises FileError if the file has fewer or can't be read."""
        done = 0
        while done < len(room):
            try:
                got = os.preadv(self.file, [room[done:]], self.at + done)
            except OSError as error:
                raise FileError(f"{self.path} could not be read ({error.strerror or error})") from error
            if not got:
                whole = "a file that stays as it is while it is read"
                raise FileError(f"{self.path} ends inside {self.key}", whole)
            done += got
        return room


Source = memoryview | InFile
"""Bytes in memory, or in a file."""


class Operand(NamedTuple):
    """One model's values: raw, in the format of that name, to be multiplied by `weight`."""

    values: Source
    format: str
    weight: float = 1.0


def part_of(source: Source, start: int, size: int) -> Source:
    """`size` bytes from byte `start` on."""
    if isinstance(source, InFile):
        return source._replace(at=source.at + start)
    return source[start : start + size]
