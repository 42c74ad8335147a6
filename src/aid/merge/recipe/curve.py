"""A step's weights, as a person writes them -> one number a block."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from aid.core.blocks import BLOCKS, SD1_BLOCKS, Written, block_range, expand
from aid.core.spelling import did_you_mean
from aid.core.toml import read_toml
from aid.errors import SettingsError
from aid.merge.settings import Weight

CURVES = Path(__file__).with_name("curves.toml")
SUPERMERGER = {"*2": "2", "*3": "3", "*4": "4", "/2": "HALF_", "/3": "ONE_THIRD_", "/4": "ONE_FOURTH_"}
"""The ends of its names for curves, and what those begin with here."""


def numbers_of(weight: Weight, where: str, family: str, extra: tuple[str, ...]) -> dict[str, float]:
    """Every block's number. Raises SettingsError for an unknown block or curve, for a number too many or too
    few, and for NaN and infinity."""
    if isinstance(weight, str) and "," not in weight:
        numbers = _curve(weight, family)
    elif isinstance(weight, float | int):
        numbers = dict.fromkeys((*BLOCKS[family], *extra), float(weight))
    else:
        numbers = _expanded(weight, where, family, extra)
    for block, number in numbers.items():
        if not math.isfinite(number):
            raise SettingsError(f"{where} is {number:g} in {block}", "a finite number")
    return numbers | {block: numbers["BASE"] for block in extra if block not in numbers}


def _expanded(weight: Written, where: str, family: str, extra: tuple[str, ...]) -> dict[str, float]:
    try:
        return expand(weight, 0.0, family, extra)
    except SettingsError as error:
        raise SettingsError(f"{where}: {error.found}", error.expected, error.next_step) from error


def _curve(name: str, family: str) -> dict[str, float]:
    curves, own = _curves(), _spelt(name)
    if own not in curves:
        hint = did_you_mean(own, curves)
        raise SettingsError(f"{name} is no curve of weights", ", ".join(sorted(curves)), hint)
    numbers = dict(zip(SD1_BLOCKS, curves[own], strict=True))
    return {block: numbers[block] for block in BLOCKS[family]}


def _spelt(name: str) -> str:
    """`R_SMOOTHSTEP/3` as ONE_THIRD_R_SMOOTHSTEP, `reverse-cosine` as REVERSE_COSINE."""
    own = name.strip().upper().replace("-", "_")
    return SUPERMERGER[own[-2:]] + own[:-2] if own[-2:] in SUPERMERGER else own


@cache
def _curves() -> dict[str, list[float]]:
    return read_toml(CURVES, "the curves that ship with AID")


@dataclass(frozen=True)
class Element:
    """A rule for alpha by block and by words of a tensor's name."""

    blocks: frozenset[str]
    words: tuple[str, ...]
    other_words: bool
    """Whether it is for names that hold none of the words."""
    alpha: float
    rule: str
    """As it was written."""

    def fits(self, key: str, block: str) -> bool:
        return block in self.blocks and any(word in key for word in self.words) != self.other_words


def element(rule: str, family: str, extra: tuple[str, ...]) -> Element:
    """Read `BLOCKS:ELEMENTS:alpha`. Raises SettingsError."""
    parts = rule.split(":")
    try:
        blocks, words, alpha = parts[0].split(), parts[1].split(), float(parts[2])
    except (IndexError, ValueError):
        alpha = math.nan
    if len(parts) != 3 or not math.isfinite(alpha):
        raise SettingsError(f"{rule!r} is no rule for elements", "BLOCKS:ELEMENTS:alpha", "IN00-05:attn2:0.3")
    every = frozenset((*BLOCKS[family], *extra))
    turned, blocks = _turned(blocks)
    named = {block for word in blocks for block in block_range(word, family, extra)} if blocks else every
    other, words = _turned(words)
    return Element(frozenset(every - named if turned else named), tuple(words or [""]), other, alpha, rule)


def _turned(words: list[str]) -> tuple[bool, list[str]]:
    return (True, words[1:]) if words[:1] == ["NOT"] else (False, words)
