"""What a reader of prompts has to say about one."""

from __future__ import annotations

from typing import NamedTuple


class Note(NamedTuple):
    """An oddity, and where: `at` is the index of its first character in the prompt."""

    at: int
    text: str


SHOWN = 40  # characters of a prompt that a note quotes


def quote(text: str) -> str:
    """The text as a note shows it: on one line and not too long."""
    line = " ".join(text.split())
    return f"`{line if len(line) <= SHOWN else line[: SHOWN - 3] + '...'}`"
