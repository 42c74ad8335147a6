"""Prompts cut into windows of 75 tokens, with the embeddings that they name. No torch.

A full window ends at its last comma if that is near, an embedding is never split, BREAK begins a new one.
Source: A1111 modules/sd_hijack_clip.py. One deliberate difference: when the words after a comma move to
the next chunk, an embedding among them moves along (A1111 leaves its vectors behind, on padding).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import Generic, Literal, Protocol, TypeVar, get_args

from aid.errors import ModelError, SettingsError
from aid.sd.model.tokenizer import BOS, CHUNK, EOS, tokenize
from aid.sd.prompt.attention import BREAK, parse_attention
from aid.sd.prompt.comfyui import parse_comfyui

COMMA = 267  # `,</w>` in CLIP's vocabulary
COMMA_BACKTRACK = 20  # tokens after the last comma that may move to the next chunk (A1111's default)
PLACEHOLDER = 0  # the id under an embedding's vectors
MARK = re.compile("([\U000f1000\U000f1001])")
OPEN, CLOSE = "\U000f1000", "\U000f1001"
"""Private characters around words whose tokens are to be found again (`chunk_marked`)."""

Emphasis = Literal["Original", "No norm", "Ignore", "None", "ComfyUI"]
Segments = list[tuple[str, float]]


class Word(Protocol):
    """An embedding, as far as cutting needs to know it: as many vectors as places in a chunk."""

    @property
    def name(self) -> str: ...
    @property
    def vectors(self) -> Sized: ...


W = TypeVar("W", bound=Word)
Spelling = dict[int, list[tuple[list[int], W]]]
"""First token id of a name -> the names that start so, longest first."""


@dataclass(frozen=True)
class Chunk(Generic[W]):
    """One window of the text encoder: 77 ids and weights (BOS, 75 tokens, EOS), and the embeddings in
    it, each with the position of its first vector (BOS is 0)."""

    ids: list[int]
    weights: list[float]
    fixes: list[tuple[int, W]] = field(default_factory=list)
    size: int = 0
    """Tokens before the padding."""


EMPTY_IDS = [BOS] + [EOS] * (CHUNK + 1)


def _literally(text: str) -> Segments:
    return [(text, 1.0)]


SYNTAX: dict[str, Callable[[str], Segments]] = {
    "Original": parse_attention,
    "No norm": parse_attention,
    "Ignore": parse_attention,
    "None": _literally,
    "ComfyUI": parse_comfyui,
}


def empty_chunk() -> Chunk[W]:
    return Chunk(EMPTY_IDS, [1.0] * (CHUNK + 2))


def segments_of(prompt: str, emphasis: str = "Original") -> Segments:
    """The prompt's weighted words as an emphasis mode reads them. Raises SettingsError for an unknown one."""
    if emphasis not in SYNTAX:
        raise SettingsError(f"{emphasis!r} is no emphasis mode", ", ".join(get_args(Emphasis)))
    return SYNTAX[emphasis](prompt)


def spell(embeddings: Mapping[str, W]) -> Spelling[W]:
    """Look-up table of the embeddings' names as token ids. Ids ignore case, so names do too."""
    spelling: Spelling[W] = {}
    for name, ids in zip(embeddings, tokenize(list(embeddings)), strict=True):
        if ids:
            spelling.setdefault(ids[0], []).append((ids, embeddings[name]))
    for candidates in spelling.values():
        candidates.sort(key=lambda candidate: -len(candidate[0]))
    return spelling


def chunk_prompt(prompt: str, known: Spelling[W], emphasis: str = "Original") -> list[Chunk[W]]:
    """Cut one prompt into at least one chunk. An embedding is never split over two.

    Raises ModelError for an embedding of more than 75 vectors.
    """
    return chunk_marked(prompt, known, emphasis)[0]


def chunk_marked(
    prompt: str, known: Spelling[W], emphasis: str = "Original"
) -> tuple[list[Chunk[W]], list[int]]:
    """The same, and how many tokens stand before each OPEN and CLOSE in the prompt."""
    pieces = [
        (piece, weight)
        for text, weight in segments_of(prompt, emphasis)
        for piece in (MARK.split(text) if OPEN in text or CLOSE in text else [text])
    ]
    literal = emphasis in ("None", "ComfyUI")
    builder: _Builder[W] = _Builder()
    marks: list[int] = []
    for piece, ids in zip(pieces, tokenize([text for text, _ in pieces]), strict=True):
        if piece == BREAK and not literal:
            builder.close()
        elif piece[0] in (OPEN, CLOSE):
            marks.append(builder.count)
        else:
            builder.add(ids, piece[1], known)
    if builder.ids or not builder.done:
        builder.close()
    return builder.done, marks


def embeddings_in(chunks: Sequence[Chunk[W]]) -> list[W]:
    """The embeddings that a prompt names, in order, each once."""
    return list({fix.name: fix for chunk in chunks for _, fix in chunk.fixes}.values())


class _Builder(Generic[W]):
    """Fills chunks with tokens; `done` has those that are full."""

    def __init__(self) -> None:
        self.done: list[Chunk[W]] = []
        self.count = 0
        self._start([], [], [])

    def add(self, ids: Sequence[int], weight: float, known: Spelling[W]) -> None:
        """Tokens of one weight, embeddings among them by their names."""
        at = 0
        while at < len(ids):
            self.make_room(ids[at])
            name, word = _match(known, ids, at)
            if word is None:
                self.ids.append(ids[at])
                self.weights.append(weight)
                self.count += 1
            else:
                self.add_embedding(word, weight)
            at += len(name) or 1

    def close(self) -> None:
        """Pad the current chunk with EOS and begin an empty one."""
        padding = CHUNK - len(self.ids)
        ids = [BOS, *self.ids, *[EOS] * (padding + 1)]
        weights = [1.0, *self.weights, *[1.0] * (padding + 1)]
        self.done.append(Chunk(ids, weights, self.fixes, len(self.ids)))
        self._start([], [], [])

    def make_room(self, token: int) -> None:
        """If the chunk is full, close it: at its last comma if that is near and `token` is none."""
        full = len(self.ids) == CHUNK
        if token == COMMA:
            self.last_comma = len(self.ids)
        elif full and self.last_comma >= 0 and CHUNK - self.last_comma <= COMMA_BACKTRACK:
            self._close_at(self.last_comma + 1)
            return
        if full:
            self.close()

    def add_embedding(self, word: W, weight: float) -> None:
        count = len(word.vectors)
        if count > CHUNK:
            raise ModelError(
                f"embedding {word.name} has {count} vectors", f"at most {CHUNK}, the size of a chunk"
            )
        if len(self.ids) + count > CHUNK:
            self.close()
        self.fixes.append((len(self.ids) + 1, word))
        self.ids += [PLACEHOLDER] * count
        self.weights += [weight] * count
        self.count += count

    def _start(self, ids: list[int], weights: list[float], fixes: list[tuple[int, W]]) -> None:
        self.ids, self.weights, self.fixes, self.last_comma = ids, weights, fixes, -1

    def _close_at(self, end: int) -> None:
        rest = self.ids[end:], self.weights[end:], [(p - end, e) for p, e in self.fixes if p > end]
        self.ids, self.weights = self.ids[:end], self.weights[:end]
        self.fixes = [(position, word) for position, word in self.fixes if position <= end]
        self.close()
        self._start(*rest)


def _match(known: Spelling[W], ids: Sequence[int], at: int) -> tuple[list[int], W | None]:
    for name, word in known.get(ids[at], ()):
        if ids[at : at + len(name)] == name:
            return name, word
    return [], None
