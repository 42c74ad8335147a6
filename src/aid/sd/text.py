"""Prompts to text encodings: 75-token chunks, embeddings by name, and weights.

Source: A1111 modules/sd_hijack_clip.py and sd_emphasis.py ("Original" emphasis). One deliberate
difference: when the words after a comma move to the next chunk, an embedding among them moves along
(A1111 leaves its vectors behind, on padding).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from aid.errors import ModelError
from aid.sd.checkpoint import StableDiffusion
from aid.sd.embedding import Embedding
from aid.sd.prompt import BREAK, parse_attention
from aid.sd.text_encoder import encode_ids
from aid.sd.tokenizer import BOS, CHUNK, EOS

COMMA = 267  # `,</w>` in CLIP's vocabulary
COMMA_BACKTRACK = 20  # tokens after the last comma that may move to the next chunk (A1111's default)
LEAST_MEAN = 0.01  # of the mean magnitude; CLIP ViT-L/14's mean is about 0.15 of it
PLACEHOLDER = 0  # the id under an embedding's vectors


@dataclass(frozen=True)
class Chunk:
    """One window of the text encoder: 77 ids and weights (BOS, 75 tokens, EOS), and the embeddings in
    it, each with the position of its first vector (BOS is 0)."""

    ids: list[int]
    weights: list[float]
    fixes: list[tuple[int, Embedding]] = field(default_factory=list)


EMPTY = Chunk([BOS] + [EOS] * (CHUNK + 1), [1.0] * (CHUNK + 2))


def encode_prompts(
    model: StableDiffusion,
    prompts: Sequence[str],
    clip_skip: int = 1,
    embeddings: Mapping[str, Embedding] | None = None,
) -> Tensor:
    """Prompts to `[b, 77k, width]`, k being the chunks of the longest; shorter ones are followed by
    empty chunks. Gradients reach the text encoder and the embeddings' vectors.

    Raises ModelError for an embedding that the model has no room for.
    """
    known = spell(model.tokenizer, embeddings or {})
    return encode_chunks(
        model, [chunk_prompt(model.tokenizer, prompt, known) for prompt in prompts], clip_skip
    )


def encode_chunks(model: StableDiffusion, prompts: Sequence[Sequence[Chunk]], clip_skip: int = 1) -> Tensor:
    """Prompts already cut into chunks, to `[b, 77k, width]`."""
    longest = max(map(len, prompts))
    chunks = [chunk for prompt in prompts for chunk in (*prompt, *[EMPTY] * (longest - len(prompt)))]
    device = next(model.text_encoder.parameters()).device
    ids = torch.tensor([chunk.ids for chunk in chunks], device=device)
    fixes = [
        (row, position, embedding.vectors)
        for row, chunk in enumerate(chunks)
        for position, embedding in chunk.fixes
    ]
    hidden = emphasise(encode_ids(model.text_encoder, ids, clip_skip, fixes), [c.weights for c in chunks])
    return hidden.reshape(len(prompts), longest * (CHUNK + 2), -1)


def emphasise(hidden: Tensor, weights: Sequence[Sequence[float]]) -> Tensor:
    """Scale each token's vector by its weight, then each chunk back to its former mean.

    `hidden` is [chunks, 77, width]. Where there is no mean to speak of (an untrained encoder's layer
    norm leaves none, and 0/0 would be NaN) it is not restored; CLIP's is far above that bound.
    """
    if all(weight == 1.0 for row in weights for weight in row):
        return hidden
    scaled = hidden * torch.tensor(weights, dtype=hidden.dtype, device=hidden.device).unsqueeze(-1)
    mean, size = _mean(hidden), _mean(hidden.abs())
    there = mean.abs() > LEAST_MEAN * size
    return scaled * (torch.where(there, mean, 1) / torch.where(there, _mean(scaled), 1))


def _mean(hidden: Tensor) -> Tensor:
    return hidden.mean(dim=(1, 2), keepdim=True)


Spelling = dict[int, list[tuple[list[int], Embedding]]]
"""First token id of a name -> the names that start so, longest first."""


def spell(tokenizer: Any, embeddings: Mapping[str, Embedding]) -> Spelling:
    """Look-up table of the embeddings' names as token ids. Ids ignore case, so names do too."""
    spelling: Spelling = {}
    for name, ids in zip(embeddings, _tokenize(tokenizer, list(embeddings)), strict=True):
        if ids:
            spelling.setdefault(ids[0], []).append((ids, embeddings[name]))
    for candidates in spelling.values():
        candidates.sort(key=lambda candidate: -len(candidate[0]))
    return spelling


def chunk_prompt(tokenizer: Any, prompt: str, known: Spelling) -> list[Chunk]:
    """Cut one prompt into at least one chunk. An embedding is never split over two.

    Raises ModelError for an embedding of more than 75 vectors.
    """
    segments = parse_attention(prompt)
    builder = _Builder()
    for segment, ids in zip(segments, _tokenize(tokenizer, [text for text, _ in segments]), strict=True):
        if segment == BREAK:
            builder.close()
            continue
        at = 0
        while at < len(ids):
            builder.make_room(ids[at])
            name, embedding = _match(known, ids, at)
            if embedding is None:
                builder.add_token(ids[at], segment[1])
            else:
                builder.add_embedding(embedding, segment[1])
            at += len(name) or 1
    if builder.ids or not builder.done:
        builder.close()
    return builder.done


def embeddings_in(chunks: Sequence[Chunk]) -> list[Embedding]:
    """The embeddings that a prompt names, in order, each once."""
    return list({fix.name: fix for chunk in chunks for _, fix in chunk.fixes}.values())


def _tokenize(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    if not texts:
        return []
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False, verbose=False).input_ids
    return ids


def _match(known: Spelling, ids: list[int], at: int) -> tuple[list[int], Embedding | None]:
    for name, embedding in known.get(ids[at], ()):
        if ids[at : at + len(name)] == name:
            return name, embedding
    return [], None


class _Builder:
    """Fills chunks with tokens; `done` has those that are full."""

    def __init__(self) -> None:
        self.done: list[Chunk] = []
        self._start([], [], [])

    def _start(self, ids: list[int], weights: list[float], fixes: list[tuple[int, Embedding]]) -> None:
        self.ids, self.weights, self.fixes, self.last_comma = ids, weights, fixes, -1

    def close(self) -> None:
        """Pad the current chunk with EOS and begin an empty one."""
        padding = CHUNK - len(self.ids)
        ids = [BOS, *self.ids, *[EOS] * (padding + 1)]
        self.done.append(Chunk(ids, [1.0, *self.weights, *[1.0] * (padding + 1)], self.fixes))
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

    def _close_at(self, end: int) -> None:
        rest = self.ids[end:], self.weights[end:], [(p - end, e) for p, e in self.fixes if p > end]
        self.ids, self.weights = self.ids[:end], self.weights[:end]
        self.fixes = [(position, embedding) for position, embedding in self.fixes if position <= end]
        self.close()
        self._start(*rest)

    def add_token(self, token: int, weight: float) -> None:
        self.ids.append(token)
        self.weights.append(weight)

    def add_embedding(self, embedding: Embedding, weight: float) -> None:
        count = len(embedding.vectors)
        if count > CHUNK:
            raise ModelError(
                f"embedding {embedding.name} has {count} vectors", f"at most {CHUNK}, the size of a chunk"
            )
        if len(self.ids) + count > CHUNK:
            self.close()
        self.fixes.append((len(self.ids) + 1, embedding))
        self.ids += [PLACEHOLDER] * count
        self.weights += [weight] * count
