"""Tensors as the bytes that a file holds, for those who compute without torch."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from aid.errors import FileError
from aid.sd.file.header import Format, format_of, is_pickle, malformed, read_layout

CODES = {"F64": "d", "F32": "f", "F16": "e", "I64": "q", "I32": "i", "I16": "h", "I8": "b", "U8": "B"}


@dataclass(frozen=True, eq=False, slots=True)
class Raw:
    """One tensor: its format and shape are known, its bytes are read when asked for. A merge may hold many
    thousands, of many adapters."""

    format: Format
    source: Callable[[int, int], memoryview]
    """So many bytes from one on, of all that it lies in."""
    at: int = 0
    """Where it begins there."""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.format.shape

    def part(self, start: int, size: int) -> memoryview:
        """Its bytes from one on, so many."""
        return self.source(self.at + start, size)

    def read(self) -> memoryview:
        return self.part(0, self.format.size)

    def kept(self) -> Raw:
        """Read now, to stay in memory."""
        values = self.read()
        return Raw(self.format, lambda at, size: values[at : at + size])

    def reshaped(self, *shape: int) -> Raw:
        return replace(self, format=format_of(self.format.name, shape))

    def cut(self, rows: slice) -> Raw:
        """Those along its first axis, one after another."""
        first, end, _ = rows.indices(self.shape[0])
        start = first * Format(self.format.name, self.shape[1:]).size
        format = Format(self.format.name, (end - first, *self.shape[1:]))
        return Raw(format, self.source, self.at + start)

    def number(self) -> float:
        """The only one that it holds."""
        values = self.read()
        if self.format.name == "BF16":
            return float(struct.unpack("<f", bytes(2) + values)[0])
        if (code := CODES.get(self.format.name)) is not None:
            return float(struct.unpack(f"<{code}", values)[0])
        from aid.sd.file.tensorfile import tensor_of  # formats that Python doesn't know

        return float(tensor_of(self))


def open_raw(path: Path) -> tuple[dict[str, Raw], dict[str, str]]:
    """A file's tensors where they lie, and its metadata. Pickles need torch.

    Raises FileError for a file that is truncated, malformed, or would run code when unpickled."""
    if is_pickle(path):
        from aid.sd.file.tensorfile import open_tensors, raw_of

        return {name: raw_of(stored) for name, stored in open_tensors(path)[0].items()}, {}
    layout = read_layout(path)
    source = partial(_read, path)
    tensors = {name: Raw(entry.format, source, entry.start) for name, entry in layout.entries.items()}
    return tensors, layout.metadata


def _read(path: Path, at: int, size: int) -> memoryview:
    values = memoryview(bytearray(size))
    try:
        with open(path, "rb") as stream:
            stream.seek(at)
            done = stream.readinto(values)
    except OSError as error:
        raise FileError(f"{path} could not be read ({error.strerror or error})") from error
    if done != len(values):
        raise malformed(path, f"it ends at byte {at + done}, inside a tensor")
    return values
