"""The card's wording in its two languages; the phrases are the package data `data/wording.toml`."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from aid.core.catalogue import Language, Text

BESIDE_LATIN = r"(?<=[\u4e00-\u9fff])(?=[a-zA-Z0-9`])|(?<=[a-zA-Z0-9`])(?=[\u4e00-\u9fff])"  # Chinese


@dataclass(frozen=True)
class Wording:
    """One language's phrases, its punctuation among them."""

    language: Language
    phrases: Mapping[str, str]

    def say(self, key: str, **fields: object) -> str:
        """A phrase, its fields filled in."""
        return self.phrases[key].format(**fields)

    def pick(self, text: Text) -> str:
        """A text of the settings or the catalogue in this language."""
        return text.in_language(self.language)

    def code(self, words: Sequence[str]) -> str:
        """Words to type, one after another."""
        return self.phrases["comma"].join(f"`{word}`" for word in words)

    def together(self, items: Sequence[str]) -> str:
        """`a, b and c`."""
        if len(items) < 2:
            return "".join(items)
        listed = self.phrases["comma"].join(items[:-1]) + self.phrases["and"] + items[-1]
        return re.sub(BESIDE_LATIN, " ", listed)

    def sentence(self, clauses: Sequence[str]) -> str:
        """Clauses drawn together to one sentence; the empty ones are left out."""
        return self.phrases["clause"].join(filter(None, clauses)) + self.phrases["stop"]

    def pair(self, key: str, value: str) -> str:
        """`Sampler: Euler a`."""
        return self.phrases[key] + self.phrases["colon"] + value


@cache
def wording(language: Language) -> Wording:
    """The wording of one language."""
    text = (resources.files("aid.release") / "data" / "wording.toml").read_text(encoding="utf-8")
    return Wording(language, {key: phrase[language] for key, phrase in tomllib.loads(text).items()})
