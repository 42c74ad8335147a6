"""How often pictures come up, by rules that only count them. What is measured is in balance.py."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from aid.core.dataset import Record, count_styles
from aid.errors import SettingsError
from aid.train.step.order import Shares

QUALITY = re.compile(r"(amazing|best|high|normal|low|worst|horrible) quality")
QUALITY_FACTORS = {
    "amazing": 5.0,
    "best": 2.5,
    "high": 1.5,
    "normal": 1.0,
    "low": 0.0,
    "worst": 0.0,
    "horrible": 0.0,
}
ARTIST_LEAST, ARTIST_WANTED = 25, 100  # pictures
CHARACTER_LEAST, CHARACTER_WANTED = 50, 1000
MOST_REPEATS = 10
MOST_TOLD = 1000  # the number of a folder such as `12345678_artist` is no count

Repeat = Callable[[Sequence[Record]], list[int]]  # how often each picture comes up in a pass
Share = Callable[[Sequence[Record]], Shares]  # of repeated records


def once(records: Sequence[Record]) -> list[int]:
    return [1] * len(records)


def told_repeats(records: Sequence[Record]) -> list[int]:
    """As often as their folders' names say. Raises SettingsError for a number that can't mean that."""
    for record in records:
        if record.repeats > MOST_TOLD:
            raise SettingsError(
                f"by its folder's name {record.source} comes up {record.repeats} times",
                f"{MOST_TOLD} at most",
            )
    return [record.repeats for record in records]


def author_repeats(records: Sequence[Record]) -> list[int]:
    """1 to 10, or 0 for low quality: rare artists and characters, and good pictures, come up more often.

    Source: Eugeoter's training scripts: an artist of at least 25 pictures counts 100 / pictures times, a
    character of at least 50 1000 / pictures times, neither less than once; then the quality's factor. The
    characters are the tags that a record has fixed.
    """
    artists = Counter(record.style for record in records)
    characters = Counter(name for record in records for name in record.tags[: record.fixed])
    return [_author_repeat(record, artists, characters) for record in records]


def _author_repeat(record: Record, artists: Counter[str], characters: Counter[str]) -> int:
    repeats = rarity(artists[record.style], ARTIST_LEAST, ARTIST_WANTED) if record.style else 1.0
    for name in record.tags[: record.fixed]:
        repeats *= rarity(characters[name], CHARACTER_LEAST, CHARACTER_WANTED)
    repeats *= quality_factor(record.tags)
    return min(MOST_REPEATS, max(1, int(repeats))) if repeats else 0


def rarity(count: int, least: int, wanted: int) -> float:
    """1 for what has too few pictures to be learnt, or enough."""
    return max(1.0, wanted / count) if count >= least else 1.0


def quality_factor(tags: Iterable[str]) -> float:
    found = (QUALITY.fullmatch(tag) for tag in tags)
    return next((QUALITY_FACTORS[match[1]] for match in found if match), 1.0)


def alike(records: Sequence[Record]) -> Shares:
    """Each style the same, however many pictures it has."""
    return dict.fromkeys(count_styles(records), 1.0)


def counted(records: Sequence[Record]) -> Shares:
    """Each picture the same."""
    return {style: float(count) for style, count in count_styles(records).items()}


RULES: dict[str, tuple[Repeat, Share]] = {
    "by_count": (once, counted),
    "equal": (once, alike),
    "repeats": (told_repeats, counted),
    "author": (author_repeats, counted),
    "measured": (once, alike),
}
"""`measured` is `equal` until something is measured."""
WHY_NONE = {
    "repeats": ("every folder's name says 0 times, as in `0_NAME`", "a folder of 1 or more, as `1_NAME`"),
    "author": ("all are tagged as of low quality", "some that aren't"),
}
"""Rule -> why no picture comes up, and what it needs."""


def shares_of(records: Sequence[Record], rule: str) -> Shares:
    """Each style's share of the places, of records repeated by the same rule."""
    return RULES[rule][1](records)


def repeated(records: Sequence[Record], rule: str) -> list[Record]:
    """The pictures of a pass, each as often as the rule repeats it. Raises SettingsError if that is never for
    all."""
    counts = RULES[rule][0](records)
    if records and not any(counts):
        why, wanted = WHY_NONE[rule]
        raise SettingsError(
            f'by balance.rule = "{rule}" none of the {len(records)} pictures comes up: {why}',
            wanted,
            "Prepare such pictures, or choose another rule.",
        )
    return [record for record, count in zip(records, counts, strict=True) for _ in range(count)]
