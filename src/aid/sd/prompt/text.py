"""Prompts to what the U-Net is conditioned on, for SD1, SD2 and SDXL.

    SD1    the text encoder's last state, or an earlier one by clip skip, through the final layer norm
    SD2    the last state of its encoder, which is OpenCLIP's without the last layer; no clip skip
    SDXL   the states before the last of both encoders, side by side, without layer norm; and the pooled
           vector of the second one's first chunk. A1111 minds clip skip only if told so (`clip_l_skip`)

Source: A1111 modules/sd_hijack_clip.py, sd_hijack_open_clip.py and sd_models_xl.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aid.errors import ModelError
from aid.sd.embedding.file import Embedding
from aid.sd.model.checkpoint import StableDiffusion
from aid.sd.model.text_encoder import (
    PENULTIMATE,
    Fix,
    encode_ids,
    encode_penultimate,
    pad_with_zeros,
    pool,
)
from aid.sd.prompt.chunk import Chunk, Spelling, chunk_marked, chunk_prompt, embeddings_in, empty_chunk, spell
from aid.sd.prompt.emphasis import emphasise
from aid.sd.prompt.mixing import Mix, align, variants

__all__ = [
    "Conditioning",
    "chunk_prompt",
    "embeddings_in",
    "encode_chunks",
    "encode_prompts",
    "encode_schedule",
    "repeat_last",
    "size_ids",
    "spell",
]


@dataclass(frozen=True)
class Conditioning:
    """What prompts are to the U-Net: `context` [b, 77k, width], and for SDXL `pooled` [b, 1280]."""

    context: Tensor
    pooled: Tensor | None = None

    def __getitem__(self, index: int | slice) -> Conditioning:
        pooled = None if self.pooled is None else self.pooled[index]
        return Conditioning(self.context[index], pooled)

    def zeros(self) -> Conditioning:
        """A1111's conditioning for SDXL when no negative prompt says anything."""
        pooled = None if self.pooled is None else torch.zeros_like(self.pooled)
        return Conditioning(torch.zeros_like(self.context), pooled)


def encode_prompts(
    model: StableDiffusion,
    prompts: Sequence[str],
    clip_skip: int = 1,
    embeddings: Mapping[str, Embedding] | None = None,
    emphasis: str = "Original",
    *,
    clip_l_skip: bool = False,
    zero_empty: bool = False,
) -> Conditioning:
    """Prompts to a context of 77k rows, k being the chunks of the longest; shorter ones are followed by
    empty chunks. Gradients reach the text encoders and the embeddings' vectors.

    `clip_l_skip`: SDXL's first encoder minds clip skip. `zero_empty`: nothing but zeros if all prompts are
    empty, as A1111 has it for SDXL's negative prompts. Raises ModelError for an embedding that the model
    has no room for, SettingsError for an unknown emphasis mode.
    """
    known = spell(embeddings or {})
    chunks = [chunk_prompt(prompt, known, emphasis) for prompt in prompts]
    made = encode_chunks(model, chunks, clip_skip, emphasis, clip_l_skip=clip_l_skip)
    return made.zeros() if zero_empty and not any(prompts) else made


def encode_schedule(
    model: StableDiffusion,
    texts: Sequence[str],
    mixes: Sequence[Mix] = (),
    clip_skip: int = 1,
    embeddings: Mapping[str, Embedding] | None = None,
    emphasis: str = "Original",
    *,
    clip_l_skip: bool = False,
) -> Conditioning:
    """The texts of one part's schedule, [texts, 77k, width]: all of one length, and under one mean where
    emphasis restores it, as A1111 encodes them. A mix in a text becomes the weighted mean of its variants.
    """
    known: Spelling[Embedding] = spell(embeddings or {})
    plans = [variants(text, mixes) for text in texts]
    unique = list(dict.fromkeys(words for plan in plans for _, words in plan))
    marked = {words: chunk_marked(words, known, emphasis) for words in unique}
    flat = [words for plan in plans for _, words in plan]
    made = encode_chunks(
        model, [marked[words][0] for words in flat], clip_skip, emphasis, True, clip_l_skip=clip_l_skip
    )
    mixed: list[Conditioning] = []
    start = 0
    for plan in plans:
        layouts = [marked[words] for _, words in plan]
        mixed.append(_mean(made[start : start + len(plan)], [weight for weight, _ in plan], layouts))
        start += len(plan)
    pooled = [one.pooled for one in mixed if one.pooled is not None]
    return Conditioning(torch.stack([one.context for one in mixed]), torch.stack(pooled) if pooled else None)


def encode_chunks(
    model: StableDiffusion,
    prompts: Sequence[Sequence[Chunk[Embedding]]],
    clip_skip: int = 1,
    emphasis: str = "Original",
    together: bool = False,
    *,
    clip_l_skip: bool = False,
) -> Conditioning:
    """Prompts already cut into chunks; `together`, emphasis takes them for variants of one prompt."""
    longest = max(map(len, prompts))
    padding: Chunk[Embedding] = empty_chunk()
    rows = [[*prompt, *[padding] * (longest - len(prompt))] for prompt in prompts]
    chunks = [chunk for row in rows for chunk in row]
    weights = [[chunk.weights for chunk in row] for row in rows]
    windows = _Windows.of([*chunks, padding], model.text_encoder)
    hidden = [_encode_first(model, windows, clip_skip, clip_l_skip)]
    pooled = None
    second: Any = model.text_encoder_2
    if second is not None:
        ids = pad_with_zeros(windows.ids)
        state, last = encode_penultimate(second, ids, windows.fixes(second=True))
        hidden.append(state)
        pooled = pool(second, last, ids)[windows.places[:-1:longest]]
    contexts = []
    for state in hidden:
        shaped = state[windows.places[:-1]].reshape(len(rows), longest, *state.shape[1:])
        empty = state[windows.places[-1]]
        contexts.append(emphasise(shaped, weights, emphasis, empty, together).flatten(1, 2))
    return Conditioning(torch.cat(contexts, dim=-1), pooled)


def size_ids(
    original: tuple[int, int], crop: tuple[int, int], target: tuple[int, int]
) -> tuple[int, int, int, int, int, int]:
    """SDXL's size conditioning from (height, width), (top, left), (height, width), in pixels: A1111 draws
    with the picture's own size twice and no crop. Source: Podell et al. 2023."""
    return *original, *crop, *target


def repeat_last(context: Tensor, rows: int) -> Tensor:
    """[n, width] to [rows, width], the last vector repeated: how A1111 evens out the parts of AND."""
    return torch.cat([context, context[-1:].expand(rows - len(context), -1)])


@dataclass(frozen=True)
class _Windows:
    """Chunks without repetition, as the encoders take them; `places` tells where each one asked for is."""

    chunks: Sequence[Chunk[Embedding]]
    ids: Tensor
    places: Tensor

    @classmethod
    def of(cls, chunks: Sequence[Chunk[Embedding]], encoder: Any) -> _Windows:
        device = next(encoder.parameters()).device
        unique: dict[object, int] = {}
        kept: list[Chunk[Embedding]] = []
        places: list[int] = []
        for chunk in chunks:
            key = tuple(chunk.ids), tuple((position, id(word)) for position, word in chunk.fixes)
            places.append(unique.setdefault(key, len(kept)))
            kept += [chunk] if places[-1] == len(kept) else []
        ids = torch.tensor([chunk.ids for chunk in kept], device=device)
        return cls(kept, ids, torch.tensor(places, device=device))

    def fixes(self, second: bool = False) -> list[Fix]:
        return [
            (row, position, _second_vectors(embedding) if second else embedding.vectors)
            for row, chunk in enumerate(self.chunks)
            for position, embedding in chunk.fixes
        ]


def _second_vectors(embedding: Embedding) -> Tensor:
    vectors: Tensor | None = getattr(embedding, "vectors_g", None)
    if vectors is None:
        raise ModelError(
            f"embedding {embedding.name} has vectors for one text encoder",
            "vectors for both of SDXL's",
            "Choose an embedding that was trained on SDXL.",
        )
    return vectors


def _encode_first(model: StableDiffusion, windows: _Windows, clip_skip: int, clip_l_skip: bool) -> Tensor:
    encoder, fixes = model.text_encoder, windows.fixes()
    if model.text_encoder_2 is not None:
        return encode_penultimate(encoder, windows.ids, fixes, -clip_skip if clip_l_skip else PENULTIMATE)[0]
    if model.architecture.family == "sd2":
        return encode_ids(encoder, pad_with_zeros(windows.ids), 1, fixes)
    return encode_ids(encoder, windows.ids, clip_skip, fixes)


def _mean(
    made: Conditioning, weights: Sequence[float], layouts: Sequence[tuple[list[Chunk[Embedding]], list[int]]]
) -> Conditioning:
    """One conditioning of the variants of a mixed text, each token with its like."""
    if len(weights) == 1:
        return made[0]
    rows = torch.tensor(align(layouts, made.context.shape[1]), device=made.context.device)
    share = torch.tensor(weights, dtype=made.context.dtype, device=made.context.device)
    aligned = torch.stack([context[row] for context, row in zip(made.context, rows, strict=True)])
    context = torch.einsum("v,vrw->rw", share, aligned)
    return Conditioning(context, None if made.pooled is None else share @ made.pooled)
