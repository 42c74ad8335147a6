"""A model's noise levels, and what its prediction says of the clean latent.

Source: LDM's linear-in-root schedule (Rombach et al. 2022), the same in SD1, SD2 and SDXL; k-diffusion
external.py for the interpolation between its 1000 levels and for the predictions. `t` is fractional: 0 is
almost clean, 999 almost noise.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Literal, Self

import torch
from torch import Tensor

STEPS = 1000
BETA_START, BETA_END = 0.00085, 0.012
LAST_ALPHA = 4.8973451890853435e-08  # zero, but for σ to be a number: A1111's, ComfyUI's

Prediction = Literal["epsilon", "v"]


def alphas_cumprod(zero_terminal: bool = False, downcast: bool = False) -> Tensor:
    """ᾱ_t, float32 [1000], computed in float64 as LDM does.

    zero_terminal: √ᾱ shifted to end at 0 and scaled to begin as before (Lin et al. 2023, arXiv 2305.08891,
    algorithm 1), its last then set to 4.897e-8. downcast: ᾱ rounded to half precision first, as A1111 did
    before v1.8 (1.7.0-225) for models in half precision ("Downcast alphas_cumprod": True).
    """
    betas = torch.linspace(BETA_START**0.5, BETA_END**0.5, STEPS, dtype=torch.float64) ** 2
    ᾱ = torch.cumprod(1 - betas, dim=0).float()
    if downcast:
        ᾱ = ᾱ.half().float()
    if zero_terminal:
        root = ᾱ.sqrt()
        ᾱ = ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2
        ᾱ[-1] = LAST_ALPHA
    return ᾱ


@dataclass(frozen=True, eq=False)
class Levels:
    """The σ that a model was trained on, ascending. Tensors given and returned are on the CPU."""

    sigmas: Tensor
    """float32 [levels]"""
    log_sigmas: Tensor
    sigma_min: float
    sigma_max: float
    """The ends of a schedule. They are those of the levels unless narrowed with `between`."""

    def t_to_sigma(self, t: Tensor) -> Tensor:
        """σ at fractional t, log σ interpolated linearly between levels."""
        low, high, w = t.floor().long(), t.ceil().long(), t.frac()
        return ((1 - w) * self.log_sigmas[low] + w * self.log_sigmas[high]).exp()

    def sigma_to_t(self, sigma: Tensor, stride: int = 1) -> Tensor:
        """The fractional t whose σ this is, within [0, levels - 1]. A `stride` above 1: the nearest of
        t = stride - 1, 2 stride - 1, ..., which are all that an LCM was trained on."""
        log_sigma = sigma.log()
        if stride > 1:
            kept = self.log_sigmas[stride - 1 :: stride]
            nearest = (log_sigma.unsqueeze(-1) - kept).abs().argmin(dim=-1)
            return (nearest * stride + stride - 1).float()
        low = (torch.searchsorted(self.log_sigmas, log_sigma, right=True) - 1).clamp(0, self.count - 2)
        w = (self.log_sigmas[low] - log_sigma) / (self.log_sigmas[low] - self.log_sigmas[low + 1])
        w = w.clamp(0, 1)
        return (1 - w) * low + w * (low + 1)

    @property
    def count(self) -> int:
        return len(self.log_sigmas)

    def every(self, stride: int) -> Self:
        """The levels t = stride - 1, 2 stride - 1, ... alone."""
        kept = self.sigmas[stride - 1 :: stride]
        return replace(self, sigmas=kept, log_sigmas=kept.log(), sigma_min=kept[0].item())

    def between(self, sigma_min: float, sigma_max: float) -> Self:
        """The same levels, for schedules with other ends: A1111's "Schedule min/max sigma"; its
        `use_old_karras_scheduler_sigmas` is 0.1 to 10."""
        return replace(self, sigma_min=sigma_min, sigma_max=sigma_max)


@cache
def levels(zero_terminal: bool = False, downcast: bool = False) -> Levels:
    """SD's 1000 levels: σ_t = √((1 - ᾱ_t)/ᾱ_t), 0.0291675 to 14.614643; with zero terminal SNR to 4518.8;
    downcast 0.031265 to 14.61234."""
    with torch.inference_mode(False):  # they outlive the first caller's inference mode
        ᾱ = alphas_cumprod(zero_terminal, downcast)
        sigmas = ((1 - ᾱ) / ᾱ) ** 0.5
        return Levels(sigmas, sigmas.log(), sigmas[0].item(), sigmas[-1].item())


def input_scale(sigma: Tensor) -> Tensor:
    """What x is multiplied by to be shown to the U-Net at unit variance: 1/√(σ² + 1)."""
    return 1 / (sigma**2 + 1) ** 0.5


def to_denoised(prediction: Prediction, x: Tensor, output: Tensor, sigma: Tensor) -> Tensor:
    """The clean latent, from the U-Net's `output` for `x * input_scale(sigma)`.

    ε: x - σε. v: x/(σ² + 1) - σv/√(σ² + 1) (Salimans and Ho 2022, appendix D).
    """
    if prediction == "epsilon":
        return x - output * sigma
    return x * (1 / (sigma**2 + 1)) - output * (sigma / (sigma**2 + 1) ** 0.5)
