"""Mixing styles: `{by lorelei:0.6 | by micah:0.4}` is the weighted mean of two prompts' encodings.

Each option stands in the whole prompt, each variant is encoded by itself, and the encodings are averaged
token by token: the words outside of the mix with themselves, wherever they stand in each variant; the
options stretched over the places of the longest; padding with padding. So a mix costs no more to draw than
a plain prompt, a weight of 1 is exactly that option, and equal options are exactly the plain prompt. The
U-Net sees the rows of the longest variant, in as many chunks as any variant needs.

Why not AND: `a AND b` adds the guidance of whole pictures, costs a U-Net call a part, and each part must
repeat the rest of the prompt. Why not the mean row by row, as others do: options of unlike lengths shift
all that follows, and every word would be averaged with another.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from itertools import product
from math import prod
from typing import Any

from aid.sd.model.tokenizer import CHUNK
from aid.sd.prompt.chunk import CLOSE, OPEN, Chunk

Mix = tuple[tuple[float, str], ...]
"""Options with their shares, which add up to 1."""

FIRST = 0xF0000
MOST = 0x1000  # mixes that a prompt can have
PLACEHOLDER = re.compile("([\U000f0000-\U000f0fff])")
WINDOW = CHUNK + 2


def placeholder(index: int) -> str:
    """The private character that stands for mix number `index` until the words are encoded."""
    return chr(FIRST + index)


def mixes_in(text: str) -> list[int]:
    """The numbers of the mixes in a text."""
    return [ord(character) - FIRST for character in PLACEHOLDER.findall(text)]


def show_mixes(text: str, mixes: Sequence[Mix]) -> str:
    """The text with its mixes written out."""

    def show(match: re.Match[str]) -> str:
        mix = mixes[ord(match[0]) - FIRST]
        return f"{{{' | '.join(f'{words}:{share:.4g}' for share, words in mix)}}}"

    return PLACEHOLDER.sub(show, text) if mixes else text


def variants(text: str, mixes: Sequence[Mix], marked: bool = True) -> list[tuple[float, str]]:
    """Every combination of the options of the mixes in `text`, with its share. `marked`, private
    characters around each option let `align` find its tokens."""
    pieces = PLACEHOLDER.split(text)
    chosen = [mixes[index] if index < len(mixes) else ((1.0, ""),) for index in mixes_in(text)]
    before, after = (OPEN, CLOSE) if marked else ("", "")
    found: list[tuple[float, str]] = []
    for options in product(*chosen):
        words = [f"{before}{words}{after}" for _, words in options]
        filled = "".join(piece for pair in zip(pieces[::2], [*words, ""], strict=True) for piece in pair)
        found.append((prod(share for share, _ in options), filled))
    return found


def align(layouts: Sequence[tuple[Sequence[Chunk[Any]], Sequence[int]]], rows: int) -> list[list[int]]:
    """For each variant (its chunks, and its tokens before each mark) the row of its context that belongs
    to each of the `rows` of the mixed one, which are those of the variant with the most tokens."""
    maps = [_Map(chunks, marks, rows) for chunks, marks in layouts]
    frame = max(maps, key=lambda one: one.tokens)
    return [one.rows_for(frame) for one in maps]


class _Map:
    """Where each token of a prompt lies in its context."""

    def __init__(self, chunks: Sequence[Chunk[Any]], marks: Sequence[int], rows: int) -> None:
        self.sizes = [chunk.size for chunk in chunks]
        self.sizes += [0] * (rows // WINDOW - len(chunks))
        self.rows = [
            chunk * WINDOW + 1 + place for chunk, size in enumerate(self.sizes) for place in range(size)
        ]
        self.tokens = len(self.rows)
        self.bounds = [0, *marks, self.tokens]

    def rows_for(self, frame: _Map) -> list[int]:
        """The row of this prompt for each of the frame's. Beginnings and padding belong to those of the
        same chunk; padding where this one still has words, to the chunk's last row, which is never one."""
        found: list[int] = []
        token = 0
        for chunk, size in enumerate(frame.sizes):
            begin = chunk * WINDOW
            found.append(begin)
            found += [self.row_of(token + place, frame) for place in range(size)]
            token += size
            own = self.sizes[chunk]
            found += [begin + (place if place > own else WINDOW - 1) for place in range(size + 1, WINDOW)]
        return found

    def row_of(self, token: int, frame: _Map) -> int:
        """The row of the token that is to this prompt what number `token` is to the frame."""
        if self is frame or len(self.bounds) != len(frame.bounds) or not self.tokens:
            return self.rows[min(token, self.tokens - 1)] if self.tokens else 0
        piece = bisect_right(frame.bounds, token) - 1
        start, length = self.bounds[piece], self.bounds[piece + 1] - self.bounds[piece]
        theirs = frame.bounds[piece + 1] - frame.bounds[piece]
        if length == 0:  # an empty option: what stands before it
            return self.rows[start - 1] if start else 0
        return self.rows[start + (token - frame.bounds[piece]) * length // theirs]
