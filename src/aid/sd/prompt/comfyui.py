"""ComfyUI's weights: only round brackets count, and `(x:1.2)` replaces the weight around it.

`(x)` multiplies by 1.1, `\\(` and `\\)` are literal, everything else (`[x]`, BREAK, AND, edits) is text.
A bracket that is never closed makes text of all that follows. `embedding:NAME`, where a weight's words
begin or after a space, names an embedding, also by its file or its folder: `embedding:folder/NAME.pt`.
Source: the rules of ComfyUI comfy/sd1_clip.py, in time linear in the text's length.
"""

from __future__ import annotations

import math
import re
from itertools import groupby

FACTOR = 1.1
DEEPEST_UNCLOSED = 32  # beyond it, unclosed brackets are text whatever the end is
TOKEN = re.compile(r"\\[()]|[()]|[^\\()]+|\\")
EMBEDDING_WORD = re.compile(
    r"(?:^|(?<=[\s\U000f1000\U000f1001]))embedding:(?=\S)"  # after marks of `chunk_marked` too
    r"(?:[^\s,\U000f1000\U000f1001]*[/\\])?([^\s,\U000f1000\U000f1001]*?)(?:\.(?:safetensors|pt|bin))?(?=[\s,\U000f1000\U000f1001]|$)"
)


def parse_comfyui(text: str) -> list[tuple[str, float]]:
    """Cut `text` into (segment, weight), neighbours of one weight joined. Never raises."""
    tokens = TOKEN.findall(text)
    partner = _partners(tokens)
    pieces: list[tuple[str, float, int]] = []
    outer: list[float] = []
    weight, begun = 1.0, 0  # `begun`: where the words of one weight begin
    for index, token in enumerate(tokens):
        if index not in partner:
            pieces.append((token[1:] if token in ("\\(", "\\)") else token, weight, begun))
            continue
        begun = index
        if token == "(":
            outer.append(weight)
            last = tokens[partner[index] - 1] if partner[index] > index + 1 else ""
            number = _number(last, alone=partner[index] == index + 2)
            weight = weight * FACTOR if number is None else number
        else:
            weight = outer.pop()
            words = pieces[-1][0] if pieces and pieces[-1][0] == tokens[index - 1] else ""
            if _number(words, alone=partner[index] == index - 2) is not None:
                pieces[-1] = (words.rpartition(":")[0], *pieces[-1][1:])
    segments = [
        (EMBEDDING_WORD.sub(r"\1", "".join(words for words, *_ in run)), weight)
        for (weight, _), run in groupby(pieces, key=lambda piece: piece[1:])
    ]
    runs = groupby(filter(lambda pair: pair[0], segments), key=lambda pair: pair[1])
    return [("".join(segment for segment, _ in run), weight) for weight, run in runs] or [("", 1.0)]


def _number(last: str, alone: bool) -> float | None:
    """The weight at the end of a bracket's last words; `alone`, they must be more than the weight."""
    words, colon, number = last.rpartition(":")
    if not colon or (alone and not words):
        return None
    try:
        value = float(number)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _partners(tokens: list[str]) -> dict[int, int]:
    """Each bracket that counts -> the one that it belongs to, both ways.

    A bracket that is never closed counts if the text's last character is one that closes; what lies
    between the two is then read in the same way.
    """
    partner: dict[int, int] = {}
    start, end = 0, len(tokens)
    for _ in range(DEEPEST_UNCLOSED):
        unclosed = _pair(tokens, start, end, partner)
        if unclosed is None or tokens[end - 1] != ")":
            break
        partner[unclosed], partner[end - 1] = end - 1, unclosed
        start, end = unclosed + 1, end - 1
        if tokens[end - 1].startswith(":") and _number(tokens[end - 1], alone=end == start + 1) is not None:
            end -= 1
    return partner


def _pair(tokens: list[str], start: int, end: int, partner: dict[int, int]) -> int | None:
    """Add the pairs within [start, end); where the last outermost bracket opens if it stays open."""
    level, begun = 0, -1
    opened: list[int] = []
    pairs: list[tuple[int, int]] = []
    for index in range(start, end):
        if tokens[index] == "(":
            if level == 0:
                opened, pairs, begun = [], [], index
            if begun >= 0:
                opened.append(index)
            level += 1
        elif tokens[index] == ")":
            level -= 1
            if begun >= 0:
                pairs.append((opened.pop(), index))
            if level == 0 and begun >= 0:
                partner.update(pairs)
                partner.update((close, start) for start, close in pairs)
                begun = -1
    return begun if begun >= 0 else None
