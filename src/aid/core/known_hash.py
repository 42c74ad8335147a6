"""The sha256 of large files, remembered from one run to the next: hashing three models takes longer than
merging them. A file is known by its place, size, inode and both its times; who changes it changes these.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

from aid.core.files import sha256_file, write_json
from aid.errors import FileError

LARGE_BYTES = 64 << 20  # smaller ones are hashed in no time
MOST = 2000  # files remembered; the oldest are forgotten
Identity = tuple[int, int, int, int]
"""Size, the two times in nanoseconds, inode."""


def identity_of(path: Path) -> Identity:
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def is_quick(path: Path) -> bool:
    """Whether the file's hash can be had without reading much."""
    memory, identity = _memory(), identity_of(path)
    return identity[0] < LARGE_BYTES or (memory is not None and _name(path, identity) in _read(memory))


def known_sha256(path: Path, identity: Identity) -> str:
    """The file's hash, read off if this very file was hashed before. Raises FileError if it can't be read."""
    memory = _memory()
    if identity[0] < LARGE_BYTES or memory is None:
        return sha256_file(path)
    name, known = _name(path, identity), _read(memory)
    if name not in known:
        known[name] = sha256_file(path)
        latest = {**_read(memory), name: known[name]}  # another process may have added its own meanwhile
        with suppress(FileError, OSError):  # a full or read-only home: it will be hashed again
            write_json(memory, dict(list(latest.items())[-MOST:]))
    return known[name]


def _name(path: Path, identity: Identity) -> str:
    return " ".join(map(str, (*identity, path.absolute())))


def _memory() -> Path | None:
    """`$XDG_CACHE_HOME/aid/hashes.json`; None for a user without a home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aid" / "hashes.json"
    except RuntimeError:
        return None


def _read(memory: Path) -> dict[str, str]:
    """Nothing of a memory that is missing or damaged."""
    try:
        known = json.loads(memory.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return (
        {name: value for name, value in known.items() if isinstance(value, str)}
        if isinstance(known, dict)
        else {}
    )
