"""AID's own short forms in a prompt, resolved before it is read.

    {by lorelei:0.6 | by micah:0.4}   a mix of styles: every option has a weight (`mixing`)
    {a|b|c}, {3::a|b}                 one of them by the picture's seed, a three times as often
    __hair__, __clothes/hat__         a line of hair.txt or clothes/hat.txt, by the seed; `3::a` as above

Braces around one thing, unclosed ones and escaped ones (`\\{`) are text, as is a name without a file.
Lines may hold short forms themselves. The same seed, text and files give the same words everywhere.
"""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from math import prod
from pathlib import Path

from aid.core.spelling import fold, mistakes
from aid.errors import FileError
from aid.sd.prompt.mixing import MOST, Mix, mixes_in, placeholder, show_mixes, variants
from aid.sd.prompt.note import Note, quote

Wildcards = Mapping[str, Sequence[str]]

TOKEN = re.compile(r"\\.|[{}|\[\]]|__[\w/.\- ]*?\w__(?!_)|[^\\{}|\[\]_]+|.", re.DOTALL)
WEIGHED = re.compile(r"(.*):\s*([+-]?(?:[0-9]{1,9}\.?[0-9]{0,9}|\.[0-9]{1,9}))\s*", re.DOTALL)
ODDS = re.compile(r"\s*([0-9]{1,9}(?:\.[0-9]{1,9})?|\.[0-9]{1,9})::")
GRAMMAR = re.compile(r"\bAND\b|\[[^\]]*[:|]|<\w+:")
PRIVATE = re.compile("[\U000f0000-\U000f1001]")
DEEPEST_BRACE, DEEPEST_FILE = 32, 16
LONGEST = 1 << 20  # characters that wildcards may make of a prompt
MOST_VARIANTS = 16  # encodings of one prompt
LEAST_SUM = 0.01
COMMENT_LINE = re.compile(r"(^|\n)#[^\n]*(\n|$)")
COMMENT = re.compile(r"#[^\n]*(\n|$)")


@dataclass(frozen=True)
class Expanded:
    """A prompt without short forms; a private character stands for each mix."""

    text: str
    mixes: tuple[Mix, ...] = ()
    notes: tuple[Note, ...] = ()

    def shown(self) -> str:
        """The text with its mixes written out."""
        return show_mixes(self.text, self.mixes)


def expand(text: str, seed: int = 0, wildcards: Wildcards | None = None) -> Expanded:
    """Resolve the short forms of a prompt. Never raises: what makes no sense stays as it is, with a note."""
    notes: list[Note] = []
    if found := PRIVATE.search(text):
        notes.append(Note(found.start(), "this private character is left out: AID uses it itself"))
        text = PRIVATE.sub(" ", text)
    expander = _Expander(seed, wildcards or {}, notes)
    made = expander.run(text, None, 0)
    return Expanded(made, tuple(expander.mixes), tuple(sorted(set(notes))))


def read_wildcards(folder: Path) -> dict[str, tuple[str, ...]]:
    """Every .txt below a folder by its path without the ending: its lines that are neither empty nor a
    `#` comment. Raises FileError for a folder or text that can't be read."""
    if not folder.is_dir():
        raise FileError(f"{folder} is no folder", "a folder of .txt files, a choice a line")
    found: dict[str, tuple[str, ...]] = {}
    for path in sorted(folder.rglob("*.txt")):
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise FileError(f"{path} could not be read ({error})", "lines of UTF-8 text") from error
        kept = (line.strip() for line in lines)
        found[path.relative_to(folder).with_suffix("").as_posix()] = tuple(
            line for line in kept if line and not line.startswith("#")
        )
    return found


def strip_comments(text: str) -> str:
    """Without `# ...` to the end of each line, which A1111 drops before all else (since 1.7, unless told
    otherwise)."""
    return COMMENT.sub("\n", COMMENT_LINE.sub("\n", text))


@dataclass
class _Frame:
    """An open brace: its options so far, and how many square brackets are open in the last."""

    at: int
    options: list[list[str]] = field(default_factory=lambda: [[]])
    square: int = 0


class _Expander:
    def __init__(self, seed: int, wildcards: Wildcards, notes: list[Note]) -> None:
        self.seed, self.wildcards, self.notes = seed, wildcards, notes
        self.mixes: list[Mix] = []
        self.ends: dict[str, list[float]] = {}
        self.picks = self.grown = 0
        self.combinations = 1

    def run(self, text: str, place: int | None, depth: int) -> str:
        """`place` is where notes on text from a file point to."""
        top: list[str] = []
        frames: list[_Frame] = []
        ignored = 0
        for match in TOKEN.finditer(text):
            token, at = match[0], match.start() if place is None else place
            frame = frames[-1] if frames else None
            words = frame.options[-1] if frame else top
            if token == "{" and len(frames) < DEEPEST_BRACE:
                frames.append(_Frame(at))
            elif token == "{" or (token == "}" and ignored):
                ignored += 1 if token == "{" else -1
                words.append(token)
            elif token == "}" and frame:
                frames.pop()
                (frames[-1].options[-1] if frames else top).append(self.close(frame))
            elif token == "|" and frame and not frame.square and not ignored:
                frame.options.append([])
            elif token.startswith("__") and token.endswith("__") and len(token) > 4:
                words.append(self.line(token, at, depth))
            else:
                if frame and token in "[]":
                    frame.square = max(0, frame.square + (1 if token == "[" else -1))
                words.append(token)
        for frame in frames:
            top += ["{", "|".join("".join(option) for option in frame.options)]
        return "".join(top)

    def close(self, frame: _Frame) -> str:
        options = ["".join(option) for option in frame.options]
        if len(options) == 1:
            return f"{{{options[0]}}}"
        weighed = [WEIGHED.fullmatch(option) for option in options]
        if all(weighed):
            return self.mix(frame.at, [(float(one[2]), one[1].strip()) for one in weighed if one])
        if any(weighed):
            self.notes.append(
                Note(frame.at, "only some options have weights, so this is a choice and no mix")
            )
        return self.choose(options)

    def choose(self, options: Sequence[str]) -> str:
        return self.pick(options, _ends(options))

    def pick(self, options: Sequence[str], ends: Sequence[float]) -> str:
        at = min(bisect_right(ends, self.chance() * ends[-1]), len(options) - 1)
        odds = ODDS.match(options[at])
        return options[at][odds.end() if odds else 0 :].strip()

    def mix(self, at: int, options: list[tuple[float, str]]) -> str:
        total = sum(weight for weight, _ in options)
        if total < LEAST_SUM:
            self.notes.append(Note(at, "these weights add up to nothing, so each option counts the same"))
            options, total = [(1.0, words) for _, words in options], float(len(options))
        if any(GRAMMAR.search(words) for _, words in options):
            self.notes.append(Note(at, "AND, [edits] and adapters inside a mix are plain text"))
        flat = tuple(
            (weight / total * share, words)
            for weight, option in options
            if weight
            for share, words in variants(option, self.mixes, marked=False)
        )
        inner = mixes_in("".join(words for _, words in options))
        combinations = self.combinations // prod(len(self.mixes[index]) for index in inner) * len(flat)
        if combinations > MOST_VARIANTS or len(self.mixes) == MOST:
            self.notes.append(
                Note(at, f"more than {MOST_VARIANTS} combinations of styles: only the heaviest option counts")
            )
            return max(flat, key=lambda one: one[0])[1]
        self.combinations = combinations
        self.mixes.append(flat)
        return placeholder(len(self.mixes) - 1)

    def line(self, token: str, at: int, depth: int) -> str:
        """A line of the file that `__name__` names, its own short forms resolved."""
        lines = self.wildcards.get(token[2:-2].strip())
        if not lines:
            self.notes.append(Note(at, self.unknown(token[2:-2], lines)))
            return token
        if depth == DEEPEST_FILE or self.grown > LONGEST:
            self.notes.append(
                Note(at, f"{quote(token)} leads to itself or grows too long: it stays as it is")
            )
            return token
        if token not in self.ends:
            self.ends[token] = _ends(lines)
        line = PRIVATE.sub(" ", self.pick(lines, self.ends[token]))
        self.grown += len(line)
        return self.run(line, at, depth + 1)

    def unknown(self, name: str, lines: Sequence[str] | None) -> str:
        if lines is not None:
            return f"{quote(name)} has no lines: it stays as it is"
        tried = ((mistakes(fold(name), fold(known)), known) for known in self.wildcards)
        near = [(steps, known) for steps, known in tried if steps is not None]
        hint = f"; did you mean {quote(min(near)[1])}?" if near else ""
        return f"no wildcard is called {quote(name)}: it stays as it is{hint}"

    def chance(self) -> float:
        """The next number from 0 up to 1, the same on every machine."""
        self.picks += 1
        digest = hashlib.sha256(f"{self.seed}/{self.picks}".encode()).digest()
        return int.from_bytes(digest[:6], "big") / 2**48


def _ends(options: Sequence[str]) -> list[float]:
    """Where each option's share ends, on a line of them all."""
    found = (ODDS.match(option) for option in options)
    return list(accumulate(float(odds[1]) if odds else 1.0 for odds in found))
