"""Tags: from sidecar text to what a caption says (Danbooru's spelling, as kohya's taggers write it).

Beside plain tags two ways of writing are understood: a category before a colon (`character: hatsune miku`),
as waifuset has them, and `|||`, before which kohya's scripts leave tags where they are when shuffling.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from aid.dataset.settings import PrepareSettings

KAOMOJI = {"(o)_(o)", "<o>_<o>", "<|>_<|>", "||_||"}  # underscores that are faces, beside the 3-letter ones
PONY = re.compile(  # words that Pony Diffusion's prompts spell with underscores
    r"score_\d(_up)?|source_(pony|furry|cartoon|anime)|rating_(safe|questionable|explicit)"
)
SEPARATOR = re.compile(r"[,\n\r]")
KEPT_BEFORE = "|||"
ESCAPED = re.compile(r"\\+([()\[\]{}])")
CATEGORY = re.compile(
    r"(artist|character|char|style|copyright|series|species|general|meta|quality|aesthetic):\s*(.+)"
)
CHARACTERS = ("character", "char")


def parse_tags(text: str) -> tuple[str, ...]:
    """Normalised tags of comma- or line-separated text, each once, in their order."""
    tags = map(normalise, SEPARATOR.split(text))
    return tuple(dict.fromkeys(filter(None, tags)))


def normalise(tag: str) -> str:
    """Lower case, spaces for underscores (but not in `^_^` and `score_9`), brackets unescaped, no control
    characters."""
    plain = _plain(ESCAPED.sub(r"\1", tag)).strip("_ ")
    if len(plain) <= 3 or plain in KAOMOJI or PONY.fullmatch(plain):
        return plain
    return _spaced(plain)


def normalise_style(name: str) -> str:
    """A style's name as its trigger spells it, without `by `; empty for no style."""
    spaced = _spaced(_plain(name).replace(",", " "))
    return "" if spaced == "by" else spaced.removeprefix("by ")


@dataclass(frozen=True)
class Tags:
    """A picture's tags: the first `fixed` keep their place; `characters` are among those."""

    tags: tuple[str, ...] = ()
    fixed: int = 0
    characters: tuple[str, ...] = ()


def read_tags(text: str, characters: Iterable[str] = ()) -> Tags:
    """The tags of a caption: characters first, then what is kept before `|||`, then the rest."""
    kept, separator, rest = text.partition(KEPT_BEFORE)
    before, after = (kept, rest.replace(KEPT_BEFORE, ",")) if separator else ("", kept)
    named = dict.fromkeys(filter(None, map(normalise, characters)))
    split: list[list[str]] = []
    for part in (before, after):
        split.append([])
        for tag in parse_tags(part):
            category, plain = _category(tag)
            if category in CHARACTERS:
                named[plain] = None
            else:
                split[-1].append(f"by {plain}" if category == "artist" else plain)
    first = dict.fromkeys((*named, *split[0]))
    return Tags(tuple(dict.fromkeys((*first, *split[1]))), len(first), tuple(named))


def _category(tag: str) -> tuple[str, str]:
    """(category, tag without it); an artist's name comes without its `by `."""
    match = CATEGORY.fullmatch(tag)
    if match is None:
        return "", tag
    category, plain = match[1], normalise(match[2])
    if category == "artist":
        plain = plain.removeprefix("by ")
    return (category, plain) if plain else ("", tag)


@dataclass(frozen=True)
class Patterns:
    """Tags by name, or with `*` for anything."""

    names: frozenset[str]
    wild: re.Pattern[str] | None

    @classmethod
    def of(cls, tags: Sequence[str]) -> Patterns:
        wild = [".*".join(map(re.escape, normalise_pattern(tag).split("*"))) for tag in tags if "*" in tag]
        names = frozenset(normalise(tag) for tag in tags if "*" not in tag)
        return cls(names, re.compile("|".join(wild)) if wild else None)

    def __contains__(self, tag: str) -> bool:
        return tag in self.names or (self.wild is not None and self.wild.fullmatch(_spaced(tag)) is not None)


def normalise_pattern(pattern: str) -> str:
    """As tags are, but for spaces beside a star."""
    spaced = _spaced(_plain(pattern))
    return f"{' ' if pattern[:1] in ' _' else ''}{spaced}{' ' if pattern[-1:] in ' _' else ''}"


@dataclass(frozen=True)
class TagRules:
    """What the settings say about tags, in normalised spelling."""

    undesired: Patterns
    refused: Patterns
    first: Patterns
    replacements: Mapping[str, tuple[str, ...]]
    implied: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(cls, settings: PrepareSettings) -> TagRules:
        return cls(
            Patterns.of(settings.undesired_tags),
            Patterns.of(settings.refused_tags),
            Patterns.of(settings.first_tags),
            {normalise(old): parse_tags(new) for old, new in settings.tag_replacements.items()},
            {normalise(tag): parse_tags(said) for tag, said in settings.implied_tags.items()},
        )

    def apply(self, tags: Iterable[str], style: str = "") -> tuple[str, ...]:
        """Tags with replacements made, and without the undesired, the implied and the style's own trigger."""
        spelled = dict.fromkeys(new for tag in tags for new in self.replacements.get(tag, (tag,)))
        out = {f"by {style}"} | self._implied(spelled)
        return tuple(tag for tag in spelled if tag not in out and tag not in self.undesired)

    def apply_to(self, tags: Tags, style: str = "") -> Tags:
        """The same for tags some of which come first, by their own word or by the settings'."""
        kept = self.apply(tags.tags, style)
        firsts = set(self.apply(tags.tags[: tags.fixed], style))
        first = [tag for tag in kept if tag in firsts or tag in self.first]
        rest = [tag for tag in kept if tag not in firsts and tag not in self.first]
        characters = self.apply(tags.characters, style)
        return Tags((*first, *rest), len(first), tuple(tag for tag in characters if tag in first))

    def refusal(self, tags: Iterable[str]) -> str | None:
        """The first tag for which a picture is not wanted."""
        return next((tag for tag in tags if tag in self.refused), None)

    def _implied(self, tags: Iterable[str]) -> set[str]:
        """What other tags say already; of two that say one another, the first stays."""
        out: set[str] = set()
        for tag in tags:
            if tag not in out:
                out.update(said for said in self.implied.get(tag, ()) if said != tag)
        return out


def _plain(text: str) -> str:
    """Composed lower-case text with single spaces; a space for whatever can't be printed."""
    lower = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).lower())
    return " ".join("".join(letter if letter.isprintable() else " " for letter in lower).split())


def _spaced(text: str) -> str:
    return " ".join(text.replace("_", " ").split())
