"""The U-Net as a denoiser: (x, σ) -> the clean latent that it expects, guided by the shots' prompts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import inf

import torch
from torch import Tensor

from aid.core.shot import Shot
from aid.sd.drawing.shot_text import Guide, stack
from aid.sd.model.checkpoint import StableDiffusion
from aid.sd.prompt.text import Conditioning, size_ids
from aid.sd.sampling.guidance import guide, guide_rescaled, is_guided
from aid.sd.sampling.noise import Levels, levels, scaled_input, to_denoised
from aid.sd.sampling.samplers import TRAITS, Denoise

INPUTS_KEPT = 4  # conditionings of a batch


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
        self._inputs: dict[tuple[object, ...], list[tuple[Conditioning, dict[str, Tensor] | None]]] = {}

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
        scaled, t = scaled_input(x, sigma), _t(self.levels, sigma.item(), self.stride)
        made: list[Tensor] = []
        for conditioning, added in self._conditionings(with_negative):
            times = len(conditioning.context) // len(x)
            repeated = torch.cat([scaled] * times) if times > 1 else scaled
            output = self._predict(repeated, t, conditioning.context, added)
            made += output.chunk(times)
        prediction = self.model.architecture.prediction
        return [to_denoised(prediction, x, output, sigma) for output in made]

    def _predict(self, x: Tensor, t: Tensor, context: Tensor, added: dict[str, Tensor] | None) -> Tensor:
        """The U-Net's output, float32."""
        if self.shown is not None:
            x = torch.cat([x, self.shown.expand(len(x), -1, -1, -1)], 1)
        x = x.to(dtype=self.model.dtype, memory_format=torch.channels_last)
        output: Tensor = self.model.unet(x, t, context, added_cond_kwargs=added, return_dict=False)[0]
        return output.float().contiguous()  # laid out as the latents are

    def _conditionings(self, with_negative: bool) -> list[tuple[Conditioning, dict[str, Tensor] | None]]:
        """What the U-Net is given at this call, in as few batches as lengths allow: the same tensors as
        long as the texts are the same, so that attention knows them again."""
        texts = tuple(one.at(self.calls) for one in self.guides)
        key = (texts, with_negative)
        if key not in self._inputs:
            if len(self._inputs) == INPUTS_KEPT:
                self._inputs.clear()
            count = len(self.weights) + with_negative
            sides = [
                stack([one.side(number, at[number]) for one, at in zip(self.guides, texts, strict=True)])
                for number in range(count)
            ]
            self._inputs[key] = [(joined, self._added(joined)) for joined in _joined(sides)]
        return self._inputs[key]

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


@lru_cache
def _t(levels: Levels, sigma: float, stride: int) -> Tensor:
    """Found once for all pictures of a course."""
    with torch.inference_mode(False):  # it outlives the first caller's inference mode
        return levels.sigma_to_t(torch.tensor(sigma), stride)


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
