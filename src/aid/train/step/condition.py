"""Captions to what the U-Net is told, for SD1, SD2 and SDXL, from tokens as they are: no prompt syntax."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import torch
from torch import Tensor

from aid.core.dataset import Record
from aid.sd.embedding.file import Embedding
from aid.sd.model.checkpoint import StableDiffusion
from aid.sd.model.device import sent
from aid.sd.model.text_encoder import encode_ids, encode_penultimate, pad_with_zeros, pool
from aid.sd.prompt.chunk import Chunk, Spelling, chunk_prompt, empty_chunk, spell
from aid.sd.prompt.text import Conditioning, encode_chunks, size_ids
from aid.train.step.batch import token_windows
from aid.train.step.loss import Condition

REMEMBERED = 1024  # captions: 0.25 GB for SD1, a window each


@dataclass(frozen=True)
class Written:
    """Captions as ids [b * windows, 77], and what encodes these."""

    ids: Tensor
    encode: Callable[[Tensor], Conditioning]


def encode_captions(
    model: StableDiffusion, captions: Sequence[str], windows: int, clip_skip: int = 1
) -> Conditioning:
    """Captions in `windows` windows of 77 ids as a context [b, windows * 77, width], gradients included."""
    written = write_captions(model, captions, windows, clip_skip)
    return written.encode(written.ids)


def write_captions(
    model: StableDiffusion, captions: Sequence[str], windows: int, clip_skip: int = 1
) -> Written:
    """The same, not encoded yet."""
    ids = sent(token_windows(captions, windows).flatten(0, 1), model.device)
    return Written(ids, partial(encode_windows, model, windows, clip_skip))


def encode_windows(model: StableDiffusion, windows: int, clip_skip: int, ids: Tensor) -> Conditioning:
    """Ids [b * windows, 77] as a context [b, windows * 77, width], gradients included."""
    pooled = None
    if model.text_encoder_2 is not None:
        first = encode_penultimate(model.text_encoder, ids)[0]
        padded = pad_with_zeros(ids)
        second, last = encode_penultimate(model.text_encoder_2, padded)
        hidden = torch.cat([first, second], dim=-1)
        pooled = pool(model.text_encoder_2, last, padded)[::windows]
    elif model.architecture.family == "sd2":
        hidden = encode_ids(model.text_encoder, pad_with_zeros(ids))
    else:
        hidden = encode_ids(model.text_encoder, ids, clip_skip)
    return Conditioning(hidden.reshape(len(ids) // windows, -1, hidden.shape[-1]), pooled)


def encode_weighted(
    model: StableDiffusion, captions: Sequence[str], windows: int, clip_skip: int = 1
) -> Conditioning:
    """The same for captions with weights, `(tag:1.3)`, which are read as prompts are."""
    empty: list[Chunk[Embedding]] = [empty_chunk()]
    known: Spelling[Embedding] = spell({})
    chunks = [[*chunk_prompt(caption, known), *windows * empty][:windows] for caption in captions]
    return encode_chunks(model, chunks, clip_skip)


class Remembered:
    """A frozen text encoder's `encode`, asked once for each of the last captions. Each is encoded alone:
    what it becomes must not hang on its neighbours, or a resumed run would differ in the last bits."""

    def __init__(self, encode: Callable[[Sequence[str]], Conditioning]) -> None:
        self.encode = encode
        self._one = lru_cache(maxsize=REMEMBERED)(self._encode_one)

    def __call__(self, captions: Sequence[str]) -> Conditioning:
        rows = [self._one(caption) for caption in captions]
        pooled = [row.pooled for row in rows if row.pooled is not None]
        context = torch.cat([row.context for row in rows])
        return Conditioning(context, torch.cat(pooled) if pooled else None)

    @torch.no_grad()
    def _encode_one(self, caption: str) -> Conditioning:
        return self.encode([caption])


@dataclass(frozen=True)
class Told:
    """What a step's U-Net is to be told, for `draws` draws a record: captions, encoded or only written, and
    SDXL's sizes [b, 6]."""

    captions: Conditioning | Written
    sizes: Tensor | None
    draws: int

    def condition(self) -> Condition:
        captions = self.captions
        made = captions.encode(captions.ids) if isinstance(captions, Written) else captions
        context = made.context.repeat_interleave(self.draws, 0)
        if made.pooled is None or self.sizes is None:
            return Condition(context)
        pooled, sizes = (one.repeat_interleave(self.draws, 0) for one in (made.pooled, self.sizes))
        return Condition(context, {"text_embeds": pooled, "time_ids": sizes})

    def tensors(self) -> list[Tensor]:
        said, sizes = self.captions, [] if self.sizes is None else [self.sizes]
        if isinstance(said, Written):
            return [said.ids, *sizes]
        return [said.context, *([] if said.pooled is None else [said.pooled]), *sizes]

    def each(self, change: Callable[[Tensor], Tensor]) -> Told:
        said, sizes = self.captions, None if self.sizes is None else change(self.sizes)
        if isinstance(said, Written):
            return Told(replace(said, ids=change(said.ids)), sizes, self.draws)
        pooled = None if said.pooled is None else change(said.pooled)
        return Told(Conditioning(change(said.context), pooled), sizes, self.draws)


def tell(
    model: StableDiffusion, captions: Conditioning | Written, records: Sequence[Record], draws: int
) -> Told:
    """What a model's U-Net is to be told of records."""
    sizes = sent(record_sizes(records), model.device) if model.architecture.family == "sdxl" else None
    return Told(captions, sizes, draws)


def record_sizes(records: Sequence[Record]) -> Tensor:
    """SDXL's six sizes a record, [b, 6]: as if each picture had been of its bucket's size."""
    sizes = [(record.height, record.width) for record in records]
    return torch.tensor([size_ids(size, (0, 0), size) for size in sizes], dtype=torch.float32)
