"""Which pictures are held out: decided by their own bytes, near duplicates together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from aid.core.dataset import Split


@dataclass(frozen=True)
class _Group:
    members: tuple[int, ...]
    draw: float
    styles: Counter[str]


def split(
    sha256s: Sequence[str], styles: Sequence[str], leader: Sequence[int], fraction: float, minimum: int
) -> list[Split]:
    """Hold out the groups whose draw is under `fraction`, then the lowest draws until each style has
    `minimum`; never more than half of a style.

    A group's draw is in its smallest sha256, so a new picture moves no other: save that a near
    duplicate may take its group along, and that the first pictures of a small style settle slowly.
    """
    totals, held = Counter(styles), Counter[str]()
    chosen: set[int] = set()
    groups = _groups(sha256s, styles, leader)
    for group in groups:
        wanted = group.draw < fraction or any(style and held[style] < minimum for style in group.styles)
        if wanted and all(2 * (held[style] + n) <= totals[style] for style, n in group.styles.items()):
            held.update(group.styles)
            chosen.update(group.members)
    return ["held" if index in chosen else "train" for index in range(len(sha256s))]


def _groups(sha256s: Sequence[str], styles: Sequence[str], leader: Sequence[int]) -> list[_Group]:
    """Groups of near duplicates, lowest draw first."""
    members: dict[int, list[int]] = {}
    for index, first in enumerate(leader):
        members.setdefault(first, []).append(index)
    named = []
    for group in members.values():
        smallest = min(sha256s[index] for index in group)
        # The tail of the smallest hash: its head is small because it is the smallest.
        draw = int(smallest[-8:], 16) / 2**32
        counts = Counter(styles[index] for index in group)
        named.append((draw, smallest, _Group(tuple(group), draw, counts)))
    return [group for _, _, group in sorted(named, key=lambda entry: entry[:2])]
