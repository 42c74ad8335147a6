"""Tags: from sidecar text to what a caption says (Danbooru's spelling, as kohya's taggers write it)."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from aid.dataset.settings import PrepareSettings

KAOMOJI = {"(o)_(o)", "<o>_<o>", "<|>_<|>", "||_||"}  # underscores that are faces, beside the 3-letter ones
SEPARATOR = re.compile(r"[,\n\r]")
ESCAPED = re.compile(r"\\+([()\[\]{}])")


def parse_tags(text: str) -> tuple[str, ...]:
    """Normalised tags of comma- or line-separated text, each once, in their order."""
    tags = map(normalise, SEPARATOR.split(text))
    return tuple(dict.fromkeys(filter(None, tags)))


def normalise(tag: str) -> str:
    """Lower case, spaces for underscores (but not in `^_^`), brackets unescaped, no control characters."""
    plain = _plain(ESCAPED.sub(r"\1", tag)).strip("_ ")
    if len(plain) <= 3 or plain in KAOMOJI:
        return plain
    return _spaced(plain)


def normalise_style(name: str) -> str:
    """A style's name as its trigger spells it, without `by `; empty for no style."""
    spaced = _spaced(_plain(name).replace(",", " "))
    return "" if spaced == "by" else spaced.removeprefix("by ")


@dataclass(frozen=True)
class TagRules:
    """What the settings say about tags, in normalised spelling."""

    undesired: frozenset[str]
    replacements: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(cls, settings: PrepareSettings) -> TagRules:
        return cls(
            frozenset(map(normalise, settings.undesired_tags)),
            {normalise(old): parse_tags(new) for old, new in settings.tag_replacements.items()},
        )

    def apply(self, tags: Iterable[str], style: str = "") -> tuple[str, ...]:
        """Tags with replacements made; the undesired and the style's own trigger are left out."""
        spelled = (new for tag in tags for new in self.replacements.get(tag, (tag,)))
        trigger = f"by {style}"
        return tuple(dict.fromkeys(tag for tag in spelled if tag not in self.undesired and tag != trigger))


def _plain(text: str) -> str:
    """Composed lower-case text with single spaces; a space for whatever can't be printed."""
    lower = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).lower())
    return " ".join("".join(letter if letter.isprintable() else " " for letter in lower).split())


def _spaced(text: str) -> str:
    return " ".join(text.replace("_", " ").split())
