"""How alike two names are to a person who is typing one of them."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Collection
from functools import lru_cache


@lru_cache(maxsize=1024)
def fold(text: str) -> str:
    """The form in which names are compared: no case, no leading `by`, one space for `-`, `_` and spaces."""
    words = re.sub(r"[\s_\-]+", " ", unicodedata.normalize("NFKC", text).casefold()).strip()
    return words.removeprefix("by ").strip()


def did_you_mean(name: str, known: Collection[str]) -> str:
    """What to say of a misspelt name, whatever its case; nothing if none of the known ones is like it."""
    spelt = {one.casefold(): one for one in sorted(known)}
    near = difflib.get_close_matches(name.casefold(), spelt, 1)
    return f"Did you mean {spelt[near[0]]}?" if near else ""


def distance(a: str, b: str) -> int:
    """Insertions, deletions, replacements and swaps of neighbours that lead from `a` to `b`
    (optimal string alignment, Damerau 1964)."""
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, letter in enumerate(a, start=1):
        before, above, row = row, before, [i]
        for j, other in enumerate(b, start=1):
            best = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != other))
            if i > 1 and j > 1 and letter == b[j - 2] and a[i - 2] == other:
                best = min(best, above[j - 2] + 1)
            row.append(best)
    return row[-1]


def mistakes(query: str, name: str) -> int | None:
    """How many typing mistakes away `query` is from `name`, from the name with its words in another
    order, or from one of its longer words; None if that is more than a third of what was typed.

    Both are expected folded.
    """
    allowed = max(1, len(query) // 3)
    in_order = " ".join(sorted(query.split()))
    tries = [(query, name), (in_order, " ".join(sorted(name.split())))]
    tries += [(query, word) for word in name.split() if len(word) > 3]
    near = [distance(a, b) for a, b in tries if abs(len(a) - len(b)) <= allowed]
    return min((steps for steps in near if steps <= allowed), default=None)
