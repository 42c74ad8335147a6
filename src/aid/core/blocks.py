"""The blocks of a U-Net by their numbers: BASE, IN00-IN11, M00, OUT00-OUT11, and nine of each for SDXL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

from aid.core.spelling import did_you_mean
from aid.errors import SettingsError


def _blocks(each_way: int) -> tuple[str, ...]:
    ways = [[f"{way}{number:02d}" for number in range(each_way)] for way in ("IN", "OUT")]
    return ("BASE", *ways[0], "M00", *ways[1])


SD1_BLOCKS = _blocks(12)
BLOCKS = {"sd1": SD1_BLOCKS, "sd2": SD1_BLOCKS, "sdxl": _blocks(9)}
VAE_BLOCK = "VAE"  # of its own under some conventions
Written = Mapping[str, float | list[float]] | Sequence[float] | str
"""Weights by block or range; or all of them in the blocks' order, in a list or with commas between."""


def expand(
    weights: Written,
    default: float = 0.0,
    family: str = "sd1",
    extra: tuple[str, ...] = (),
) -> dict[str, float]:
    """Write every block out. Keys are blocks or ranges: `OUT`, `IN00-05`, `IN06-IN11`; a list gives a
    range one value a block. Later keys win. Blocks not named get `default`; `extra` are blocks beyond the
    family's own, to which a list of all gives BASE's.

    Raises SettingsError for an unknown block or a list of the wrong length.
    """
    if not isinstance(weights, Mapping):
        numbers = _in_order(weights, family)
        return numbers | dict.fromkeys(extra, numbers["BASE"])
    every = dict.fromkeys((*BLOCKS[family], *extra), default)
    for name, value in weights.items():
        blocks = block_range(name, family, extra)
        values = value if isinstance(value, list) else [value] * len(blocks)
        if len(values) != len(blocks):
            raise SettingsError(f"{name} has {len(values)} weights", f"{len(blocks)}, one a block")
        every.update(zip(blocks, map(float, values), strict=True))
    return every


def _in_order(weights: Sequence[float] | str, family: str) -> dict[str, float]:
    """As the community writes them: 26 numbers, the base alpha first, or 20 for SDXL."""
    blocks = BLOCKS[family]
    words = weights.split(",") if isinstance(weights, str) else weights
    try:
        numbers = [float(word) for word in words]
    except ValueError as error:
        raise SettingsError(f"{weights!r} holds what is no number", "0.5, 0, ...: one a block") from error
    if len(numbers) != len(blocks):
        base = "The first is BASE's, the base alpha." if len(numbers) == len(blocks) - 1 else ""
        raise SettingsError(
            f"{len(numbers)} weights are given", f"{len(blocks)} for {family}: {_runs(blocks)}", base
        )
    return dict(zip(blocks, numbers, strict=True))


def block_range(name: str, family: str = "sd1", extra: tuple[str, ...] = ()) -> list[str]:
    """`IN` -> all IN blocks; `IN03-05` -> three; `M00` -> itself."""
    every = (*BLOCKS[family], *extra)
    head = name.upper().strip()
    kind = [block for block in every if _way(block) == head]
    if kind:
        return kind
    first, _, last = head.partition("-")
    letters = first.rstrip("0123456789")
    last = last if not last or last[0].isalpha() else letters + last
    for block in (first, last) if last else (first,):
        if block not in every:
            raise SettingsError(
                f"{block or repr(name)} is not a block of {family}",
                _runs(every),
                did_you_mean(block, every),
            )
    start, stop = every.index(first), every.index(last or first) + 1
    if stop <= start:
        raise SettingsError(f"{name} runs backwards", f"{last}-{first}")
    return list(every[start:stop])


def _way(block: str) -> str:
    return block.rstrip("0123456789")


def _runs(blocks: tuple[str, ...]) -> str:
    """`BASE, IN00-IN11, M00, OUT00-OUT11`."""
    runs = [list(run) for _, run in groupby(blocks, _way)]
    return ", ".join(run[0] if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
