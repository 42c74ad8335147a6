"""How much memory there is left."""

from __future__ import annotations

import math
from pathlib import Path

# Of a container, by the second and the first version of Linux's control groups: limit, use, and what of it
# can be given up.
LIMITS = (
    (
        "sys/fs/cgroup/memory.max",
        "sys/fs/cgroup/memory.current",
        "sys/fs/cgroup/memory.stat",
        "inactive_file",
    ),
    (
        "sys/fs/cgroup/memory/memory.limit_in_bytes",
        "sys/fs/cgroup/memory/memory.usage_in_bytes",
        "sys/fs/cgroup/memory/memory.stat",
        "total_inactive_file",
    ),
)


def free_bytes(root: Path = Path("/")) -> float:
    """What may still be taken of the machine's memory, or of the container's, where that is less; infinite
    where nothing tells it, as on other systems than Linux."""
    least = 1024 * _row(root / "proc/meminfo", "MemAvailable:")
    for limit, use, table, unused in LIMITS:
        held = _number(root / use) - _row(root / table, unused, 0.0)
        if math.isfinite(held):
            least = min(least, _number(root / limit) - held)
    return max(0.0, least)


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
