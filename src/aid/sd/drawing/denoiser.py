"""The U-Net as a denoiser: (x, σ) -> the clean latent that it expects, guided by the shots' prompts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import inf
from typing import NamedTuple

import torch
from torch import Tensor

from aid.core.shot import Shot
from aid.sd.drawing.decoding import FACTOR
from aid.sd.drawing.shot_text import Guide, stack
from aid.sd.model.checkpoint import StableDiffusion
from aid.sd.prompt.text import Conditioning, size_ids
from aid.sd.sampling.guidance import guide, guide_rescaled, is_guided
from aid.sd.sampling.noise import Levels, input_scale, levels, to_denoised
from aid.sd.sampling.samplers import TRAITS, Denoise

INPUTS_KEPT = 4  # conditionings of a batch
LEVELS_KEPT = 1024
LATENT_CHANNELS = 4


class Inputs(NamedTuple):
    """What the U-Net is given at a call, for one or several sides."""

    x: Tensor
    """[sides * b, 4 or 9, h/8, w/8], of the model's type, the channels last."""
    latents: Tensor
    """Where in `x` the scaled latents go at each call, [sides, b, 4, h/8, w/8]."""
    context: Tensor
    added: dict[str, Tensor] | None


class Denoiser:
    """D = u + s(c - u) on the denoised latents (Ho & Salimans 2022), as A1111 combines them; with parts
    joined by AND, c = u + Σ w (c_i - u) (Liu et al. 2022).

    `shots` are of one kind (`plan_batches`), `size` their width and height in this pass. All sides go
    through the U-Net in one batch where they are of one length. `shown` is what an inpainting model gets
    beside each latent, [1, 5, h/8, w/8].
    """

    def __init__(
        self,
        model: StableDiffusion,
        shots: Sequence[Shot],
        guides: Sequence[Guide],
        sampler: str,
        size: tuple[int, int],
        shown: Tensor | None = None,
    ) -> None:
        first = shots[0]
        self.model, self.shots, self.guides, self.size, self.shown = model, shots, guides, size, shown
        self.levels = levels_of(model, first)
        self.stride = TRAITS[sampler].stride
        self.guided = first.cfg_scale != 1
        self.composed = guides[0].words.composed
        self.rescale = first.cfg_rescale
        self.low, self.high = first.cfg_sigmas or (0.0, inf)
        self.scale = self._column([shot.cfg_scale for shot in shots])
        self.weights = [part.weight for part in guides[0].words.parts]
        self.calls = 0
        self.texts = tuple(one.at(0) for one in guides)
        self.edited = any(len(part.schedule) > 1 for one in guides for part, _ in one.sides)
        self._inputs: dict[tuple[object, ...], list[Inputs]] = {}

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        guided = self.guided and is_guided(sigma, self.low, self.high)
        sides = self._denoised(x, sigma, guided or self.composed)
        self.calls += 1
        if not (guided or self.composed):
            return sides[0]
        *parts, u = sides
        c = self._compose(parts, u) if self.composed else parts[0]
        if not guided:
            return c
        if self.rescale:
            return guide_rescaled(u, c, x, sigma, self.scale, self.rescale)
        return guide(u, c, self.scale)

    def _compose(self, parts: Sequence[Tensor], u: Tensor) -> Tensor:
        c = u
        for part, weight in zip(parts, self.weights, strict=True):
            c = c + weight * (part - u)
        return c

    def _denoised(self, x: Tensor, sigma: Tensor, with_negative: bool) -> list[Tensor]:
        """The clean latent each side expects: the parts, then the negative prompt."""
        t, scale = _at(self.levels, sigma.item(), self.stride)
        prediction = self.model.architecture.prediction
        made: list[Tensor] = []
        for one in self._inputs_of(with_negative):
            torch.mul(x.expand_as(one.latents), scale, out=one.latents)
            output: Tensor = self.model.unet(
                one.x, t, one.context, added_cond_kwargs=one.added, return_dict=False
            )[0]
            output = output.float().contiguous()  # laid out as the latents are
            made += to_denoised(prediction, x, output.view(one.latents.shape), sigma).unbind()
        return made

    def _inputs_of(self, with_negative: bool) -> list[Inputs]:
        """What the U-Net is given at this call, in as few batches as lengths allow: the same tensors as
        long as the texts are the same, so that attention knows them again."""
        texts = tuple(one.at(self.calls) for one in self.guides) if self.edited else self.texts
        key = (texts, with_negative)
        if key not in self._inputs:
            if len(self._inputs) == INPUTS_KEPT:
                self._inputs.clear()
            count = len(self.weights) + with_negative
            sides = [
                stack([one.side(number, at[number]) for one, at in zip(self.guides, texts, strict=True)])
                for number in range(count)
            ]
            self._inputs[key] = [self._laid_out(joined) for joined in _joined(sides)]
        return self._inputs[key]

    def _laid_out(self, conditioning: Conditioning) -> Inputs:
        rows, (width, height) = len(conditioning.context), self.size
        size = height // FACTOR, width // FACTOR
        channels = LATENT_CHANNELS + (0 if self.shown is None else self.shown.shape[1])
        x = torch.empty(
            (rows, channels, *size), dtype=self.model.dtype, device=self.model.device,
            memory_format=torch.channels_last,
        )  # fmt: skip
        if self.shown is not None:
            x[:, LATENT_CHANNELS:] = self.shown
        latents = x[:, :LATENT_CHANNELS].view(-1, len(self.shots), LATENT_CHANNELS, *size)
        return Inputs(x, latents, conditioning.context, self._added(conditioning))

    def _added(self, conditioning: Conditioning) -> dict[str, Tensor] | None:
        """SDXL's vector: the pooled text and the picture's sizes."""
        if conditioning.pooled is None:
            return None
        size = self.size[1], self.size[0]
        ids = torch.tensor([size_ids(size, (0, 0), size)] * len(conditioning.pooled))
        return {"text_embeds": conditioning.pooled, "time_ids": ids.to(conditioning.pooled.device)}

    def _column(self, values: Sequence[float]) -> Tensor:
        """One number a picture, as latents are multiplied by it."""
        return torch.tensor(values, device=self.model.device).reshape(-1, 1, 1, 1)


@lru_cache(LEVELS_KEPT)
def _at(levels: Levels, sigma: float, stride: int) -> tuple[Tensor, float]:
    """The t of a level, and what x is multiplied by there: found once for all pictures of a course."""
    with torch.inference_mode(False):  # it outlives the first caller's inference mode
        level = torch.tensor(sigma)
        return levels.sigma_to_t(level, stride), input_scale(level).item()


def levels_of(model: StableDiffusion, shot: Shot) -> Levels:
    return levels(model.architecture.zero_terminal_snr, shot.downcast_alphas)


def keep_outside(denoise: Denoise, latent: Tensor, mask: Tensor) -> Denoise:
    """The denoiser with `latent` wherever `mask` is 0: inpainting as A1111 does it with k-diffusion's
    samplers (its DDIM and UniPC blend the noisy latent instead)."""

    def inside(x: Tensor, sigma: Tensor) -> Tensor:
        return latent * (1 - mask) + mask * denoise(x, sigma)

    return inside


def _joined(sides: Sequence[Conditioning]) -> list[Conditioning]:
    """All sides in one batch if they are of one length; otherwise the parts, and the negative prompt."""
    if len({one.context.shape for one in sides}) == 1:
        return [_cat(sides)]
    return [_cat(sides[:-1]), sides[-1]]


def _cat(sides: Sequence[Conditioning]) -> Conditioning:
    if len(sides) == 1:
        return sides[0]
    pooled = [side.pooled for side in sides if side.pooled is not None]
    return Conditioning(torch.cat([side.context for side in sides]), torch.cat(pooled) if pooled else None)
