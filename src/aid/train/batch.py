"""Records to tensors: latents, tokens, timesteps and noise of one step, all decided by (seed, step)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from aid.core.dataset import Dataset, Record
from aid.sd.checkpoint import VAE_SCALE
from aid.sd.tokenizer import BOS, CHUNK, EOS

T = 1000  # timesteps of the SD1 schedule


@dataclass(frozen=True)
class Noised:
    """One step's latents [b*d, 4, h/8, w/8], noise alike, and timesteps [b*d], d draws a picture."""

    latents: Tensor
    noise: Tensor
    t: Tensor

    def to(self, device: torch.device) -> Noised:
        return Noised(self.latents.to(device), self.noise.to(device), self.t.to(device))


def step_generator(seed: int, step: int) -> torch.Generator:
    """The generator of one step's randomness: nothing carries over from the step before."""
    mixed = np.random.SeedSequence([seed & 0xFFFFFFFF, step]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(mixed >> np.uint64(1)))


def read_latents(dataset: Dataset, records: Sequence[Record], generator: torch.Generator) -> Tensor:
    """Latents sampled from their cached posteriors, scaled, float32 [b, 4, h/8, w/8]."""
    width, height = records[0].width, records[0].height
    stored = dataset.latents(width, height)
    rows = torch.from_numpy(np.stack([stored[record.row] for record in records])).float()
    mean, deviation = rows.unbind(1)
    return (mean + deviation * torch.randn(mean.shape, generator=generator)) * VAE_SCALE


def draw_noise(latents: Tensor, draws: int, offset: float, generator: torch.Generator) -> Noised:
    """Repeat each picture `draws` times, its timesteps spread evenly over the schedule with one random
    shift (each still uniform; the spread lowers the gradient's variance), and draw noise."""
    repeated = latents.repeat_interleave(draws, 0)
    shift = torch.rand(len(latents), 1, generator=generator)
    spread = (shift + torch.arange(draws) / draws) % 1.0
    t = (spread.flatten() * T).long().clamp(max=T - 1)
    noise = torch.randn(repeated.shape, generator=generator)
    if offset:
        noise = noise + offset * torch.randn(*noise.shape[:2], 1, 1, generator=generator)
    return Noised(repeated, noise, t)


def token_windows(tokenizer: object, captions: Sequence[str], windows: int) -> Tensor:
    """Captions as windows of 77 ids, [b, windows, 77]: BOS, 75 tokens, EOS; EOS pads."""
    plain = tokenizer(list(captions), add_special_tokens=False, verbose=False).input_ids  # type: ignore[operator]
    ids = torch.full((len(plain), windows, CHUNK + 2), EOS)
    ids[:, :, 0] = BOS
    for row, tokens in enumerate(plain):
        for window in range(windows):
            part = tokens[window * CHUNK : (window + 1) * CHUNK]
            ids[row, window, 1 : 1 + len(part)] = torch.tensor(part, dtype=torch.long)
    return ids
