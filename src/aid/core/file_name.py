"""File names made of what people call things."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Sequence

LONGEST = 48  # letters: with a folder, a number and a suffix it fits any file system


def file_name(text: str) -> str:
    """Letters of any script, digits, dots and hyphens of a name; empty if it has none of them."""
    return re.sub(r"[^\w.-]+", "-", text)[:LONGEST].strip("-.")


def file_names(texts: Sequence[str], taken: Collection[str] = (), ascii_only: bool = False) -> list[str]:
    """A distinct name for each text, also where case does not count: its own, or `style-NUMBER` if that
    is empty, taken, or (with `ascii_only`) not ASCII."""
    known = {name.casefold() for name in taken}
    names = []
    for number, text in enumerate(texts):
        name = file_name(text)
        if not name or name.casefold() in known or (ascii_only and not name.isascii()):
            numbered = (f"style-{free:04d}" for free in itertools.count(number))
            name = next(name for name in numbered if name not in known)
        known.add(name.casefold())
        names.append(name)
    return names
