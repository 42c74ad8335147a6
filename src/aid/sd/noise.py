"""SD1's noise schedule, and the noise levels that a sampler visits.

Source: LDM's linear-in-root schedule (Rombach et al. 2022); k-diffusion external.py for the
interpolation between its 1000 levels. `t` is fractional: 0 is almost clean, 999 almost noise.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

STEPS = 1000
BETA_START, BETA_END = 0.00085, 0.012


def alphas_cumprod() -> Tensor:
    """ᾱ_t, float32 [1000], computed in float64 as LDM does."""
    betas = torch.linspace(BETA_START**0.5, BETA_END**0.5, STEPS, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, dim=0).float()


def all_sigmas() -> Tensor:
    """σ_t = √((1 - ᾱ_t)/ᾱ_t) of the 1000 levels, float32, ascending: 0.0291675 to 14.614643."""
    ᾱ = alphas_cumprod()
    return ((1 - ᾱ) / ᾱ) ** 0.5


def t_to_sigma(t: Tensor) -> Tensor:
    """σ at fractional t, log σ interpolated linearly between levels."""
    log_sigmas = _log_sigmas()
    low, high, w = t.floor().long(), t.ceil().long(), t.frac()
    return ((1 - w) * log_sigmas[low] + w * log_sigmas[high]).exp()


def sigma_to_t(sigma: Tensor) -> Tensor:
    """The fractional t whose σ this is, within [0, 999]."""
    log_sigmas, log_sigma = _log_sigmas(), sigma.log()
    low = (torch.searchsorted(log_sigmas, log_sigma, right=True) - 1).clamp(0, STEPS - 2)
    w = ((log_sigmas[low] - log_sigma) / (log_sigmas[low] - log_sigmas[low + 1])).clamp(0, 1)
    return (1 - w) * low + w * (low + 1)


def sigmas(steps: int) -> Tensor:
    """The σ that a sampler of `steps` steps visits, float32 [steps + 1], from 14.614643 down to 0.

    t falls linearly from 999 to 0: k-diffusion's get_sigmas, A1111's "Automatic" for Euler a.
    """
    t = torch.linspace(STEPS - 1, 0, steps)
    return torch.cat([t_to_sigma(t), torch.zeros(1)])


@cache
def _log_sigmas() -> Tensor:
    """A constant, needed at every step; an ordinary tensor even if first asked for in inference mode."""
    with torch.inference_mode(False):
        return all_sigmas().log()
