"""Denoisers whose answers are known in closed form; shared by tests and by benchmarks/samplers.py."""

from __future__ import annotations

import torch
from torch import Tensor

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
