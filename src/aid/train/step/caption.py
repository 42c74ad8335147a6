"""A record's caption as one step sees it. Options and their order: kohya-ss/sd-scripts."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from itertools import pairwise

from aid.core.dataset import Record, drop_chance
from aid.sd.prompt.attention import escape
from aid.train.settings import CaptionSettings

WEIGHTED = re.compile(r"\((?P<words>[^():]+):(?P<weight>\d*\.?\d+)\)")
ALTERNATIVES = re.compile(r"\{([^{}]*)\}")  # the innermost, so that they may be nested
JOINT = ", "


class Captions:
    """Captions under one set of rules. `counts` is how often the training pictures have each tag."""

    def __init__(self, settings: CaptionSettings, counts: Mapping[str, int]) -> None:
        self.settings, self.counts = settings, counts

    def write(self, record: Record, step: int, epoch: int, chance: random.Random) -> str:
        """The caption at a step of an epoch, both from 0; the order of random draws is fixed."""
        settings = self.settings
        if chance.random() < settings.dropout or is_silent(epoch, settings.dropout_every):
            return ""
        kept, free = self._parts(record, chance)
        free = free[: allowed(len(free), step, settings)]
        if settings.shuffle:
            chance.shuffle(free)
        free = [tag for tag in free if chance.random() >= self._loss(tag)]
        written = JOINT.join(filter(None, [settings.prefix, *kept, *free, settings.suffix]))
        second = settings.secondary_separator
        plain = JOINT.join(map(str.strip, written.split(second))) if second else written
        return escape_unweighted(plain) if settings.weighted else plain

    def _parts(self, record: Record, chance: random.Random) -> tuple[list[str], list[str]]:
        """What is kept in front, and the tags that may change."""
        settings = self.settings
        text = record.description
        if text and chance.random() < settings.description_share:
            return [*filter(None, [record.trigger]), choose(text, chance) if settings.wildcards else text], []
        tags = [*filter(None, [record.trigger, *record.tags])]
        if settings.wildcards:
            tags = split_tags(choose(JOINT.join(tags), chance))
        fixed = record.fixed + bool(record.trigger) if record.fixed else 0
        kept = max(settings.keep, fixed)
        return tags[:kept], tags[kept:]

    def _loss(self, tag: str) -> float:
        """The chance that a tag is left out, by either rule."""
        limit = self.settings.frequent_count
        frequent = drop_chance(self.counts.get(tag, 0), limit) if limit else 0.0
        return 1 - (1 - self.settings.tag_dropout) * (1 - frequent)


def come_again(settings: CaptionSettings) -> bool:
    """Whether a picture has the same few captions in every epoch: nothing is drawn tag by tag."""
    drawn = (settings.shuffle, settings.tag_dropout, settings.frequent_count, settings.wildcards)
    return not any(drawn)


def escape_unweighted(text: str) -> str:
    """A caption as a prompt in which `(tag:1.3)` alone has a meaning."""
    kept = [match.span() for match in WEIGHTED.finditer(text)]
    ends = [0, *(edge for span in kept for edge in span), len(text)]
    parts = [text[start:end] for start, end in pairwise(ends)]
    return "".join(escape(part) if index % 2 == 0 else part for index, part in enumerate(parts))


def choose(text: str, chance: random.Random) -> str:
    """Each `{a|b}` as one of its alternatives; they may be nested."""
    while match := ALTERNATIVES.search(text):
        text = text[: match.start()] + chance.choice(match[1].split("|")) + text[match.end() :]
    return text


def allowed(count: int, step: int, settings: CaptionSettings) -> int:
    """How many of `count` tags a step uses: ever more, until the warm-up is over."""
    if step >= settings.warmup_steps:
        return count
    least = min(settings.warmup_tags, count)
    return least + (count - least) * step // settings.warmup_steps


def is_silent(epoch: int, every: int) -> bool:
    """Whether an epoch, counted from 0, is an `every`-th one, whose captions are all empty."""
    return every > 0 and (epoch + 1) % every == 0


def split_tags(text: str) -> list[str]:
    return [tag.strip() for tag in text.split(",") if tag.strip()]
