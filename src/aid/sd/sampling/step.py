"""What every sampler is made of: its signature, the slope of the ODE, churn and ancestral steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Concatenate, Protocol

import torch
from torch import Tensor

Denoise = Callable[[Tensor, Tensor], Tensor]
"""(x, σ) -> the model's estimate of the clean latent; σ is a scalar tensor on the CPU."""
OnStep = Callable[[], None]


class Noise(Protocol):
    """Standard normal noise of x's shape for the step from `sigma` down to `following`."""

    def __call__(self, sigma: Tensor, following: Tensor) -> Tensor: ...


Sampler = Callable[Concatenate[Denoise, Tensor, Tensor, Noise, OnStep, ...], Tensor]
"""(denoise, x, sigmas, noise, on_step, **its own parameters) -> the clean latent.

`x` starts as a latent with noise of standard deviation `sigmas[0]`; `sigmas`, on the CPU, fall and mostly
end with 0. `on_step` is called after each step.
"""


def slope(x: Tensor, denoised: Tensor, sigma: Tensor) -> Tensor:
    """dx/dσ of the probability-flow ODE (Karras et al. 2022, equation 3)."""
    return (x - denoised) / sigma


def ancestral_step(sigma: Tensor, following: Tensor, eta: float = 1.0) -> tuple[Tensor, Tensor]:
    """(σ to step down to, σ of the noise to add), so that their squares sum to `following`²; of any shape.

    `eta` 0 is the ODE, 1 as much noise as DDPM adds (Song et al. 2021, DDIM, equation 16).
    """
    up = torch.minimum(following, eta * (following**2 * (sigma**2 - following**2) / sigma**2) ** 0.5)
    return (following**2 - up**2) ** 0.5, up


def churned(
    x: Tensor, sigma: Tensor, noise: Noise, rate: float, s_tmin: float, s_tmax: float, s_noise: float
) -> tuple[Tensor, Tensor]:
    """x and σ after noise was added to raise σ (Karras et al. 2022, algorithm 2). `rate` is the churn of
    one step. Noise is drawn even at levels outside `s_tmin` to `s_tmax`, as k-diffusion does."""
    if rate <= 0:
        return x, sigma
    gamma = min(rate, 2**0.5 - 1) if s_tmin <= sigma <= s_tmax else 0.0
    raised = sigma * (gamma + 1)
    fresh = noise(sigma, raised) * s_noise
    return x + fresh * (raised**2 - sigma**2) ** 0.5, raised
