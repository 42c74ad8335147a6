"""A record's caption as one step sees it."""

from __future__ import annotations

import random

from aid.core.dataset import Record
from aid.train.settings import CaptionSettings


def caption(record: Record, settings: CaptionSettings, chance: random.Random) -> str:
    """Trigger and tags with dropout and shuffling; the order of random draws is fixed."""
    if chance.random() < settings.dropout:
        return ""
    tags = [*filter(None, (record.trigger, *record.tags))]
    kept, rest = tags[: settings.keep], tags[settings.keep :]
    rest = [tag for tag in rest if chance.random() >= settings.tag_dropout]
    if settings.shuffle:
        chance.shuffle(rest)
    return ", ".join(kept + rest)
