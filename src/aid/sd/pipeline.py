"""Shots to pictures.

A picture depends on its shot and the weights alone: noise comes from its own seed, and prompts of
different length are never padded to share a batch. Drawn in another batch it is the same up to the
rounding of the convolutions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from aid.core.shot import Shot
from aid.errors import ModelError
from aid.sd.checkpoint import VAE_SCALE, StableDiffusion
from aid.sd.chunk import Chunk, chunk_prompt, spell
from aid.sd.course import check_sampler, noise_for, plan_course
from aid.sd.embedding import Embedding
from aid.sd.noise import levels, scaled_input
from aid.sd.random import PictureNoise
from aid.sd.samplers import SAMPLERS, TRAITS
from aid.sd.text import encode_chunks

PIXELS_A_DECODE = 1 << 20  # the VAE needs about 2 kB a pixel at SD1's widths
PROMPTS_KEPT = 1024  # a quarter of a MB each at SD1's width

OnPicture = Callable[[int], None]


def draw(
    model: StableDiffusion,
    shots: Sequence[Shot],
    embeddings: Mapping[str, Embedding] | None = None,
    batch_size: int = 8,
    on_picture: OnPicture | None = None,
) -> list[Image.Image]:
    """Draw every shot, in batches of at most `batch_size`; pictures come back in the order asked.

    `on_picture` is told each index as it is done. Raises SettingsError for an unknown sampler,
    ModelError for a model that draws NaN.
    """
    texts = Texts(model, embeddings or {})
    pictures: dict[int, Image.Image] = {}
    for batch in plan_batches(texts, shots, batch_size):
        for index, picture in zip(batch, draw_batch(model, [shots[i] for i in batch], texts), strict=True):
            pictures[index] = picture
            if on_picture is not None:
                on_picture(index)
    return [pictures[index] for index in range(len(shots))]


class Texts:
    """The prompts of one model and one set of embeddings, each encoded once and by itself."""

    def __init__(self, model: StableDiffusion, embeddings: Mapping[str, Embedding]) -> None:
        self.model, self.known = model, spell(embeddings)
        self._chunks: dict[str, list[Chunk[Embedding]]] = {}
        self._encodings: dict[tuple[str, int], Tensor] = {}

    def chunks(self, prompt: str) -> list[Chunk[Embedding]]:
        if prompt not in self._chunks:
            _forget(self._chunks)
            self._chunks[prompt] = chunk_prompt(prompt, self.known)
        return self._chunks[prompt]

    def encode(self, prompt: str, clip_skip: int) -> Tensor:
        """[77k, width]"""
        key = prompt, clip_skip
        if key not in self._encodings:
            _forget(self._encodings)
            self._encodings[key] = encode_chunks(self.model, [self.chunks(prompt)], clip_skip).context[0]
        return self._encodings[key]


def plan_batches(texts: Texts, shots: Sequence[Shot], batch_size: int) -> list[list[int]]:
    """The indices of shots that can be drawn together: same size, steps, sampler, clip skip, use of
    guidance, and lengths of both prompts."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for index, shot in enumerate(shots):
        check_sampler(shot.sampler)
        guided = shot.cfg_scale != 1
        lengths = len(texts.chunks(shot.prompt)), len(texts.chunks(shot.negative_prompt)) if guided else 0
        key = (shot.width, shot.height, shot.steps, shot.sampler, shot.clip_skip, *lengths)
        groups.setdefault(key, []).append(index)
    return [
        group[start : start + batch_size]
        for group in groups.values()
        for start in range(0, len(group), batch_size)
    ]


@torch.inference_mode()
def draw_batch(
    model: StableDiffusion,
    shots: Sequence[Shot],
    texts: Texts,
    on_step: Callable[[], None] = lambda: None,
) -> list[Image.Image]:
    """Draw shots that plan_batches put together. `on_step` is called after each step of the sampler."""
    first = shots[0]
    course = plan_course(first.sampler, "Automatic", first.steps, levels())
    noise = PictureNoise(
        [shot.seed for shot in shots], (4, first.height // 8, first.width // 8), model.device
    )
    denoise = Denoiser(model, shots, texts)
    x = course.start(noise())
    noise_source = noise_for(first.sampler, course, noise)
    latents = SAMPLERS[first.sampler](denoise, x, course.sigmas, noise_source, on_step)
    return to_pictures(decode(model, latents), shots, model)


class Denoiser:
    """(x, σ) -> the clean latent that the U-Net expects, guided by each shot's own CFG scale.

    D = u + s(c - u) on the denoised latents (Ho & Salimans 2022), as A1111 combines them.
    """

    def __init__(self, model: StableDiffusion, shots: Sequence[Shot], texts: Texts) -> None:
        self.model = model
        self.text = torch.stack([texts.encode(shot.prompt, shot.clip_skip) for shot in shots])
        self.guided = shots[0].cfg_scale != 1
        self.stride = TRAITS[shots[0].sampler].stride
        if self.guided:
            scales = [shot.cfg_scale for shot in shots]
            self.scale = torch.tensor(scales, device=model.device).reshape(-1, 1, 1, 1)
            self.negative = torch.stack(
                [texts.encode(shot.negative_prompt, shot.clip_skip) for shot in shots]
            )
            self.together = self.text.shape == self.negative.shape
            if self.together:
                self.text = torch.cat([self.text, self.negative])

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        scaled, t = scaled_input(x, sigma), levels().sigma_to_t(sigma, self.stride)
        if not self.guided:
            return x - self._noise(scaled, t, self.text) * sigma
        if self.together:
            c, u = self._noise(torch.cat([scaled, scaled]), t, self.text).chunk(2)
        else:
            c, u = self._noise(scaled, t, self.text), self._noise(scaled, t, self.negative)
        u, c = x - u * sigma, x - c * sigma
        return u + self.scale * (c - u)

    def _noise(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        """The U-Net's ε, float32."""
        x = x.to(dtype=self.model.dtype, memory_format=torch.channels_last)
        noise: Tensor = self.model.unet(x, t, text, return_dict=False)[0]
        return noise.float()


def decode(model: StableDiffusion, latents: Tensor) -> Tensor:
    """Scaled latents [b, 4, h/8, w/8] to pixels [b, 3, h, w], float32, about -1 to 1."""
    at_once = max(1, PIXELS_A_DECODE // (64 * latents.shape[-1] * latents.shape[-2]))
    parts = torch.split((latents / VAE_SCALE).to(model.dtype), at_once)
    return torch.cat([model.vae.decode(part, return_dict=False)[0].float() for part in parts])


def to_pictures(pixels: Tensor, shots: Sequence[Shot], model: StableDiffusion) -> list[Image.Image]:
    """Pixels to 8 bits, cut off and not rounded, as A1111 does. Raises ModelError for NaN."""
    for shot, picture in zip(shots, pixels, strict=True):
        if not torch.isfinite(picture).all():
            raise ModelError(
                f"{model.path or 'the model'} drew NaN for {shot.prompt[:80]!r}, seed {shot.seed}",
                "finite pixels",
                "Use precision fp32, a smaller CFG scale and weights, or another VAE or checkpoint.",
            )
    levels = (((pixels + 1) / 2).clamp(0, 1) * 255).to(torch.uint8).permute(0, 2, 3, 1)
    return [Image.fromarray(picture) for picture in levels.cpu().numpy()]


def _forget(cache: dict[Any, Any]) -> None:
    if len(cache) >= PROMPTS_KEPT:
        cache.clear()
