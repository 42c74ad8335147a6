"""What a judge can tell: the style, one tag out of each group, and single tags.

Also how the answer to "is what was asked for there?" is counted. Real held-out pictures and generated
ones are counted by the same function, so a score and its ceiling mean the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from pydantic import BaseModel, ConfigDict

from aid.errors import SettingsError

OVERLAP_MAX = 0.01  # of the rarer tag's pictures: what mistagging explains
STYLE = "style"
RESERVED = frozenset({STYLE, "withheld", "near_copies"})
ABSENT = "without "

Asked = tuple[str, Sequence[str]]
"""A style and tags: of a real picture, or of a shot."""


class Panel(BaseModel):
    """The questions a judge answers, in the order of its outputs."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    styles: tuple[str, ...]
    groups: dict[str, tuple[str, ...]]
    """Name -> its tags, of which a picture shows one."""
    tags: tuple[str, ...]
    """Present or absent."""
    shown: dict[str, tuple[str, ...]]
    """Style -> the groups and tags that its pictures show at all."""

    def questions(self) -> list[str]:
        """What `answers` can hold, in order."""
        return [STYLE, *self.groups, *(name for tag in self.tags for name in (tag, ABSENT + tag))]

    def can_show(self, style: str, question: str) -> bool:
        """Whether the style has pictures that answer the question; yes for pictures of no style."""
        return style not in self.shown or question in self.shown[style]

    def choice(self, group: str, tags: Sequence[str]) -> str:
        """The group's tag among `tags`; empty if there is none, or more than one."""
        found = [tag for tag in self.groups[group] if tag in tags]
        return found[0] if len(found) == 1 else ""


@dataclass(frozen=True)
class Verdict:
    """What the judge sees in one picture."""

    style: str
    choices: Mapping[str, str]
    present: Mapping[str, bool]
    chances: Mapping[str, float] = field(default_factory=dict)
    """How likely each style is, all 1 together."""


def answers(panel: Panel, asked: Asked, seen: Verdict) -> dict[str, bool]:
    """Question -> whether the picture shows what was asked for.

    Questions are `style`, each group, each single tag where it was asked for, and `without TAG`
    where it was not. Left out are those that the style's real pictures don't answer.
    """
    style, tags = asked
    hits: dict[str, bool] = {}
    if style in panel.styles:
        hits[STYLE] = seen.style == style
    for group in panel.groups:
        choice = panel.choice(group, tags)
        if choice and panel.can_show(style, group):
            hits[group] = seen.choices[group] == choice
    for tag in panel.tags:
        if panel.can_show(style, tag):
            if tag in tags:
                hits[tag] = seen.present[tag]
            elif tags:
                hits[ABSENT + tag] = not seen.present[tag]
    return hits


def has_tag(panel: Panel, tag: str, seen: Verdict) -> bool | None:
    """Whether the picture shows the tag; None if the judge can't tell."""
    if tag in seen.present:
        return seen.present[tag]
    for group, tags in panel.groups.items():
        if tag in tags:
            return seen.choices[group] == tag
    return None


def assemble(pictures: Sequence[Asked], groups: Mapping[str, Sequence[str]], tags: Sequence[str]) -> Panel:
    """The panel over these pictures. Raises SettingsError for a group of one tag or a tag named twice."""
    named = Counter([*tags, *(tag for options in groups.values() for tag in options)])
    for tag, count in named.items():
        if count > 1:
            raise SettingsError(f"the tag {tag} is in two groups", "each tag once")
    for name, options in groups.items():
        if len(options) < 2:
            raise SettingsError(f"the group {name} has {len(options)} tag", "at least two")
        if name in tags:
            raise SettingsError(f"the group {name} has the name of a tag", "a name of its own")
    for name in RESERVED.intersection([*groups, *tags]):
        raise SettingsError(f"{name} is the name of a score of its own", "another name")
    styles = tuple(sorted({style for style, _ in pictures if style}))
    return Panel(
        styles=styles,
        groups={name: tuple(options) for name, options in groups.items()},
        tags=tuple(tags),
        shown=_shown(pictures, styles, groups, tags),
    )


def _shown(
    pictures: Sequence[Asked],
    styles: Sequence[str],
    groups: Mapping[str, Sequence[str]],
    tags: Sequence[str],
) -> dict[str, tuple[str, ...]]:
    seen: dict[str, set[str]] = {style: set() for style in styles}
    for style, its_tags in pictures:
        if style:
            seen[style].update(its_tags)
    questions = {**groups, **{tag: (tag,) for tag in tags}}
    return {
        style: tuple(name for name, options in questions.items() if seen[style].intersection(options))
        for style in styles
    }


def derive(
    pictures: Sequence[Asked], tag_share_min: float, option_share_min: float, tag_limit: int
) -> tuple[dict[str, tuple[str, ...]], tuple[str, ...]]:
    """Groups and single tags that the pictures' own tags suggest.

    Tags with the same last word (`black hair`, `red hair`) that don't occur together are alternatives.
    Those that do (`long hair`) go to another group: the graph of tags that occur together is coloured,
    the most frequent tag first, and each colour is a group. Two single tags of which every picture
    of their styles has exactly one (`smile`, `frown`) are a group as well. Of the rest, those neither
    rare nor always there are single tags.
    """
    counts = Counter(tag for _, tags in pictures for tag in set(tags))
    together = Counter(pair for _, tags in pictures for pair in combinations(sorted(set(tags)), 2))
    total = max(1, len(pictures))
    groups: dict[str, tuple[str, ...]] = {}
    for last, family in sorted(_families(counts, option_share_min * total).items()):
        groups.update(_named(last, _coloured(family, counts, together)))
    taken = {tag for options in groups.values() for tag in options}
    taken |= {*RESERVED, *groups, *(ABSENT + tag for tag in counts)}
    singles = [tag for tag in _by_count(counts) if tag not in taken]
    singles = [tag for tag in singles if tag_share_min * total <= counts[tag] <= (1 - tag_share_min) * total]
    for one, other in _opposites(pictures, singles, together):
        groups[f"{one}/{other}"] = (one, other)
        singles = [tag for tag in singles if tag not in (one, other)]
    return groups, tuple(sorted(singles[:tag_limit]))


def _by_count(counts: Mapping[str, int]) -> list[str]:
    return sorted(counts, key=lambda tag: (-counts[tag], tag))


def _families(counts: Mapping[str, int], count_min: float) -> dict[str, list[str]]:
    families: dict[str, list[str]] = {}
    for tag in _by_count(counts):
        if counts[tag] >= count_min:
            families.setdefault(tag.split()[-1] if tag.split() else tag, []).append(tag)
    return {last: family for last, family in families.items() if len(family) > 1}


def _coloured(
    family: Iterable[str], counts: Mapping[str, int], together: Mapping[tuple[str, str], int]
) -> list[list[str]]:
    """Greedy colouring; classes of one tag are no group."""
    classes: list[list[str]] = []
    for tag in family:
        for members in classes:
            if not any(_conflict(tag, other, counts, together) for other in members):
                members.append(tag)
                break
        else:
            classes.append([tag])
    return [sorted(members) for members in classes if len(members) > 1]


def _conflict(
    one: str, other: str, counts: Mapping[str, int], together: Mapping[tuple[str, str], int]
) -> bool:
    pair = (min(one, other), max(one, other))
    return together.get(pair, 0) > OVERLAP_MAX * min(counts[one], counts[other])


def _named(last: str, classes: list[list[str]]) -> dict[str, tuple[str, ...]]:
    """The largest class has the last word's name; the others are named by their tags."""
    ordered = sorted(classes, key=lambda members: (-len(members), members))
    largest = f"kind of {last}" if last in RESERVED else last
    named = {largest: tuple(ordered[0])} if ordered else {}
    for members in ordered[1:]:
        firsts = [tag.removesuffix(last).strip() or tag for tag in members]
        named[f"{'/'.join(firsts)} {last}"] = tuple(members)
    return named


def _opposites(
    pictures: Sequence[Asked], singles: Sequence[str], together: Mapping[tuple[str, str], int]
) -> list[tuple[str, str]]:
    per_style = Counter(style for style, _ in pictures)
    of_tag = Counter((style, tag) for style, tags in pictures for tag in set(tags))
    found: list[tuple[str, str]] = []
    for one, other in combinations(sorted(singles), 2):
        styles = [style for style in per_style if of_tag[style, one] or of_tag[style, other]]
        covered = all(of_tag[style, one] + of_tag[style, other] == per_style[style] for style in styles)
        free = not {one, other}.intersection(tag for pair in found for tag in pair)
        if covered and free and not together.get((one, other), 0):
            found.append((one, other))
    return found
