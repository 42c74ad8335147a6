"""The words of shots: short forms resolved, adapters put on, every text encoded once.

    shot --expand, read--> Words --encode--> Guide: what each call of the denoiser is conditioned on

A picture's text is encoded without regard to what it is drawn together with.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor

from aid.core.shot import Shot
from aid.errors import SettingsError
from aid.sd.adapter.fitting import Fitting
from aid.sd.adapter.folder import AdapterFolder
from aid.sd.embedding.file import Embedding
from aid.sd.model.checkpoint import StableDiffusion
from aid.sd.prompt.adapter_call import LoraCall
from aid.sd.prompt.chunk import Chunk, Spelling, chunk_marked, embeddings_in, spell
from aid.sd.prompt.mixing import Mix, variants
from aid.sd.prompt.prompt import Part, Pass, read_prompt
from aid.sd.prompt.sugar import Wildcards, expand
from aid.sd.prompt.text import Conditioning, encode_schedule, repeat_last
from aid.sd.sampling.course import check_sampler
from aid.sd.sampling.samplers import TRAITS

Encodings = dict[tuple[object, ...], Conditioning]
"""By what decides them: a schedule's texts, its mixes, how they are read, and the adapters worn."""
PROMPTS_KEPT = 1024  # a quarter of a MB each at SD1's width


@dataclass(frozen=True)
class Words:
    """What a shot's prompts say in one pass: parts joined by AND with their mixes, and adapters called."""

    parts: tuple[Part, ...]
    mixes: tuple[Mix, ...]
    negative: Part
    negative_mixes: tuple[Mix, ...]
    loras: tuple[LoraCall, ...]

    @property
    def composed(self) -> bool:
        """Whether AND or its weights make more of it than one prompt."""
        return len(self.parts) > 1 or self.parts[0].weight != 1

    def sides(self) -> list[tuple[Part, tuple[Mix, ...]]]:
        return [*((part, self.mixes) for part in self.parts), (self.negative, self.negative_mixes)]


@dataclass(frozen=True)
class Guide:
    """One shot's encoded words. `sides` are the parts and, last, the negative prompt if it is needed: each
    with the encodings of its schedule's texts, [texts, 77k, width]."""

    words: Words
    sides: tuple[tuple[Part, Conditioning], ...]

    def at(self, call: int) -> tuple[int, ...]:
        """Which text of each side the denoiser's call number `call`, from 0, is conditioned on."""
        return tuple(part.texts.index(part.at(call)) for part, _ in self.sides)

    @cached_property
    def rows(self) -> int:
        """Of the longest part of the prompt: shorter ones are padded as A1111 pads them."""
        return max(made.context.shape[1] for _, made in self.sides[: len(self.words.parts)])

    def side(self, number: int, text: int) -> Conditioning:
        made = self.sides[number][1][text]
        if number < len(self.words.parts) and len(made.context) < self.rows:
            return Conditioning(repeat_last(made.context, self.rows), made.pooled)
        return made


class Texts:
    """The texts of one model, its embeddings, adapters and wildcards. It puts on the adapters that a
    prompt calls; as a context manager, it takes them off at the end."""

    def __init__(
        self,
        model: StableDiffusion,
        embeddings: Mapping[str, Embedding] | None = None,
        adapters: AdapterFolder | None = None,
        wildcards: Wildcards | None = None,
        encodings: Encodings | None = None,
    ) -> None:
        """`encodings` are kept by whoever has other texts of the same encoders, embeddings and adapters."""
        self.model, self.embeddings, self.adapters = model, dict(embeddings or {}), adapters
        self.wildcards = wildcards or {}
        self.notes: dict[str, None] = {}
        """What is odd in prompts, and what adapters have no place for in this model, each sentence once."""
        self._fitting: Fitting | None = None
        self._worn: tuple[LoraCall, ...] = ()
        self._words: dict[tuple[object, ...], Words] = {}
        self._chunks: dict[tuple[object, ...], list[Chunk[Embedding]]] = {}
        self._spellings: dict[tuple[str, ...], Spelling[Embedding]] = {}
        self._encodings: Encodings = {} if encodings is None else encodings

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.wear(())

    def words(self, shot: Shot, second: bool = False) -> Words:
        """The shot's words in its first pass or its `second`, the hires pass."""
        prompt, negative, span = _pass_of(shot, second)
        key = (prompt, negative, shot.seed, span)
        if key not in self._words:
            _forget(self._words)
            said = expand(prompt, shot.seed, self.wildcards)
            refused = expand(negative, shot.seed, self.wildcards)
            read, other = read_prompt(said.text, span), read_prompt(refused.text, span, negative=True)
            for side, expanded, own in ("prompt", said, read), ("negative prompt", refused, other):
                notes = (*expanded.notes, *own.notes)
                self.notes.update({f"{side}: {note.text}": None for note in notes})
            self._words[key] = Words(read.parts, said.mixes, other.parts[0], refused.mixes, read.loras)
        return self._words[key]

    def lengths(self, shot: Shot, second: bool = False) -> tuple[object, ...]:
        """What two shots must have in common, in one pass, to be drawn together: adapters, weights of AND,
        whether they are guided, and how many chunks their prompts take."""
        words = self.words(shot, second)
        *parts, negative = (self._length(shot, words, part, mixes) for part, mixes in words.sides())
        needed = is_guided(shot, words)
        weights = tuple(part.weight for part in words.parts)
        return (words.loras, weights, needed, max(parts), negative if needed else 0)

    def named(self, shot: Shot) -> list[Embedding]:
        """The embeddings that the shot's prompts use, each once."""
        used: dict[str, Embedding] = {}
        for second in (False, True)[: 1 + (shot.hires is not None)]:
            words = self.words(shot, second)
            for part, mixes in words.sides():
                for chunks in self._cut(shot, words, part, mixes):
                    used.update({one.name: one for one in embeddings_in(chunks)})
        return list(used.values())

    def guide(self, shot: Shot, second: bool = False) -> Guide:
        """The shot's encoded words. The adapters that it calls must be worn already."""
        words = self.words(shot, second)
        sides = [(part, self._encode(shot, words, part, mixes)) for part, mixes in words.sides()]
        if not is_guided(shot, words):
            sides.pop()
        elif self.model.text_encoder_2 is not None and not any(words.negative.texts):
            sides[-1] = (words.negative, sides[-1][1].zeros())
        return Guide(words, tuple(sides))

    def wear(self, calls: Sequence[LoraCall]) -> None:
        """Make the model wear these adapters and no others. Raises FileError for one that isn't there."""
        calls = tuple(calls)
        if calls == self._worn:
            return
        self._fitting = self._fitting or Fitting(self.model)
        for match in self._fitting.wear(self._folder(calls).uses(calls) if calls else []):
            if sentence := match.sentence():
                self.notes[sentence] = None
        self._worn = calls

    def _folder(self, calls: Iterable[LoraCall]) -> AdapterFolder:
        if self.adapters is None:
            names = ", ".join(call.name for call in calls)
            raise SettingsError(f"the prompt calls {names}", "a folder of LoRAs", "Name it with --loras.")
        return self.adapters

    def _known(self, words: Words) -> dict[str, Embedding]:
        """The embeddings, with those bundled in the adapters that the words call."""
        bundled: dict[str, Embedding] = {}
        if words.loras:
            for use in self._folder(words.loras).uses(words.loras):
                bundled.update(use.adapter.embeddings)
        return {**bundled, **self.embeddings}

    def _length(self, shot: Shot, words: Words, part: Part, mixes: tuple[Mix, ...]) -> int:
        return max(map(len, self._cut(shot, words, part, mixes)))

    def _cut(
        self, shot: Shot, words: Words, part: Part, mixes: tuple[Mix, ...]
    ) -> list[list[Chunk[Embedding]]]:
        """Every variant of every text of a part's schedule, in chunks."""
        known = self._known(words)
        spelling = self._spellings.setdefault(tuple(known), spell(known))
        found = []
        for text in dict.fromkeys(part.texts):
            for _, variant in variants(text, mixes):
                key = (variant, shot.emphasis, tuple(known))
                if key not in self._chunks:
                    _forget(self._chunks)
                    self._chunks[key] = chunk_marked(variant, spelling, shot.emphasis)[0]
                found.append(self._chunks[key])
        return found

    def _encode(self, shot: Shot, words: Words, part: Part, mixes: tuple[Mix, ...]) -> Conditioning:
        worn = tuple((call.name, call.text_weight) for call in words.loras)
        key = (part.texts, mixes, shot.clip_skip, shot.clip_l_skip, shot.emphasis, worn)
        if key not in self._encodings:
            _forget(self._encodings)
            self._encodings[key] = encode_schedule(
                self.model,
                part.texts,
                mixes,
                shot.clip_skip,
                self._known(words),
                shot.emphasis,
                clip_l_skip=shot.clip_l_skip,
            )
        return self._encodings[key]


def is_guided(shot: Shot, words: Words) -> bool:
    """Whether the negative prompt has any part in it."""
    return shot.cfg_scale != 1 or words.composed


def calls_of(sampler: str, steps: int) -> int:
    """How many calls of the denoiser A1111 counts, by which prompts change: two a step of second order."""
    return steps * (2 if TRAITS[check_sampler(sampler)].second_order else 1)


def _pass_of(shot: Shot, second: bool) -> tuple[str, str, Pass]:
    first = calls_of(shot.sampler, shot.steps)
    hires = shot.hires
    if not second or hires is None:
        return shot.prompt, shot.negative_prompt, Pass(first, shot.old_editing)
    own = calls_of(hires.sampler or shot.sampler, hires.steps or shot.steps)
    prompt, negative = hires.prompt or shot.prompt, hires.negative_prompt or shot.negative_prompt
    return prompt, negative, Pass(own, shot.old_editing, first)


def stack(made: Sequence[Conditioning]) -> Conditioning:
    """Conditionings of one picture each, as those of a batch."""
    pooled: list[Tensor] = [one.pooled for one in made if one.pooled is not None]
    return Conditioning(torch.stack([one.context for one in made]), torch.stack(pooled) if pooled else None)


def _forget(cache: dict[Any, Any]) -> None:
    if len(cache) >= PROMPTS_KEPT:
        cache.clear()
