"""The denoising loss of one batch, and how timesteps count in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from aid.sd.noise import alphas_cumprod

Weighting = Callable[[Tensor, float], Tensor]


def uniform(snr: Tensor, gamma: float) -> Tensor:
    """Every timestep counts the same (Ho et al. 2020, L_simple)."""
    return torch.ones_like(snr)


def min_snr(snr: Tensor, gamma: float) -> Tensor:
    """min(SNR, gamma) / SNR for epsilon prediction (Hang et al. 2023)."""
    return snr.clamp(max=gamma) / snr


WEIGHTINGS: dict[str, Weighting] = {"uniform": uniform, "min_snr": min_snr}


class Diffusion:
    """SD1's noise schedule on one device, and the epsilon loss under it."""

    def __init__(self, device: torch.device, weighting: str, gamma: float) -> None:
        self.alphas = alphas_cumprod().to(device)
        self.weight, self.gamma = WEIGHTINGS[weighting], gamma

    def add_noise(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t = sqrt(alpha_t) x_0 + sqrt(1 - alpha_t) eps, [b, 4, h/8, w/8]."""
        alpha = self.alphas[t][:, None, None, None]
        noised: Tensor = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        return noised

    def losses(self, unet: Any, latents: Tensor, noise: Tensor, t: Tensor, text: Tensor) -> Tensor:
        """One weighted squared error a picture, [b]."""
        predicted = unet(self.add_noise(latents, noise, t), t, text).sample
        snr = self.alphas[t] / (1 - self.alphas[t])
        squares = (predicted.float() - noise).square().mean((1, 2, 3))
        weighted: Tensor = squares * self.weight(snr, self.gamma)
        return weighted
