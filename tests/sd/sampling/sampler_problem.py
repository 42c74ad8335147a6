"""Denoisers whose answers are known in closed form; shared by tests and by benchmarks/samplers.py.

What is recorded of a peer is computed in float64, so that another processor's logarithms and its order of
adding up don't show in the digits that are compared.
"""

from __future__ import annotations

import torch
from torch import Tensor

from aid.sd.sampling.course import Course
from aid.sd.sampling.random import Generator, PictureNoise

MEANS, WEIGHTS, SPREAD = (-1.0, 0.3, 1.2), (0.5, 0.2, 0.3), 0.25
SEEDS, SHAPE = (5, 6), (4, 2, 2)
GAUSSIAN = 0.7


def mixture(x: Tensor, sigma: Tensor) -> Tensor:
    """E[clean | x] if every element of the clean latent came from a mixture of three Gaussians."""
    means = torch.tensor(MEANS, dtype=x.dtype)
    variance = SPREAD**2 + sigma.reshape(-1)[0].to(x.dtype) ** 2
    distance = x.unsqueeze(-1) - means
    logits = torch.tensor(WEIGHTS, dtype=x.dtype).log() - distance**2 / (2 * variance)
    return (logits.softmax(-1) * (means + SPREAD**2 / variance * distance)).sum(-1)


def gaussian(x: Tensor, sigma: Tensor) -> Tensor:
    """E[clean | x] for Gaussian data of standard deviation s: x s²/(s² + σ²)."""
    return x * GAUSSIAN**2 / (GAUSSIAN**2 + sigma**2)


def gaussian_flow(x: Tensor, start: float, end: float) -> Tensor:
    """The exact solution of the probability-flow ODE for `gaussian`: x √((s² + end²)/(s² + start²))."""
    return x * ((GAUSSIAN**2 + end**2) / (GAUSSIAN**2 + start**2)) ** 0.5


def exact_course(steps: int) -> Course:
    """SD's range of levels in float64, evenly in log σ, then 0; rounded, hence the same everywhere."""
    sigmas = torch.logspace(3.87, -5.1, steps, base=2, dtype=torch.float64).round(decimals=4)
    return Course(torch.cat([sigmas, sigmas.new_zeros(1)]), sigmas[0], sigmas[-1], sigmas[0])


class ExactNoise(PictureNoise):
    """A picture's noise drawn in float64, as torchsde draws it for latents in float64."""

    def _generator(self, seed: int) -> Generator:
        generator = torch.Generator().manual_seed(seed)
        return lambda shape: torch.randn(shape, generator=generator, dtype=torch.float64)
