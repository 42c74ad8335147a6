"""A1111's attention grammar: which part of a prompt weighs how much.

`(x)` multiplies by 1.1, `[x]` divides by 1.1, `(x:1.3)` multiplies by 1.3; nesting multiplies; an
unclosed bracket lasts to the end; `\\(`, `\\)`, `\\[`, `\\]`, `\\\\` are literal and any other lone
backslash vanishes. BREAK, a word of its own outside weighted brackets, starts a new chunk.
Source: A1111 modules/prompt_parser.py, whose results these are, to the last bit of every weight.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from itertools import accumulate, groupby

BREAK = ("BREAK", -1.0)
"""What parse_attention returns for a BREAK. Only this pair is one: inside `(...:w)` it is plain text."""

ROUND, SQUARE = 1.1, 1 / 1.1
DEEPEST_EXACT = 64  # mean nesting up to which weights are multiplied in A1111's own order

TOKEN = re.compile(r"\\[()\[\]\\]?|[(\[\])]|:\s*([+-]?[.\d]+)\s*\)|[^\\()\[\]:]+|:")
BREAK_WORD = re.compile(r"\bBREAK\b")
SPECIAL = re.compile(r"[()\[\]\\]")


@dataclass(frozen=True)
class _Range:
    """Segments [start, end) are multiplied by `factor`."""

    start: int
    end: int
    factor: float


def parse_attention(text: str) -> list[tuple[str, float]]:
    """Cut `text` into (segment, weight). Never raises, and takes time linear in the text's length.

    A number that A1111 would stumble over, as in `(x:1.2.3)`, is text and the bracket weighs 1.1.
    """
    segments, ranges = _scan(text)
    weights = _weigh([weight for _, weight in segments], ranges)
    weighed = zip((segment for segment, _ in segments), weights, strict=True)
    runs = groupby(weighed, key=lambda pair: pair[1])
    merged = [("".join(segment for segment, _ in run), weight) for weight, run in runs]
    return merged or [("", 1.0)]


def escape(text: str) -> str:
    """`text` as a prompt that means just that: a tag such as `miku (vocaloid)` keeps its brackets."""
    return SPECIAL.sub(r"\\\g<0>", text)


def _scan(text: str) -> tuple[list[tuple[str, float]], list[_Range]]:
    """The unweighted segments, and the ranges in the order in which their brackets close."""
    segments: list[tuple[str, float]] = []
    ranges: list[_Range] = []
    open_round: list[int] = []
    open_square: list[int] = []
    for match in TOKEN.finditer(text):
        token = match[0]
        if token.startswith("\\"):
            segments.append((token[1:], 1.0))
        elif token == "(":
            open_round.append(len(segments))
        elif token == "[":
            open_square.append(len(segments))
        elif token == "]" and open_square:
            ranges.append(_Range(open_square.pop(), len(segments), SQUARE))
        elif token[-1] == ")" and open_round:
            factor = _number(match[1])
            if factor is None and match[1]:
                segments.append((token[:-1], 1.0))
            ranges.append(_Range(open_round.pop(), len(segments), ROUND if factor is None else factor))
        else:
            segments.extend(_split_at_break(token))
    ranges += [_Range(start, len(segments), ROUND) for start in open_round]
    ranges += [_Range(start, len(segments), SQUARE) for start in open_square]
    return segments, ranges


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _split_at_break(text: str) -> list[tuple[str, float]]:
    """The parts around each BREAK, without the space beside it; a BREAK stands between two parts."""
    parts = BREAK_WORD.split(text)
    segments: list[tuple[str, float]] = []
    for index, part in enumerate(parts):
        if index > 0:
            segments.append(BREAK)
            part = part.lstrip()
        segments.append((part.rstrip() if index + 1 < len(parts) else part, 1.0))
    return segments


def _weigh(weights: list[float], ranges: list[_Range]) -> list[float]:
    """Each segment's weight times the factors of the ranges around it."""
    work = sum(span.end - span.start for span in ranges)
    if work > DEEPEST_EXACT * (len(weights) + 1):
        return _weigh_deep(weights, ranges)
    for span in ranges:
        for index in range(span.start, span.end):
            weights[index] *= span.factor
    return weights


def _weigh_deep(weights: list[float], ranges: list[_Range]) -> list[float]:
    """The same for absurdly deep nesting, in one pass over sums of logarithms."""
    steps = [(0.0, 0, 0)] * (len(weights) + 1)
    for span in ranges:
        change = (math.log(abs(span.factor)) if span.factor else 0.0, span.factor < 0, span.factor == 0)
        steps[span.start] = _add(steps[span.start], change, 1)
        steps[span.end] = _add(steps[span.end], change, -1)
    totals = accumulate(steps, lambda total, step: _add(total, step, 1))
    factors = (
        0.0 if zeros else (-1.0) ** negatives * math.exp(max(-700.0, min(700.0, logarithm)))
        for logarithm, negatives, zeros in totals
    )
    return [weight * factor for weight, factor in zip(weights, factors, strict=False)]


def _add(total: tuple[float, int, int], step: tuple[float, int, int], sign: int) -> tuple[float, int, int]:
    return total[0] + sign * step[0], total[1] + sign * step[1], total[2] + sign * step[2]
