"""The denoising loss of one batch: what is predicted, how far off it is, and how timesteps count.

Weightings and targets follow the papers named; huber's schedules kohya-ss/sd-scripts, library/train_util.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aid.errors import SettingsError
from aid.sd.model.architecture import Architecture, Prediction
from aid.sd.sampling.noise import STEPS, alphas_cumprod
from aid.train.settings import LossSettings
from aid.train.step.noising import Noised

MOST = 100  # times the mean that a timestep may count
SNR_CEILING = 1000.0  # of the debiased weighting: where almost nothing is left to predict

Weighting = Callable[[Tensor, float, Prediction], Tensor]
Target = Callable[[Tensor, Tensor, Tensor], Tensor]
Distance = Callable[[Tensor, Tensor, Tensor], Tensor]
Schedule = Callable[[Tensor, Tensor, float], Tensor]


def uniform(snr: Tensor, gamma: float, prediction: Prediction = "epsilon") -> Tensor:
    """Every timestep counts the same (Ho et al. 2020, L_simple)."""
    return torch.ones_like(snr)


def min_snr(snr: Tensor, gamma: float, prediction: Prediction = "epsilon") -> Tensor:
    """min(SNR, gamma) / SNR, for v / (SNR + 1) (Hang et al. 2023)."""
    return snr.clamp(max=gamma) / (snr if prediction == "epsilon" else snr + 1)


def debiased(snr: Tensor, gamma: float, prediction: Prediction = "epsilon") -> Tensor:
    """1 / sqrt(SNR) (Yu et al. 2023), for v 1 / (SNR + 1)."""
    snr = snr.clamp(max=SNR_CEILING)
    return snr.rsqrt() if prediction == "epsilon" else 1 / (snr + 1)


WEIGHTINGS: dict[str, Weighting] = {"uniform": uniform, "min_snr": min_snr, "debiased": debiased}


def noise_target(latents: Tensor, noise: Tensor, ᾱ: Tensor) -> Tensor:
    """ε itself (Ho et al. 2020)."""
    return noise


def velocity_target(latents: Tensor, noise: Tensor, ᾱ: Tensor) -> Tensor:
    """v = √ᾱ ε - √(1 - ᾱ) x₀ (Salimans and Ho 2022)."""
    return ᾱ.sqrt() * noise - (1 - ᾱ).sqrt() * latents


TARGETS: dict[Prediction, Target] = {"epsilon": noise_target, "v": velocity_target}


def l2(predicted: Tensor, target: Tensor, c: Tensor) -> Tensor:
    return (predicted - target).square()


def smooth_l1(predicted: Tensor, target: Tensor, c: Tensor) -> Tensor:
    """2 (√(d² + c²) - c): pseudo-Huber with slope 2 far out."""
    return 2 * (((predicted - target).square() + c * c).sqrt() - c)


def huber(predicted: Tensor, target: Tensor, c: Tensor) -> Tensor:
    """2c (√(d² + c²) - c): pseudo-Huber that is d² close by."""
    return c * smooth_l1(predicted, target, c)


DISTANCES: dict[str, Distance] = {"l2": l2, "huber": huber, "smooth_l1": smooth_l1}


def by_snr(t: Tensor, sigma: Tensor, c: float) -> Tensor:
    return (1 - c) / (1 + sigma) ** 2 + c


def by_exponent(t: Tensor, sigma: Tensor, c: float) -> Tensor:
    return torch.exp(t * (math.log(c) / STEPS))


def constant(t: Tensor, sigma: Tensor, c: float) -> Tensor:
    return torch.full_like(sigma, c)


SCHEDULES: dict[str, Schedule] = {"snr": by_snr, "exponential": by_exponent, "constant": constant}


@dataclass(frozen=True)
class Condition:
    """What the U-Net is told beside the latents: `context` [b, n, width], and SDXL's vectors."""

    context: Tensor
    added: dict[str, Tensor] | None = None


class Diffusion:
    """A model's noise schedule on one device, and the loss under it: what hangs on the timestep alone, [1000]
    each. Raises SettingsError for a weighting that pure noise would have almost all of."""

    def __init__(self, device: torch.device, architecture: Architecture, settings: LossSettings) -> None:
        ᾱ = alphas_cumprod(architecture.zero_terminal_snr)
        sigma, prediction = ((1 - ᾱ) / ᾱ).sqrt(), architecture.prediction
        c = SCHEDULES[settings.huber_schedule](torch.arange(STEPS), sigma, settings.huber_c)
        weights = WEIGHTINGS[settings.weighting](ᾱ / (1 - ᾱ), settings.snr_gamma, prediction)
        if weights[-1] > MOST * weights.mean():
            raise SettingsError(
                f"`weighting` = {settings.weighting} counts pure noise {weights[-1]:.0f} fold",
                "min_snr or uniform, where a model predicts noise and has a zero terminal SNR",
            )
        self.alphas, self.c, self.weights = ᾱ.to(device), c.to(device), weights.to(device)
        self.target, self.distance = TARGETS[prediction], DISTANCES[settings.distance]

    def add_noise(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t = sqrt(alpha_t) x_0 + sqrt(1 - alpha_t) eps, [b, 4, h/8, w/8]."""
        alpha = self.alphas[t][:, None, None, None]
        noised: Tensor = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        return noised

    def losses(self, unet: Any, noised: Noised, condition: Condition) -> Tensor:
        """One weighted mean distance a picture, [b]."""
        x = self.add_noise(noised.latents, noised.shown, noised.t)
        predicted = unet(x, noised.t, condition.context, added_cond_kwargs=condition.added).sample.float()
        ᾱ, c = (table[noised.t][:, None, None, None] for table in (self.alphas, self.c))
        distances = self.distance(predicted, self.target(noised.latents, noised.noise, ᾱ), c)
        if noised.mask is not None:
            distances = distances * noised.mask
        weighted: Tensor = distances.mean((1, 2, 3)) * self.weights[noised.t]
        return weighted
