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


def known_sha256(path: Path, identity: Identity) -> str:
    """The file's hash, read off if this very file was hashed before. Raises FileError if it can't be read."""
    memory = _memory()
    if identity[0] < LARGE_BYTES or memory is None:
        return sha256_file(path)
    name, known = " ".join(map(str, (*identity, path))), _read(memory)
    if name not in known:
        known[name] = sha256_file(path)
        latest = {**_read(memory), name: known[name]}  # another process may have added its own meanwhile
        with suppress(FileError, OSError):  # a full or read-only home: it will be hashed again
            write_json(memory, dict(list(latest.items())[-MOST:]))
    return known[name]


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
