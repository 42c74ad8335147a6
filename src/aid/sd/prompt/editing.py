"""A1111's prompt editing: `[from:to:when]`, `[to:when]`, `[from::when]` and `[one|other|]`.

`when` with a point is a share of the steps, without one a step. The words of every step are planned
beforehand. What isn't well formed is text, and a `|` or a lone backslash outside of any rule makes A1111
take the whole prompt as text: its grammar has no place for them.
Source: A1111 modules/prompt_parser.py (a context-free grammar there, one pass here: a bracket can only
belong to the nearest open one, and one that can't be read makes text of every bracket around it).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from aid.sd.prompt.note import Note, quote

TOKEN = re.compile(r"(?:[^\\\[\]():|]|\\.)+|[\[\]():|\\]")
NUMBER = re.compile(r"\s*([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)\s*")
LITERAL = "so the whole prompt is plain text and none of its [edits] work"


class Entry(NamedTuple):
    """The words for the denoiser's calls up to and including number `last`, the first being 0."""

    last: int
    text: str


@dataclass(frozen=True)
class Pass:
    """What `when` is measured in.

    `steps` are the calls that the sampler makes of the denoiser: A1111 counts twice the steps for those
    of second order (Heun, DPM2, DPM2 a, DPM++ 2S a, DPM++ SDE). `first_pass_steps`: this is the hires pass
    after one of so many; the share 1.0 is then its start. `old` is the rule of versions before 1.6: below
    1 a share, otherwise a step, the same in both passes.
    """

    steps: int
    old: bool = False
    first_pass_steps: int | None = None

    @property
    def length(self) -> int:
        return self.first_pass_steps if self.old and self.first_pass_steps else self.steps

    def step_of(self, number: str) -> int:
        """The last step before the change; below 1 the change comes first of all."""
        value, hires = float(number), self.first_pass_steps is not None
        if self.old:
            value = value * self.length if value < 1 else value
        elif "." in number:
            value = (value - hires) * self.steps
        else:
            value -= self.first_pass_steps or 0
        return int(min(self.length, max(0.0, value)))


@dataclass(frozen=True)
class Edit:
    before: list[Node]
    after: list[Node]
    when: int


@dataclass(frozen=True)
class Alternation:
    options: list[list[Node]]


Node: TypeAlias = "str | list[Node] | Edit | Alternation"


@dataclass(slots=True)
class _Frame:
    """An open bracket: what stands between its separators so far."""

    opener: str
    at: int
    parts: list[list[Node]] = field(default_factory=lambda: [[]])
    separators: str = ""

    def nodes(self) -> Iterator[Node]:
        """As text."""
        for index, part in enumerate(self.parts):
            yield self.opener if index == 0 else self.separators[index - 1]
            yield part


class _Literal(Exception):
    """The whole prompt is text."""


def schedule(text: str, span: Pass) -> tuple[list[Entry], list[Note]]:
    """The words for each step, as A1111 plans them, and what is odd about the edits. Never raises.

    A1111 counts the ends from 1 and the sampler's calls from 0 and compares the two, so every end comes
    one call late and the last is never reached: `[a:b:5]` shows a for 6 steps. So do these.
    """
    reader = _Reader(span)
    try:
        tree = reader.read(text)
    except _Literal:
        return [Entry(span.length, text)], reader.notes
    entries: list[Entry] = []
    for end in sorted(reader.ends):
        words = _render(tree, end)
        same = entries and entries[-1].text == words
        entries.append(Entry(end, entries[-1].text if same else words))
    return entries, reader.notes


def at_step(entries: list[Entry] | tuple[Entry, ...], step: int) -> str:
    """The words for the denoiser's call number `step`, from 0; past the end the first ones, as in A1111."""
    return next((entry.text for entry in entries if step <= entry.last), entries[0].text)


class _Reader:
    """One pass over a prompt; `ends` are the steps after which its words may change."""

    def __init__(self, span: Pass) -> None:
        self.span, self.ends, self.notes = span, {span.length}, list[Note]()
        self.top: list[Node] = []
        self.frames: list[_Frame] = []

    def read(self, text: str) -> list[Node]:
        for match in TOKEN.finditer(text):
            token, at = match[0], match.start()
            if token in "([":
                self.frames.append(_Frame(token, at))
            elif token in ")]":
                self.close(token, at)
            elif token == ":":
                self.colon(at)
            elif token == "|":
                self.bar(at)
            elif token == "\\":
                self.give_up(at, "nothing follows this backslash", "[" in text)
            else:
                self.innermost().append(token)
        if places := [frame.at for frame in self.frames if frame.separators and frame.opener == "["]:
            one = "this [ is never closed, so it edits nothing: it is text"
            many = f"{len(places)} [ from here on are never closed, so they edit nothing: they are text"
            self.notes.append(Note(places[0], one if len(places) == 1 else many))
        self.spill()
        return self.top

    def innermost(self) -> list[Node]:
        return self.frames[-1].parts[-1] if self.frames else self.top

    def colon(self, at: int) -> None:
        frame = self.frames[-1] if self.frames else None
        if frame and "|" in frame.separators:
            self.give_up(at, "a colon can't stand among [one|other]")
        if frame and len(frame.separators) < (2 if frame.opener == "[" else 1):
            frame.separators += ":"
            frame.parts.append([])
            return
        if frame and frame.opener == "[":
            self.notes.append(Note(frame.at, "an edit has at most two colons, so this is text"))
        self.spill()
        self.top.append(":")

    def bar(self, at: int) -> None:
        frame = self.frames[-1] if self.frames else None
        if frame is None or frame.opener == "(" or ":" in frame.separators:
            self.give_up(at, "this | stands outside of [one|other]", bool(self.frames or self.ends_known()))
            return
        frame.separators += "|"
        frame.parts.append([])

    def close(self, token: str, at: int) -> None:
        frame = self.frames[-1] if self.frames else None
        node = self.node(frame) if frame and frame.opener + token in ("()", "[]") else None
        if node is None:
            self.spill()
            self.top.append(token)
            return
        self.frames.pop()
        self.innermost().append(node)

    def node(self, frame: _Frame) -> Node | None:
        """What a closed bracket means; None if that is nothing."""
        if frame.opener == "(" or not frame.separators:
            return [*frame.nodes(), ")" if frame.opener == "(" else "]"]
        if frame.separators[0] == "|":
            self.ends.update(range(1, self.span.length + 1))
            return Alternation(frame.parts)
        last = frame.parts[-1]
        number = NUMBER.fullmatch(last[0]) if len(last) == 1 and isinstance(last[0], str) else None
        if number is None:
            shown = quote(_render(last, 0)) if last else "nothing"
            self.notes.append(Note(frame.at, f"{shown} is not a number, so this is no edit but text"))
            return None
        return self.edit(frame, number[1])

    def edit(self, frame: _Frame, number: str) -> Edit:
        when = self.span.step_of(number)
        if when >= 1:
            self.ends.add(when)
        before = frame.parts[0] if len(frame.separators) == 2 else []
        if len(frame.separators) == 1 and when >= self.span.length and self.span.first_pass_steps is None:
            self.notes.append(
                Note(frame.at, f"[x:{number}] is no weight but an edit: x would come after the last step")
            )
        return Edit(before, frame.parts[-2], when)

    def spill(self) -> None:
        """Every open bracket turns out to be text."""
        if any(frame.separators[:1] == "|" for frame in self.frames):
            at = next(frame.at for frame in self.frames if frame.separators[:1] == "|")
            self.give_up(at, "this [one|other] is not well formed")
        for frame in self.frames:
            for before, part in zip((frame.opener, *frame.separators), frame.parts, strict=True):
                self.top.append(before)
                self.top += part
        self.frames.clear()

    def ends_known(self) -> bool:
        return len(self.ends) > 1

    def give_up(self, at: int, why: str, worth_saying: bool = True) -> None:
        if worth_saying:
            self.notes.append(Note(at, f"{why}, {LITERAL}"))
        raise _Literal


def _render(tree: list[Node], step: int) -> str:
    """The words at a step (from 1). Brackets may nest as deeply as they like."""
    words: list[str] = []
    stack: list[Iterator[Node]] = [iter(tree)]
    while stack:
        for node in stack[-1]:
            if isinstance(node, str):
                words.append(node)
            else:
                stack.append(iter(_chosen(node, step)))
                break
        else:
            stack.pop()
    return "".join(words)


def _chosen(node: list[Node] | Edit | Alternation, step: int) -> list[Node]:
    if isinstance(node, Edit):
        return node.before if step <= node.when else node.after
    return node.options[(step - 1) % len(node.options)] if isinstance(node, Alternation) else node
