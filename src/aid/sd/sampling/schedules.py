"""Schedules by their A1111 names: which σ a sampler of so many steps visits.

Source: A1111 sd_schedulers.py; k-diffusion sampling.py; what each function names besides.
"""

from __future__ import annotations

from collections.abc import Callable
from math import atan, gamma, log
from typing import Concatenate

import numpy as np
import torch
from torch import Tensor

from aid.sd.sampling.noise import Levels

Schedule = Callable[Concatenate[int, Levels, ...], Tensor]
"""(steps, levels, **its own parameters) -> σ from high to low, float32 [steps + 1], the last 0 (KL Optimal
alone ends at the model's lowest; DDIM may make a step more)."""


def uniform(steps: int, levels: Levels) -> Tensor:
    """t falls linearly from the highest level to the lowest: k-diffusion's get_sigmas, mostly "Automatic"."""
    return _with_zero(levels.t_to_sigma(torch.linspace(levels.count - 1, 0, steps)))


def karras(steps: int, levels: Levels, *, rho: float = 7.0) -> Tensor:
    """σ^(1/ρ) falls linearly (Karras et al. 2022, equation 5)."""
    ramp = torch.linspace(0, 1, steps)
    low, high = levels.sigma_min ** (1 / rho), levels.sigma_max ** (1 / rho)
    return _with_zero((high + ramp * (low - high)) ** rho)


def exponential(steps: int, levels: Levels) -> Tensor:
    """log σ falls linearly."""
    return _with_zero(torch.linspace(log(levels.sigma_max), log(levels.sigma_min), steps).exp())


def polyexponential(steps: int, levels: Levels, *, rho: float = 1.0) -> Tensor:
    """log σ falls as a polynomial of degree ρ."""
    ramp = torch.linspace(1, 0, steps) ** rho
    low, high = log(levels.sigma_min), log(levels.sigma_max)
    return _with_zero(torch.exp(ramp * (high - low) + low))


def sgm_uniform(steps: int, levels: Levels) -> Tensor:
    """t falls linearly towards the lowest level, which is left out (Stability AI's generative-models)."""
    high, low = _ends(levels)
    return _with_zero(levels.t_to_sigma(torch.linspace(high, low, steps + 1)[:-1]))


def normal(steps: int, levels: Levels) -> Tensor:
    """ComfyUI's name for t that falls linearly between the schedule's ends."""
    return _with_zero(levels.t_to_sigma(torch.linspace(*_ends(levels), steps)))


def simple(steps: int, levels: Levels) -> Tensor:
    """Every (levels/steps)-th level, from the highest (ComfyUI)."""
    stride = levels.count / steps
    return _with_zero(torch.stack([levels.sigmas[-(1 + int(step * stride))] for step in range(steps)]))


def ddim_uniform(steps: int, levels: Levels) -> Tensor:
    """Levels 1, 1 + s, 1 + 2s, ..., s = levels/steps cut off (ComfyUI's "ddim_uniform", A1111's "DDIM")."""
    return _with_zero(levels.sigmas[1 :: max(levels.count // steps, 1)].flip(0))


def kl_optimal(steps: int, levels: Levels) -> Tensor:
    """arctan σ falls linearly (Sabour et al. 2024, Align Your Steps, theorem 3.1); ends at the lowest σ."""
    share = torch.arange(steps + 1) / steps
    return torch.tan(share * atan(levels.sigma_min) + (1 - share) * atan(levels.sigma_max))


def beta(steps: int, levels: Levels, *, alpha: float = 0.6, beta: float = 0.6) -> Tensor:
    """σ at even quantiles of a beta distribution (Lee et al. 2024, arXiv 2407.12173), scaled as A1111 does:
    linearly in σ."""
    shares = beta_quantile(1 - np.linspace(0, 1, steps), alpha, beta)
    sigmas = levels.sigma_min + shares * (levels.sigma_max - levels.sigma_min)
    return _with_zero(torch.from_numpy(sigmas).float())


SCHEDULES: dict[str, Schedule] = {
    "Uniform": uniform,
    "Karras": karras,
    "Exponential": exponential,
    "Polyexponential": polyexponential,
    "SGM Uniform": sgm_uniform,
    "KL Optimal": kl_optimal,
    "Simple": simple,
    "Normal": normal,
    "DDIM": ddim_uniform,
    "Beta": beta,
}


def ddim_levels(steps: int, levels: Levels) -> Tensor:
    """σ of timesteps 1, 1 + s, 1 + 2s, ..., s = levels/steps cut off, from high to low: the DDIM sampler's
    own, which ends at t = 1. At least `steps` levels, so `steps` - 1 steps or more, as in A1111."""
    t = torch.arange(0, levels.count, max(levels.count // steps, 1)) + 1
    return levels.sigmas[t.clamp(max=levels.count - 1)].flip(0)


def unipc_levels(steps: int, levels: Levels, highest: float | None = None) -> Tensor:
    """σ at even t from `highest`, by default the last, to 0, log ᾱ interpolated linearly: the UniPC sampler's
    own ("time_uniform" of Zhao et al. 2023), float32 [steps + 1]."""
    top = levels.count - 1
    log_alphas = -np.log1p(levels.sigmas.double().numpy() ** 2)
    t = np.linspace(top if highest is None else highest, 0, steps + 1)
    at = np.interp(t, np.arange(top + 1), log_alphas)
    return torch.from_numpy(np.sqrt(np.expm1(-at))).float()


def beta_quantile(share: np.ndarray, alpha: float, beta: float) -> np.ndarray:
    """x at which the regularised incomplete beta function reaches `share`, by bisection."""
    low, high = np.zeros_like(share), np.ones_like(share)
    for _ in range(60):
        middle = (low + high) / 2
        below = _beta_cumulative(middle, alpha, beta) < share
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return np.where(share >= 1, 1.0, np.where(share <= 0, 0.0, high))


def _beta_cumulative(x: np.ndarray, alpha: float, beta: float) -> np.ndarray:
    """The beta distribution's cumulative function, from the series below 1/2 and its mirror above."""
    mirrored = 1 - _beta_series(np.minimum(1 - x, 0.5), beta, alpha)
    return np.where(x <= 0.5, _beta_series(np.minimum(x, 0.5), alpha, beta), mirrored)


def _beta_series(x: np.ndarray, alpha: float, beta: float) -> np.ndarray:
    """I_x(α, β) = x^α/B(α, β) Σ (1 - β)_n xⁿ/(n! (α + n)) (Abramowitz and Stegun 26.5.4), for x <= 1/2."""
    total, term = np.zeros_like(x), np.ones_like(x)
    for n in range(60):
        total += term / (alpha + n)
        term = term * x * (n + 1 - beta) / (n + 1)
    return np.asarray(x**alpha * total * gamma(alpha + beta) / (gamma(alpha) * gamma(beta)))


def _ends(levels: Levels) -> tuple[float, float]:
    """The fractional t of the schedule's highest and lowest σ."""
    high, low = levels.sigma_to_t(torch.tensor([levels.sigma_max, levels.sigma_min])).tolist()
    return high, low


def _with_zero(sigmas: Tensor) -> Tensor:
    return torch.cat([sigmas, sigmas.new_zeros(1)])
