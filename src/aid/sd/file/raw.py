"""Tensors as the bytes that a file holds, for those who compute without torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from aid.sd.file.header import Format, format_of


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
