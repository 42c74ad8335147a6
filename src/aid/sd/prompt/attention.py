"""A1111's attention grammar: which part of a prompt weighs how much.

`(x)` multiplies by 1.1, `[x]` divides by 1.1, `(x:1.3)` multiplies by 1.3; nesting multiplies; an
unclosed bracket lasts to the end; `\\(`, `\\)`, `\\[`, `\\]`, `\\\\` are literal and any other lone
backslash vanishes. BREAK, a word of its own outside weighted brackets, starts a new chunk.
Source: A1111 modules/prompt_parser.py, whose results these are, to the last bit of every weight.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate, groupby

from aid.sd.prompt.note import Note, quote

BREAK = ("BREAK", -1.0)
"""What parse_attention returns for a BREAK. Only this pair is one: inside `(...:w)` it is plain text."""

ROUND, SQUARE = 1.1, 1 / 1.1
LONG = 10_000  # characters; of texts as long only the last one's weights are remembered
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
    return weigh(text)[0]


def weigh(text: str) -> tuple[list[tuple[str, float]], list[Note]]:
    """The same, and what is odd about it."""
    segments, notes = _remembered(text) if len(text) < LONG else _remembered_long(text)
    return list(segments), list(notes)


def _weighed(text: str) -> tuple[Sequence[tuple[str, float]], Sequence[Note]]:
    scan = _scan(text)
    weights = _weigh([weight for _, weight in scan.segments], scan.ranges)
    weighed = zip((segment for segment, _ in scan.segments), weights, strict=True)
    runs = groupby(weighed, key=lambda pair: pair[1])
    merged = [("".join(segment for segment, _ in run), weight) for weight, run in runs]
    for index, at in scan.breaks:
        if weights[index] != BREAK[1]:
            scan.notes.append(Note(at, "BREAK inside weighted brackets is plain text"))
    return merged or [("", 1.0)], sorted(scan.notes)


# A prompt is asked for its oddities first, and then for its tokens.
_remembered, _remembered_long = lru_cache(maxsize=16)(_weighed), lru_cache(maxsize=1)(_weighed)


def escape(text: str) -> str:
    """`text` as a prompt that means just that: a tag such as `miku (vocaloid)` keeps its brackets."""
    return SPECIAL.sub(r"\\\g<0>", text)


@dataclass
class _Scan:
    """The unweighted segments, the ranges in the order in which their brackets close, and each BREAK's
    segment and place."""

    segments: list[tuple[str, float]] = field(default_factory=list)
    ranges: list[_Range] = field(default_factory=list)
    breaks: list[tuple[int, int]] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)


def _scan(text: str) -> _Scan:
    scan = _Scan()
    segments, ranges = scan.segments, scan.ranges
    opened: dict[str, list[tuple[int, int]]] = {"(": [], "[": []}
    for match in TOKEN.finditer(text):
        token, at = match[0], match.start()
        if token.startswith("\\"):
            segments.append((token[1:], 1.0))
        elif token in opened:
            opened[token].append((len(segments), at))
        elif token == "]" and opened["["]:
            ranges.append(_Range(opened["["].pop()[0], len(segments), SQUARE))
        elif token[-1] == ")" and opened["("]:
            factor = _number(match[1])
            if factor is None and match[1]:
                segments.append((token[:-1], 1.0))
                scan.notes.append(Note(at, f"{quote(match[1])} is no number, so the bracket weighs {ROUND}"))
            ranges.append(_Range(opened["("].pop()[0], len(segments), ROUND if factor is None else factor))
        else:
            _add_words(scan, token, at)
    for opener, factor in (("(", ROUND), ("[", SQUARE)):
        ranges += [_Range(start, len(segments), factor) for start, _ in opened[opener]]
        if places := [at for _, at in opened[opener]]:
            which = f"this {opener} is" if len(places) == 1 else f"{len(places)} {opener} from here on are"
            scan.notes.append(
                Note(places[0], f"{which} never closed and last{'s' * (len(places) == 1)} to the end")
            )
    return scan


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _add_words(scan: _Scan, text: str, at: int) -> None:
    """The parts around each BREAK, without the space beside it; a BREAK stands between two parts."""
    if BREAK[0] not in text:
        scan.segments.append((text, 1.0))
        return
    end = 0
    for word in BREAK_WORD.finditer(text):
        before = text[end : word.start()].rstrip()
        scan.segments.append((before.lstrip() if end else before, 1.0))
        scan.breaks.append((len(scan.segments), at + word.start()))
        scan.segments.append(BREAK)
        end = word.end()
    scan.segments.append((text[end:].lstrip() if end else text, 1.0))


def _weigh(weights: list[float], ranges: list[_Range]) -> list[float]:
    """Each segment's weight times the factors of the ranges around it."""
    work = sum(span.end - span.start for span in ranges)
    if work > DEEPEST_EXACT * (len(weights) + 1):
        return _weigh_deep(weights, ranges)
    exact = list(weights)
    for span in ranges:
        for index in range(span.start, span.end):
            exact[index] *= span.factor
    return exact if all(map(math.isfinite, exact)) else _weigh_deep(weights, ranges)


def _weigh_deep(weights: list[float], ranges: list[_Range]) -> list[float]:
    """The same for absurd nesting or numbers, in one pass over sums of logarithms; always finite."""
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
