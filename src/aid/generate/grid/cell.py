"""One cell of a grid, and the changes that an axis makes to it: every one a pure function."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from aid.core.shot import Shot
from aid.errors import SettingsError
from aid.sd.prompt.adapter_call import KINDS
from aid.sd.prompt.attention import escape
from aid.sd.prompt.palette import STYLE
from aid.sd.sampling.course import AUTOMATIC, split_name, well_named

PLACE = "\ue000"  # in a prompt, where a style's trigger words will stand
PROMPTS = ("prompt", "negative_prompt")
CALL = re.compile(rf"<(?:{'|'.join(KINDS)}):([^:>]+)[^>]*>")
HOLLOW = re.compile(r"\(\s*(?::\s*[\d.]+\s*)?\)|\[\s*\]")


@dataclass(frozen=True)
class Cell:
    """What is drawn there, with which weights by name."""

    shot: Shot
    checkpoint: str
    vae: str


Change = Callable[[Cell, Any], Cell]


def altered(cell: Cell, **fields: Any) -> Cell:
    """The cell with some of its shot's fields changed. Raises SettingsError for what no shot can have."""
    try:
        shot = Shot.model_validate({**dict(cell.shot), **fields})
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:  # it is what goes together, and no value
            raise SettingsError(first["msg"].removeprefix("Value error, ")) from error
        field = ".".join(map(str, first["loc"]))
        message = first["msg"][0].lower() + first["msg"][1:]
        raise SettingsError(f"{field} = {str(first['input'])[:80]!r}", message) from error
    return replace(cell, shot=shot)


def set_field(name: str) -> Change:
    return lambda cell, value: altered(cell, **{name: value})


def set_inner(part: str, name: str) -> Change:
    """A field of a part of the shot: `hires.scale`; without a second pass, one with the defaults begins."""

    def change(cell: Cell, value: Any) -> Cell:
        inner = getattr(cell.shot, part)
        if inner is None and part == "source":
            raise SettingsError(f"{part}.{name}: no picture is given to start from", "img2img's settings")
        return altered(cell, **{part: {**(dict(inner) if inner else {}), name: value}})

    return change


def set_sampler(set_name: Change) -> Change:
    """A sampler by A1111's name; one with a schedule behind it ("DPM++ 2M Karras") sets that too."""

    def change(cell: Cell, value: str) -> Cell:
        asked = set_name(cell, value)
        named = replace(asked, shot=well_named(asked.shot))
        if named == asked and split_name(value) != (value, AUTOMATIC):
            raise SettingsError(f"{value!r} names a schedule where another is set", split_name(value)[0])
        return named

    return change


def set_size(cell: Cell, value: tuple[int, int]) -> Cell:
    return altered(cell, width=value[0], height=value[1])


def set_checkpoint(cell: Cell, value: str) -> Cell:
    return replace(cell, checkpoint=value)


def set_vae(cell: Cell, value: str) -> Cell:
    return replace(cell, vae=value)


def set_style(cell: Cell, value: tuple[str, str]) -> Cell:
    """(name, trigger words), put where the prompt or its format has a place for them, else first."""
    name, trigger = value
    prompt = cell.shot.prompt
    place = next((mark for mark in (STYLE, PLACE) if mark in prompt), "")
    prompt = prompt.replace(place, trigger) if place else ", ".join(filter(None, (trigger, prompt)))
    return altered(cell, prompt=prompt.replace(PLACE, ""), style=name)


def search_and_replace(cell: Cell, value: tuple[str, str]) -> Cell:
    """Other words in place of the first ones, in both prompts, as A1111's Prompt S/R does."""
    search, other = value
    if not any(search in getattr(cell.shot, field) for field in PROMPTS):
        raise SettingsError(
            f"replace: neither prompt holds {search!r}",
            "first the words to look for, then what takes their place",
        )
    return altered(cell, **{field: getattr(cell.shot, field).replace(search, other) for field in PROMPTS})


def keep_embeddings(known: Collection[str]) -> Change:
    """Only these embeddings: others' words are taken out, and those that neither prompt names are put
    before the negative prompt."""

    def change(cell: Cell, kept: tuple[str, ...]) -> Cell:
        texts = {field: getattr(cell.shot, field) for field in PROMPTS}
        for name in known:
            if name not in kept:
                texts = {field: without_word(text, name) for field, text in texts.items()}
        new = [name for name in kept if not any(_word(name).search(text) for text in texts.values())]
        negative = ", ".join(filter(None, (*map(escape, new), texts["negative_prompt"])))
        return altered(cell, prompt=texts["prompt"], negative_prompt=negative)

    return change


def weigh_adapters(cell: Cell, weight: float) -> Cell:
    """One weight for every LoRA that the prompts call."""
    if not any(CALL.search(getattr(cell.shot, field)) for field in PROMPTS):
        raise SettingsError("lora_weight: the prompts call no LoRA", "<lora:NAME:1> in the prompt")
    called = {
        field: CALL.sub(lambda found: f"<lora:{found[1]}:{weight:g}>", getattr(cell.shot, field))
        for field in PROMPTS
    }
    return altered(cell, **called)


def call_adapters(cell: Cell, calls: str) -> Cell:
    """These LoRA calls in place of all that the prompts have."""
    prompt, negative = (CALL.sub("", getattr(cell.shot, field)).rstrip() for field in PROMPTS)
    return altered(cell, prompt=f"{prompt} {calls}".strip(), negative_prompt=negative)


def without_word(text: str, word: str) -> str:
    """A prompt without a word, and without the empty brackets and doubled commas that it would leave."""
    shorter = _word(word).sub("", text)
    if shorter == text:
        return text
    while shorter != (shorter := HOLLOW.sub("", shorter)):
        pass
    return ", ".join(filter(None, (part.strip() for part in shorter.split(","))))


def _word(name: str) -> re.Pattern[str]:
    """An embedding's name where a prompt calls it: whole, in either case, its brackets escaped or not."""
    spelt = rf"(?:{re.escape(name)}|{re.escape(escape(name))})"
    return re.compile(rf"(?<!\w){spelt}(?!\w)", re.IGNORECASE)
