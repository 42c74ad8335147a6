"""Timesteps and noise of one step: laws and noises as pure functions of a generator."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from aid.sd.model.device import sent
from aid.train.settings import LossSettings
from aid.train.tables import TimestepSettings

Law = Callable[[Tensor, TimestepSettings], Tensor]


def uniform(u: Tensor, settings: TimestepSettings) -> Tensor:
    return u


def logit_normal(u: Tensor, settings: TimestepSettings) -> Tensor:
    """The sigmoid of a normal variable (Esser et al. 2024), by its quantiles."""
    normal = math.sqrt(2) * torch.erfinv(2 * u.double() - 1)
    return torch.sigmoid(settings.mean + settings.spread * normal).float()


LAWS: dict[str, Law] = {"uniform": uniform, "logit_normal": logit_normal}


@dataclass(frozen=True)
class Noised:
    """One step's latents [b*d, 4, h/8, w/8], d draws a picture; the noise to predict and that which is
    `shown`, alike; timesteps [b*d]; and the loss's mask [b*d, 1, h/8, w/8], if any."""

    latents: Tensor
    noise: Tensor
    shown: Tensor
    t: Tensor
    mask: Tensor | None = None

    def to(self, device: torch.device) -> Noised:
        return self.each(lambda tensor: sent(tensor, device))

    def rows(self, rows: slice | list[int]) -> Noised:
        return self.each(lambda tensor: tensor[rows])

    def tensors(self) -> list[Tensor]:
        mask = [] if self.mask is None else [self.mask]
        return [self.latents, self.noise, self.shown, self.t, *mask]

    def each(self, change: Callable[[Tensor], Tensor]) -> Noised:
        noise = change(self.noise)
        shown = noise if self.shown is self.noise else change(self.shown)
        mask = None if self.mask is None else change(self.mask)
        return replace(
            self, latents=change(self.latents), noise=noise, shown=shown, t=change(self.t), mask=mask
        )


def draw_timesteps(
    pictures: int, draws: int, settings: TimestepSettings, generator: torch.Generator
) -> Tensor:
    """Timesteps [pictures * draws]. Those of a picture are spread evenly over the law's probability with one
    random shift: each still follows the law, and the spread lowers the gradient's variance."""
    shift = torch.rand(pictures, 1, generator=generator)
    u = ((shift + torch.arange(draws) / draws) % 1.0).flatten()
    first, count = settings.lowest, settings.highest - settings.lowest
    return (first + (LAWS[settings.law](u, settings) * count).long()).clamp(first, settings.highest - 1)


def draw_noise(latents: Tensor, draws: int, settings: LossSettings, generator: torch.Generator) -> Noised:
    """Repeat each picture `draws` times, with timesteps and noise of its own each time."""
    repeated = latents.repeat_interleave(draws, 0)
    t = draw_timesteps(len(latents), draws, settings.timesteps, generator)
    noise = torch.randn(repeated.shape, generator=generator)
    if settings.noise_offset:
        noise = noise + settings.noise_offset * torch.randn(*noise.shape[:2], 1, 1, generator=generator)
    if settings.pyramid_levels:
        noise = pyramid(noise, settings.pyramid_levels, settings.pyramid_discount, generator)
    shown = noise
    if settings.input_perturbation:
        shown = noise + settings.input_perturbation * torch.randn(noise.shape, generator=generator)
    return Noised(repeated, noise, shown, t)


def pyramid(noise: Tensor, levels: int, discount: float, generator: torch.Generator) -> Tensor:
    """`noise` [b, c, h, w] plus noises of ever larger grain, brought back to a deviation of 1.

    Each level is 2 to 4 times coarser than the one before, and `discount` as strong (Whitaker 2023,
    "Multi-resolution noise for diffusion model training").
    """
    height, width = noise.shape[-2:]
    total = noise
    for level in range(levels):
        grain = (2 + 2 * torch.rand((), generator=generator).item()) ** level
        size = max(1, int(height / grain)), max(1, int(width / grain))
        coarse = torch.randn(*noise.shape[:2], *size, generator=generator)
        smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
        total = total + discount**level * smooth
        if 1 in size:
            break
    return total / total.std()
