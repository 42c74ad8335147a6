"""The 26 weights of a block merge: BASE, IN00-IN11, M00, OUT00-OUT11."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from aid.errors import SettingsError

SD1_BLOCKS = (
    "BASE",
    *(f"IN{i:02d}" for i in range(12)),
    "M00",
    *(f"OUT{i:02d}" for i in range(12)),
)


def expand(weights: Mapping[str, float | list[float]], default: float = 0.0) -> dict[str, float]:
    """Write every block out. Keys are blocks or ranges: `OUT`, `IN00-05`, `IN06-IN11`; a list gives a
    range one value a block. Later keys win. Blocks not named get `default`.

    Raises SettingsError for an unknown block or a list of the wrong length.
    """
    every = dict.fromkeys(SD1_BLOCKS, default)
    for name, value in weights.items():
        blocks = block_range(name)
        values = value if isinstance(value, list) else [value] * len(blocks)
        if len(values) != len(blocks):
            raise SettingsError(f"{name} has {len(values)} weights", f"{len(blocks)}, one a block")
        every.update(zip(blocks, map(float, values), strict=True))
    return every


def block_range(name: str) -> list[str]:
    """`IN` -> all IN blocks; `IN03-05` -> three; `M00` -> itself."""
    head = name.upper().strip()
    family = [block for block in SD1_BLOCKS if block.rstrip("0123456789") == head]
    if family:
        return family
    first, _, last = head.partition("-")
    letters = first.rstrip("0123456789")
    last = last if not last or last[0].isalpha() else letters + last
    for block in (first, last) if last else (first,):
        if block not in SD1_BLOCKS:
            near = difflib.get_close_matches(block, SD1_BLOCKS, 1)
            raise SettingsError(
                f"{block or repr(name)} is not a block of sd1",
                "BASE, IN00-IN11, M00, OUT00-OUT11",
                f"Did you mean {near[0]}?" if near else "",
            )
    start = SD1_BLOCKS.index(first)
    stop = SD1_BLOCKS.index(last or first) + 1
    if stop <= start:
        raise SettingsError(f"{name} runs backwards", f"{last}-{first}")
    return list(SD1_BLOCKS[start:stop])
