"""Samplers: pure functions from noise to a picture's latent. A new one is one function and one entry."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Protocol

from torch import Tensor

Denoise = Callable[[Tensor, Tensor], Tensor]
"""(x, σ) -> the model's estimate of the clean latent; σ is a scalar tensor."""
Noise = Callable[[], Tensor]
"""Fresh standard normal noise of x's shape."""
OnStep = Callable[[], None]


class Sampler(Protocol):
    """`x` starts as noise of standard deviation `sigmas[0]`; `sigmas` falls and ends with 0."""

    def __call__(
        self, denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, on_step: OnStep
    ) -> Tensor: ...


def euler(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, on_step: OnStep) -> Tensor:
    """Euler's method on the probability-flow ODE (Karras et al. 2022, algorithm 2 without churn)."""
    for sigma, following in pairwise(sigmas):
        d = (x - denoise(x, sigma)) / sigma
        x = x + d * (following - sigma)
        on_step()
    return x


def euler_ancestral(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, on_step: OnStep) -> Tensor:
    """Euler steps that go further down than asked and add noise back up (k-diffusion, Crowson 2022;
    ancestral sampling of Song et al. 2021). The last step, to 0, draws no noise."""
    for sigma, following in pairwise(sigmas):
        down, up = ancestral_step(sigma, following)
        d = (x - denoise(x, sigma)) / sigma
        x = x + d * (down - sigma)
        if following > 0:
            x = x + noise() * up
        on_step()
    return x


def ancestral_step(sigma: Tensor, following: Tensor) -> tuple[Tensor, Tensor]:
    """(σ to step down to, σ of the noise to add), so that their squares sum to `following`²."""
    up = (following**2 * (sigma**2 - following**2) / sigma**2) ** 0.5
    up = min(following, up)
    return (following**2 - up**2) ** 0.5, up


SAMPLERS: dict[str, Sampler] = {
    "Euler a": euler_ancestral,
    "Euler": euler,
}
