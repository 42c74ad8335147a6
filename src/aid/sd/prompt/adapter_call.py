"""Adapters called in a prompt: `<lora:name:0.8>`, or `<lora:name:0.8:0.6>` for text encoder and U-Net apart.

Source: A1111 modules/extra_networks.py and its Lora extension.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property

from aid.sd.prompt.note import Note, quote

CALL = re.compile(r"<(\w+):([^>]+)>")
KINDS = ("lora", "lyco")  # `lyco` is an old extension's word for the same
PLAIN = "is read as words, as negative prompts call no LoRA; a prompt may call one at a weight below 0"
NAMED = ("te", "unet")
LARGEST = 3e38  # that float32 holds, about


@dataclass(frozen=True)
class LoraCall:
    """An adapter by its file's stem, and how strongly it acts on each network."""

    name: str
    text_weight: float = 1.0
    unet_weight: float = 1.0


@dataclass(frozen=True)
class Extracted:
    """A prompt without its calls. `shifts` leads back: from each place on, so much was left out before."""

    text: str
    loras: tuple[LoraCall, ...]
    notes: tuple[Note, ...]
    shifts: tuple[tuple[int, int], ...] = ((0, 0),)

    def origin(self, at: int) -> int:
        """Where in the original prompt the character `at` of `text` stands."""
        return at + self.shifts[bisect_right(self._starts, at) - 1][1]

    @cached_property
    def _starts(self) -> list[int]:
        return [start for start, _ in self.shifts]


def extract_loras(text: str) -> tuple[str, list[LoraCall]]:
    """The prompt without anything of the form `<word:...>`, and the adapters that it calls."""
    found = extract(text)
    return found.text, list(found.loras)


def extract(text: str) -> Extracted:
    """The same with notes: on other kinds than LoRA, which are left out as A1111 leaves out those that it
    doesn't know, on calls without sense, which are left out too, and on what AID doesn't read of a call."""
    pieces: list[str] = []
    loras: list[LoraCall] = []
    notes: list[Note] = []
    shifts = [(0, 0)]
    end = kept = 0
    for match in CALL.finditer(text, 0, text.rfind(">") + 1):
        pieces.append(text[end : match.start()])
        kept += match.start() - end
        end = match.end()
        shifts.append((kept, end - kept))
        call = _lora(match[2]) if match[1] in KINDS else f"{match[1]} isn't supported"
        if isinstance(call, LoraCall):
            loras.append(call)
            notes += [Note(match.start(), f"{quote(word)} has no effect here") for word in _unread(match[2])]
        else:
            notes.append(Note(match.start(), f"{quote(match[0])} is left out: {call}"))
    return Extracted("".join((*pieces, text[end:])), tuple(loras), tuple(notes), tuple(shifts))


def plain_calls(text: str) -> list[Note]:
    """A note on each call in a negative prompt, where A1111 too reads it as words."""
    found = CALL.finditer(text, 0, text.rfind(">") + 1)
    return [Note(one.start(), f"{quote(one[0])} {PLAIN}") for one in found if one[1] in KINDS]


def _lora(arguments: str) -> LoraCall | str:
    """The call, or what is wrong with it. `te=` and `unet=` name a weight, as do their places; what has two
    `=` or more stands in a place, as for A1111."""
    items = arguments.split(":")
    places = [item for item in items if item.count("=") != 1]
    named = {name: word for name, equals, word in (item.partition("=") for item in items) if equals}
    if not places or not places[0].strip():
        return "it names no file"
    text_word = named.get("te", places[1] if len(places) > 1 else "1")
    place = places[2] if len(places) > 2 else text_word
    weights = [_number(word) for word in (text_word, named.get("unet", place))]
    if weights[0] is None or weights[1] is None:
        return (
            f"its weight is no number: {quote(text_word if weights[0] is None else named.get('unet', place))}"
        )
    return LoraCall(places[0], weights[0], weights[1])


def _unread(arguments: str) -> list[str]:
    """What a call says beyond its name and weights: A1111's `dyn=` or fourth place, its extensions' words."""
    items = arguments.split(":")
    named = [item for item in items if item.count("=") == 1 and item.split("=")[0] not in NAMED]
    return [*named, *[item for item in items if item.count("=") != 1][3:]]


def _number(word: str) -> float | None:
    try:
        value = float(word)
    except ValueError:
        return None
    return value if abs(value) <= LARGEST else None
