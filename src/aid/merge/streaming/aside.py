"""Bytes laid aside in a file without a name: what all tensors of a model have of them, no memory holds."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from functools import cached_property, partial
from threading import Lock
from typing import IO


class Aside:
    """Begun with the first bytes, gone with the last who may read them. For any threads."""

    def __init__(self) -> None:
        self._end, self._lock = 0, Lock()

    @cached_property
    def _file(self) -> IO[bytes]:
        return tempfile.TemporaryFile()

    def keep(self, content: bytes) -> Callable[[], bytes]:
        """What reads them again. Raises OSError if the disk is full."""
        with self._lock:
            at, self._end = self._end, self._end + len(content)
            self._file.write(content)
            self._file.flush()
        return partial(self._read, len(content), at)

    def _read(self, size: int, at: int) -> bytes:
        return os.pread(self._file.fileno(), size, at)
