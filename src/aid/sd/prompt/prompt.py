"""A prompt as A1111 reads it, explained: adapters called, parts joined by AND, words for every step.

    text --extract--> without <lora:...> --AND--> parts with weights --editing--> words for each step

The words' own weights are the last layer (`attention`), read when they are encoded. Reading never raises
and takes time linear in the text's length; what is odd is told as notes.
Source: A1111 modules/prompt_parser.py; composition by AND: Liu et al. 2022.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from aid.sd.prompt.adapter_call import LoraCall, extract, extract_loras, plain_calls
from aid.sd.prompt.attention import BREAK, escape, parse_attention, weigh
from aid.sd.prompt.editing import Entry, Pass, at_step, schedule
from aid.sd.prompt.note import Note

__all__ = [
    "BREAK",
    "Entry",
    "LoraCall",
    "Note",
    "Part",
    "Pass",
    "Prompt",
    "escape",
    "extract_loras",
    "parse_attention",
    "plan_prompt",
    "read_prompt",
    "verbatim",
]

AND_WORD = re.compile(r"\bAND\b")
WEIGHT = re.compile(r"[-+]?(?:\d+\.?|\d*\.\d+)")
OPEN = "never closed"
LONGEST_WEIGHT = 300  # characters; a longer number can't be finite


def verbatim(text: str) -> str:
    """A prompt of the words of a tag or caption alone: brackets weigh nothing, and a call of an adapter,
    which no prompt can hold as words, is left out."""
    return escape(extract_loras(text)[0].strip())


@dataclass(frozen=True)
class Part:
    """One of the pictures that AND composes: u + Σ weight · s · (c − u)."""

    weight: float
    schedule: tuple[Entry, ...]

    def at(self, step: int) -> str:
        """The words for the denoiser's call number `step`, counted from 0."""
        return at_step(self.schedule, step)

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(entry.text for entry in self.schedule)


@dataclass(frozen=True)
class Prompt:
    """What a prompt says. Notes are in the order of their places in `text`."""

    text: str
    parts: tuple[Part, ...]
    loras: tuple[LoraCall, ...] = ()
    notes: tuple[Note, ...] = ()


def read_prompt(text: str, span: Pass, negative: bool = False) -> Prompt:
    """Read a prompt for one pass of sampling. A negative one calls no adapters and knows no AND."""
    if negative:
        entries, notes = _plan(text, span)
        return Prompt(text, (Part(1.0, tuple(entries)),), (), tuple(sorted([*notes, *plain_calls(text)])))
    found = extract(text)
    parts: list[Part] = []
    notes = list(found.notes)
    for start, words, weight in _parts(found.text):
        entries, odd = _plan(words, span)
        parts.append(Part(weight, tuple(entries)))
        notes += [Note(found.origin(start + note.at), note.text) for note in odd]
        if start + len(words) < len(found.text) and any(OPEN in note.text for note in odd):
            notes.append(Note(found.origin(start), "AND divides the prompt even inside brackets"))
    return Prompt(text, tuple(parts), found.loras, tuple(sorted(notes)))


def _plan(words: str, span: Pass) -> tuple[list[Entry], list[Note]]:
    """The words for each step, and the notes on edits and weights, one a place."""
    entries, notes = schedule(words, span)
    places = {note.at for note in notes}
    return entries, sorted([*notes, *(note for note in weigh(words)[1] if note.at not in places)])


def plan_prompt(text: str, steps: int, old_editing: bool = False) -> list[Part]:
    """The parts of a positive prompt without its calls of adapters, planned for so many steps."""
    return list(read_prompt(text, Pass(steps, old_editing)).parts)


def _parts(text: str) -> list[tuple[int, str, float]]:
    """Where each part starts, its words and its weight. A prompt without AND is one part."""
    parts: list[tuple[int, str, float]] = []
    start = 0
    for match in AND_WORD.finditer(text):
        parts.append((start, *_split_weight(text[start : match.start()])))
        start = match.end()
    return [*parts, (start, *_split_weight(text[start:]))]


def _split_weight(part: str) -> tuple[str, float]:
    """`a cat :1.2` is (a cat, 1.2). Without a weight only the space at the end is lost."""
    words, colon, number = part.rpartition(":")
    number = number.strip()
    if colon and len(number) < LONGEST_WEIGHT and WEIGHT.fullmatch(number):
        return words.rstrip(), float(number)
    return part.rstrip(), 1.0
