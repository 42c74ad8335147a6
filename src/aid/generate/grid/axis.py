"""Axes: every kind by its name, and an axis read from text such as `steps=10-30(+10)`.

A new kind is one entry of `kinds`; every field of a shot that is a number, a word or a yes or no is one
already.
"""

from __future__ import annotations

import difflib
import itertools
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from aid.core.catalogue import Catalogue
from aid.core.shot import Shot
from aid.core.spelling import fold, mistakes
from aid.errors import SettingsError
from aid.generate.grid.cell import (
    Cell,
    Change,
    call_adapters,
    keep_embeddings,
    search_and_replace,
    set_checkpoint,
    set_field,
    set_inner,
    set_sampler,
    set_size,
    set_style,
    set_vae,
    weigh_adapters,
)
from aid.generate.grid.value import numbers, whole_numbers, words
from aid.sd.prompt.attention import escape
from aid.sd.sampling.course import AUTOMATIC, split_name
from aid.sd.sampling.samplers import SAMPLERS
from aid.sd.sampling.schedules import SCHEDULES

SIZE = re.compile(r"\s*(\d{1,6})\s*[x×]\s*(\d{1,6})\s*")
GRAMMAR = re.compile(r"[{}|<>]")  # of a mix or choice of styles, which no catalogue lists
NAMES = "names"  # what the kinds of axis take that have a list of them
SHOWN = 40  # names listed in an error
SCHEDULED = (AUTOMATIC, *SCHEDULES)
NO_AXIS = {  # what the judge reads (`style` is a kind of its own), and files
    "style", "tags", "source.picture", "source.sha256", "source.mask", "source.mask_sha256",
}  # fmt: skip
ALIASES = {
    "cfg": "cfg_scale", "negative": "negative_prompt", "s/r": "replace", "prompt_s/r": "replace",
    "search_and_replace": "replace", "checkpoint_name": "checkpoint", "model": "checkpoint",
    "styles": "style", "palette": "style", "embeddings": "embedding", "schedule_type": "schedule",
    "scheduler": "schedule", "loras": "lora", "clip": "clip_skip", "seeds": "seed",
}  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """What an axis may vary."""

    read: Callable[[str], Sequence[Any]]
    """Values from text."""
    change: Change
    takes: str
    """What its values are, in a word or two."""
    about: str
    shown: Callable[[Any], str] = str
    changes: tuple[str, ...] = ()
    """The fields that only one axis may vary."""
    rank: int = 0
    """When it is applied: prompts before what looks for words in them."""


@dataclass(frozen=True)
class Known:
    """The names that values can have."""

    checkpoints: tuple[str, ...] = ()
    vaes: tuple[str, ...] = ()
    embeddings: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    catalogue: Catalogue | None = None
    """None: any style is taken by its word."""


@dataclass(frozen=True)
class Axis:
    """A kind's name, and the labels and changes along it. Without a kind, one change that changes nothing."""

    kind: str = ""
    labels: tuple[str, ...] = ("",)
    changes: tuple[Callable[[Cell], Cell], ...] = (lambda cell: cell,)
    fields: tuple[str, ...] = ()
    rank: int = field(default=0, compare=False)

    @property
    def title(self) -> str:
        return self.kind.replace("_", " ").replace("cfg", "CFG").replace("vae", "VAE")


def kinds(known: Known) -> dict[str, Kind]:
    """Every kind of axis by its name."""
    own = {
        "size": Kind(_sizes, set_size, "sizes", "512x768, width first", _size, ("width", "height")),
        "replace": Kind(
            _replacements, search_and_replace, "words", "words, then others in their place", _second, rank=2
        ),
        "style": Kind(
            _styles(known.catalogue), set_style, NAMES, "names; all of the model if none", _first, rank=1
        ),
        "checkpoint": Kind(_names("checkpoint", known.checkpoints), set_checkpoint, NAMES, "names"),
        "vae": Kind(_names("VAE", known.vaes), set_vae, NAMES, "names; `own` is the checkpoint's"),
        "embedding": Kind(
            _embeddings(known.embeddings), keep_embeddings(known.embeddings), NAMES,
            "on, off, or names (a+b for both)", _joined, rank=4,
        ),
        "lora": Kind(
            _calls(known.adapters), call_adapters, NAMES,
            "NAME:WEIGHT (a:0.5+b:1 for both) or off", _call_label, ("lora",), 3,
        ),
        "lora_weight": Kind(
            numbers, weigh_adapters, "numbers", "of every LoRA in the prompts", _number, ("lora",), 3
        ),
    }  # fmt: skip
    return dict(sorted({**_fields(), **own}.items()))


def read_axis(text: str, known: Known) -> Axis:
    """Raises SettingsError for an unknown kind, or a value that can't be read, listing what there is."""
    if not text.strip():
        return Axis()
    name, equals, written = text.partition("=")
    every = kinds(known)
    found = _kind_name(name, every)
    kind = every[found]
    try:
        values = kind.read(written if equals else "")
    except SettingsError as error:
        raise SettingsError(f"{found}: {error.found}", error.expected, error.next_step) from error
    if not values:
        raise SettingsError(f"the axis {found} has no values", kind.takes, f"Write {found}=VALUE,VALUE.")
    changed = kind.changes or ((f"replace {values[0][0]!r}",) if found == "replace" else (found,))
    labels = tuple(kind.shown(value) for value in values)
    return Axis(found, labels, tuple(_bind(kind.change, value) for value in values), changed, kind.rank)


def require_apart(axes: Sequence[Axis]) -> None:
    """Raises SettingsError for two axes that vary the same."""
    for first, second in itertools.combinations(axes, 2):
        if both := sorted(set(first.fields) & set(second.fields)):
            raise SettingsError(
                f"two axes vary {both[0]} ({first.kind} and {second.kind})", "a field on one axis only"
            )


def choose(name: str, names: Sequence[str], what: str) -> str:
    """The one of `names` that is meant. Raises SettingsError with those there are, and one like it."""
    for known in names:
        if name == known or fold(name) == fold(known):
            return known
    few = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
    near = _near(name, names)
    raise SettingsError(f"{name!r} is no {what}", few or "none", f"Did you mean {near}?" if near else "")


def _kind_name(name: str, every: Mapping[str, Kind]) -> str:
    folded = re.sub(r"[\s_-]+", "_", name.strip().casefold())
    folded = ALIASES.get(folded, folded)
    inner = [known for known in every if known.endswith(f".{folded}")]
    if folded in every or len(inner) == 1:
        return folded if folded in every else inner[0]
    near = _near(folded, list(every))
    hint = f"Did you mean {near}?" if near else "Write NAME=VALUES."
    raise SettingsError(f"{name.strip()[:80]!r} is no axis", listed(every), hint)


def listed(every: Mapping[str, Kind]) -> str:
    """The kinds by what they take."""
    by_takes: dict[str, list[str]] = {}
    for name, kind in every.items():
        by_takes.setdefault(kind.takes, []).append(name)
    return "; ".join(f"{takes} for {', '.join(names)}" for takes, names in by_takes.items())


def _near(name: str, names: Sequence[str]) -> str:
    found = [(steps, known) for known in names if (steps := mistakes(fold(name), fold(known))) is not None]
    if found:
        return min(found, key=lambda pair: pair[0])[1]
    return next(iter(difflib.get_close_matches(name, names, 1)), "")


def _bind(change: Change, value: Any) -> Callable[[Cell], Cell]:
    return lambda cell: change(cell, value)


def _fields() -> dict[str, Kind]:
    """A kind for each field of a shot that text can express, and of its parts: `hires.scale`."""
    made: dict[str, Kind | None] = {}
    for name, described in Shot.model_fields.items():
        part = _plain(described.annotation)
        if isinstance(part, type) and issubclass(part, BaseModel):
            for inner, detail in part.model_fields.items():
                made[f"{name}.{inner}"] = _field(inner, detail, set_inner(name, inner))
        else:
            made[name] = _field(name, described, set_field(name))
    return {name: kind for name, kind in made.items() if kind and name not in NO_AXIS}


def _field(name: str, info: FieldInfo, change: Change) -> Kind | None:
    annotation, about = _plain(info.annotation), " ".join((info.description or "").split())
    if name == "sampler":
        takes = f"{', '.join(SAMPLERS)}, each also with a schedule behind it. {about}"
        return Kind(_samplers, set_sampler(change), NAMES, takes, rank=1)
    options = (SCHEDULED if name == "schedule" else ()) or tuple(
        map(str, typing.get_args(annotation) if typing.get_origin(annotation) is typing.Literal else ())
    )
    if options:
        return Kind(_names(name, options), change, NAMES, f"{', '.join(options)}. {about}")
    if annotation is bool:
        return Kind(_switches, change, "on, off", f"on, off. {about}", _switch)
    if annotation is int:
        return Kind(whole_numbers, change, "whole numbers", about)
    if annotation is float:
        return Kind(numbers, change, "numbers", about, _number)
    return Kind(words, change, "words", about) if annotation is str else None


def _plain(annotation: Any) -> Any:
    """An annotation without `| None`."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        parts = [part for part in typing.get_args(annotation) if part is not type(None)]
        return parts[0] if len(parts) == 1 else annotation
    return annotation


def _names(what: str, names: Sequence[str]) -> Callable[[str], list[str]]:
    """Reads names that are known; all of them if none is written."""

    def read(text: str) -> list[str]:
        written = [word for word in words(text) if word]
        return [choose(word, names, what) for word in written] if written else list(names)

    return read


def _samplers(text: str) -> list[str]:
    """Reads samplers, of which each may have a schedule behind it, as A1111 named them before 1.9."""
    return [_sampler(word) for word in words(text) if word] or list(SAMPLERS)


def _sampler(word: str) -> str:
    sampler, schedule = split_name(word)
    return choose(sampler, list(SAMPLERS), "sampler") if schedule == AUTOMATIC else f"{sampler} {schedule}"


def _styles(catalogue: Catalogue | None) -> Callable[[str], list[tuple[str, str]]]:
    """Reads (name, trigger words). A mix of styles, or any where nothing is known, is taken as it stands."""

    def read(text: str) -> list[tuple[str, str]]:
        written = [word for word in words(text) if word]
        triggers = {} if catalogue is None else {style.name: style.trigger for style in catalogue.styles}
        if not written:
            return [(name, escape(trigger)) for name, trigger in triggers.items()]
        return [_style(word, triggers) for word in written]

    return read


def _style(word: str, triggers: Mapping[str, str]) -> tuple[str, str]:
    if GRAMMAR.search(word):
        return word, word
    if not triggers:
        name = word.removeprefix("by ").strip()
        return name, f"by {escape(name)}"
    name = choose(word, list(triggers), "style of this model")
    return name, escape(triggers[name])


def _embeddings(known: Sequence[str]) -> Callable[[str], list[tuple[str, ...]]]:
    def read(text: str) -> list[tuple[str, ...]]:
        if not known:
            raise SettingsError("no embedding is given", "--embeddings FILE or FOLDER")
        everything = {"on": tuple(known), "off": ()}
        written = [word for word in words(text) if word] or ["off", "on"]
        return [
            everything[word.lower()] if word.lower() in everything
            else tuple(choose(name.strip(), known, "embedding") for name in word.split("+"))
            for word in written
        ]  # fmt: skip

    return read


def _replacements(text: str) -> list[tuple[str, str]]:
    """The first words stand for themselves, the others take their place."""
    written = words(text)
    if not written or not written[0]:
        return []
    return [(written[0], word) for word in written]


def _calls(known: Sequence[str]) -> Callable[[str], list[str]]:
    def read(text: str) -> list[str]:
        return [_adapters(word, known) for word in words(text) if word]

    return read


def _adapters(word: str, known: Sequence[str]) -> str:
    """`a:0.5+b` as the calls that a prompt has for it."""
    if word.lower() == "off":
        return ""
    calls = [(choose(name.strip(), known, "LoRA"), weight) for name, _, weight in _parted(word)]
    return " ".join(f"<lora:{name}:{weight.strip() or 1}>" for name, weight in calls)


def _parted(word: str) -> list[tuple[str, str, str]]:
    return [call.partition(":") for call in word.split("+")]


def _sizes(text: str) -> list[tuple[int, int]]:
    sizes = []
    for word in filter(None, words(text)):
        found = SIZE.fullmatch(word)
        if found is None:
            raise SettingsError(f"{word[:80]!r} is no size", "512x768, width first")
        sizes.append((int(found[1]), int(found[2])))
    return sizes


def _switches(text: str) -> list[bool]:
    meanings = {"on": True, "true": True, "yes": True, "off": False, "false": False, "no": False}
    written = [word.lower() for word in words(text) if word] or ["off", "on"]
    return [meanings[choose(word, list(meanings), "yes or no")] for word in written]


def _size(value: tuple[int, int]) -> str:
    return f"{value[0]}×{value[1]}"


def _first(value: tuple[str, str]) -> str:
    return value[0]


def _second(value: tuple[str, str]) -> str:
    return value[1] or "(nothing)"


def _joined(value: tuple[str, ...]) -> str:
    return " + ".join(value) or "off"


def _call_label(value: str) -> str:
    return value.replace("<lora:", "").replace(">", "").replace(" ", " + ") or "off"


def _number(value: float) -> str:
    return f"{value:.10g}"


def _switch(value: bool) -> str:
    return "on" if value else "off"
