"""Records to tensors: latents, masks and tokens of one step, all decided by (seed, step)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from aid.core.dataset import Dataset, Record
from aid.sd.model.tokenizer import BOS, CHUNK, EOS, tokenize

REMEMBERED = 4096  # captions' tokens


def step_generator(seed: int, step: int) -> torch.Generator:
    """The generator of one step's randomness: nothing carries over from the step before."""
    mixed = np.random.SeedSequence([seed & 0xFFFFFFFF, step]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(mixed >> np.uint64(1)))


def read_latents(
    dataset: Dataset,
    records: Sequence[Record],
    mirrored: Sequence[bool],
    scale: float,
    noise: torch.Generator,
) -> Tensor:
    """Latents sampled from their cached posteriors, times `scale`, float32 [b, 4, h/8, w/8]."""
    if any(mirrored):
        pairs = zip(records, mirrored, strict=True)
        rows = np.concatenate([dataset.fetch([record], turned) for record, turned in pairs])
    else:
        rows = dataset.fetch(records)
    mean, deviation = torch.from_numpy(rows).float().unbind(1)
    return (mean + deviation * torch.randn(mean.shape, generator=noise)) * scale


def read_masks(dataset: Dataset, records: Sequence[Record], mirrored: Sequence[bool]) -> Tensor | None:
    """How much each place counts, 0 to 1, [b, 1, h/8, w/8]; None if all of all pictures does."""
    masks = [dataset.mask(record, turned) for record, turned in zip(records, mirrored, strict=True)]
    if all(mask is None for mask in masks):
        return None
    whole = np.full((records[0].height // 8, records[0].width // 8), 255, np.uint8)
    stacked = np.stack([whole if mask is None else mask for mask in masks])
    return torch.from_numpy(stacked).unsqueeze(1).float() / 255


def token_windows(captions: Sequence[str], windows: int) -> Tensor:
    """Captions as windows of 77 ids, [b, windows, 77]: BOS, 75 tokens, EOS; EOS pads."""
    return torch.tensor([caption_windows(caption, windows) for caption in captions])


@lru_cache(REMEMBERED)
def caption_windows(caption: str, windows: int) -> list[list[int]]:
    """One caption's. Remembered: the thread that makes a step asks first, beside the step before."""
    [tokens] = tokenize([caption])
    parts = [tokens[start : start + CHUNK] for start in range(0, windows * CHUNK, CHUNK)]
    return [[BOS, *part, *[EOS] * (CHUNK + 1 - len(part))] for part in parts]
