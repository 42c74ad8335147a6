"""How much memory there is left."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

# Of a container, by the second and the first version of Linux's control groups: limit, use, and what of it
# can be given up.
SECOND = "memory.max", "memory.current", "inactive_file"
FIRST = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"


def free_bytes(root: Path = Path("/")) -> float:
    """What may still be taken of the machine's memory, or of the container's, where that is less; infinite
    where nothing tells it, as on other systems than Linux."""
    least = 1024 * _row(root / "proc/meminfo", "MemAvailable:")
    for folder, limit, use, unused in _groups(root):
        held = _number(folder / use) - _row(folder / "memory.stat", unused, 0.0)
        if math.isfinite(held):
            least = min(least, _number(folder / limit) - held)
    return max(0.0, least)


def _groups(root: Path) -> Iterator[tuple[Path, str, str, str]]:
    """The folders of the process's control group and of those around it, with their files' names."""
    groups = root / "sys/fs/cgroup"
    own = _text(root / "proc/self/cgroup").splitlines()
    path = next((line[3:].strip("/") for line in own if line.startswith("0::")), "")
    for folder in (groups / path, *(groups / path).parents[: len(Path(path).parts)]):
        yield folder, *SECOND
    yield groups / "memory", *FIRST


def _row(path: Path, name: str, otherwise: float = math.inf) -> float:
    """The number behind a name in a table."""
    words = _text(path).split()
    return float(words[words.index(name) + 1]) if name in words[:-1] else otherwise


def _number(path: Path) -> float:
    text = _text(path).strip()
    return float(text) if text.isdecimal() else math.inf


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
