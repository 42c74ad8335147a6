"""Files written whole or not at all, and their hashes."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import io
import json
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import IO, Any

from aid.errors import FileError

CHUNK_BYTES = 1 << 20
SYNC_FILE_RANGE_WRITE = 2  # linux/fs.h


class Bounded(io.BufferedReader):
    """A file of which no more is asked than there is: the memory for what is asked is taken beforehand, and a
    file may say that a part of it has 4 GB."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self.size = path.stat().st_size

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self.size - self.tell())
        return super().read(left if size is None or not 0 <= size <= left else size)


@contextlib.contextmanager
def replacing(path: Path, size: int = 0) -> Iterator[IO[bytes]]:
    """Open a temporary neighbour for writing; fsync and rename it over `path` only if all went well. A `size`
    in bytes is reserved beforehand, so that a disk too small is told of at once."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(part, "wb") as stream:
            if size:
                os.posix_fallocate(stream.fileno(), 0, size)
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(part, path)
    except OSError as error:
        raise FileError(
            f"{path} could not be written ({error.strerror or error})",
            next_step="Free some disk space or choose another folder, then run the same command again.",
        ) from error
    finally:
        part.unlink(missing_ok=True)
    sync_folder(path.parent)


def begin_writing(file: int, at: int, size: int) -> None:
    """Let the disk begin with what an open file was given there, so that fsync finds little left to wait for.

    Linux's sync_file_range; elsewhere nothing. What fails here, fsync tells.
    """
    if (begin := _sync_file_range()) is not None:
        begin(file, ctypes.c_int64(at), ctypes.c_int64(size), SYNC_FILE_RANGE_WRITE)


@cache
def _sync_file_range() -> Any:
    return getattr(ctypes.CDLL(None), "sync_file_range", None)


def sync_folder(folder: Path) -> None:
    """Make a rename inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, content: bytes) -> None:
    with replacing(path) as stream:
        stream.write(content)


def write_text(path: Path, content: str) -> None:
    write_bytes(path, content.encode())


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def write_lines(path: Path, rows: list[Any]) -> None:
    """JSON lines, one object a line."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def canonical(value: Any) -> bytes:
    """The one JSON spelling of a value: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def sha256_of(value: Any) -> str:
    """The sha256 of a value's canonical JSON."""
    return hashlib.sha256(canonical(value)).hexdigest()


def sha256_file(path: Path) -> str:
    """The sha256 of a file's bytes, read in 1 MiB pieces."""
    try:
        with open(path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise FileError(
            f"{path} could not be read ({error.strerror or error})", "a readable file", "Check the path."
        ) from error
