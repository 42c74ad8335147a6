"""Latents to pictures and back, through the VAE; in tiles where whole ones would not fit into memory.

Source: A1111 processing.py (8 bits are cut off, not rounded).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from aid.core.shot import Shot
from aid.errors import ModelError
from aid.sd.drawing.few import few_at_once
from aid.sd.drawing.scarcity import or_in_parts
from aid.sd.model.checkpoint import StableDiffusion

FACTOR = 8  # pixels a latent
WHOLE_PIXELS = 1 << 21  # a larger picture is cut into tiles
SMALL_PIXELS = 1 << 14  # a larger picture is decoded by itself, which is no slower
FEW = 4  # pictures; more don't fit into the caches
TILE, OVERLAP = 96, 16  # latents: tiles of 768 pixels that fade into each other over 128
SMALL_TILE = 48  # where a GPU has no memory for more

Change = Callable[[Tensor], Tensor]


def decode(model: StableDiffusion, latents: Tensor) -> Tensor:
    """Scaled latents [b, 4, h/8, w/8] to pixels [b, 3, h, w], float32, about -1 to 1.

    A half-precision VAE that overflows, as SDXL's first one does, is asked again in float32.
    """
    pixels = _decode(model, latents)
    dtype = model.vae_dtype
    if dtype != torch.float32 and not torch.isfinite(pixels).all():
        try:
            model.vae.float()
            pixels = _decode(model, latents)
        finally:
            model.vae.type(dtype)  # diffusers' `to` would warn of what is meant here
    return pixels


def encode(model: StableDiffusion, pixels: Tensor) -> Tensor:
    """Pixels [b, 3, h, w], -1 to 1, to scaled latents [b, 4, h/8, w/8], float32: the posterior's mean, where
    A1111 draws from it (its spread is next to nothing)."""

    def one(part: Tensor) -> Tensor:
        posterior = model.vae.encode(part.to(model.device, model.vae_dtype), return_dict=False)[0]
        mean: Tensor = posterior.mean.float()
        return mean

    parts = [_fitting(one, part, FACTOR, 1 / FACTOR) for part in torch.split(pixels, 1)]
    return torch.cat(parts) * model.architecture.vae_scale


def _fitting(change: Change, x: Tensor, unit: int, ratio: float) -> Tensor:
    """`change` on a picture, whole or in tiles as large as there is memory for. `unit` is a latent's edge."""

    def cut(tile: int) -> Tensor:
        return tiled(change, x, tile * unit, OVERLAP * unit, ratio)

    large = (FACTOR // unit) ** 2 * x.shape[-1] * x.shape[-2] > WHOLE_PIXELS
    return or_in_parts(
        lambda: cut(TILE) if large else change(x),
        lambda: cut(SMALL_TILE),
        "pictures go through the VAE in small tiles",
    )


def tiled(change: Change, x: Tensor, tile: int, overlap: int, ratio: float) -> Tensor:
    """`change` (which makes sizes `ratio` times as large) on tiles of [b, c, h, w] that overlap, each
    fading linearly into the next. No tile is larger than `tile`; all are of one size."""
    total = weight = torch.zeros(())
    for top, high in _spans(x.shape[-2], tile, overlap):
        for left, wide in _spans(x.shape[-1], tile, overlap):
            made = change(x[..., top : top + high, left : left + wide])
            if total.dim() == 0:
                size = [round(edge * ratio) for edge in x.shape[-2:]]
                total = made.new_zeros((*made.shape[:2], *size))
                weight = made.new_zeros((1, 1, *size))
            y, down = round(top * ratio), made.shape[-2]
            at, across = round(left * ratio), made.shape[-1]
            fade = _ramp(down, round(overlap * ratio)).unsqueeze(1) * _ramp(across, round(overlap * ratio))
            fade = fade.to(made.device)
            total[..., y : y + down, at : at + across] += made * fade
            weight[..., y : y + down, at : at + across] += fade
    return total / weight


def _spans(length: int, tile: int, overlap: int) -> Iterator[tuple[int, int]]:
    """(start, length) of as few tiles as cover the length, evenly spread."""
    if length <= tile:
        yield 0, length
        return
    count = -(-(length - overlap) // (tile - overlap))
    for index in range(count):
        yield round(index * (length - tile) / (count - 1)), tile


def _ramp(length: int, overlap: int) -> Tensor:
    """Weights that rise from the edges; never 0, so that a picture's own edge is kept."""
    distance = torch.arange(length).minimum(torch.arange(length - 1, -1, -1)) + 1
    return (distance / (overlap + 1)).clamp(max=1)


def _decode(model: StableDiffusion, latents: Tensor) -> Tensor:
    """A few at once where they are small, each the same as by itself; others one by one."""
    scaled = (latents / model.architecture.vae_scale).to(model.vae_dtype)
    pixels = FACTOR * FACTOR * latents.shape[-1] * latents.shape[-2]

    def decoded(part: Tensor) -> Tensor:
        made: Tensor = model.vae.decode(part, return_dict=False)[0]
        return made.float()

    steady = scaled.is_cpu and scaled.dtype == torch.float32
    small = FACTOR * FACTOR < pixels <= SMALL_PIXELS  # how a single latent lies in memory is ambiguous
    if len(scaled) == 1 or not (steady and small):
        return torch.cat([_fitting(decoded, part, 1, FACTOR) for part in torch.split(scaled, 1)])
    with few_at_once(model.vae):
        return torch.cat([decoded(part) for part in torch.split(scaled, FEW)])


def to_pictures(pixels: Tensor, shots: Sequence[Shot], model: StableDiffusion) -> list[Image.Image]:
    """Pixels to 8 bits, cut off and not rounded, as A1111 does. Raises ModelError for NaN."""
    for shot, picture in zip(shots, pixels, strict=True):
        if not torch.isfinite(picture).all():
            raise ModelError(
                f"{model.path or 'the model'} drew NaN for {shot.prompt[:80]!r}, seed {shot.seed}",
                "finite pixels",
                "Use precision fp32, a smaller CFG scale and weights, or another VAE or checkpoint.",
            )
    values = (((pixels + 1) / 2).clamp(0, 1) * 255).to(torch.uint8).permute(0, 2, 3, 1)
    return [Image.fromarray(picture) for picture in values.cpu().numpy()]


def to_pixels(pictures: Sequence[Image.Image]) -> Tensor:
    """RGB pictures of one size to [b, 3, h, w], -1 to 1."""
    levels = np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])
    return torch.from_numpy(levels).permute(0, 3, 1, 2).float() / 255 * 2 - 1
