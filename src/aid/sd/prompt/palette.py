"""A palette: one prompt in many styles, to be drawn with one seed and laid out side by side."""

from __future__ import annotations

import re
from collections.abc import Sequence

from aid.core.catalogue import Parameters
from aid.sd.prompt.attention import escape

STYLE = "{style}"
BRACKET = re.compile(r"[()\[\]]")


def palette(prompt: str, triggers: Sequence[str], parameters: Parameters | None = None) -> list[str]:
    """A prompt a style. `{style}` in the prompt stands for its trigger words; without it, the card's format
    (`parameters`) says where they go. Brackets in a trigger are no weights."""
    words = [escape(trigger) if BRACKET.search(trigger) else trigger for trigger in triggers]
    if STYLE in prompt:
        return [prompt.replace(STYLE, word) for word in words]
    card = parameters or Parameters()
    return [card.positive(word, prompt) for word in words]
