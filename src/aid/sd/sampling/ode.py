"""Samplers of the probability-flow ODE: no noise is added, except by churn where it is asked for.

Each matches the k-diffusion function (Crowson 2022) or other source that it names.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import expm1, factorial, inf, log
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from aid.sd.sampling.step import Denoise, Noise, OnStep, churned, slope


def euler(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise,
    on_step: OnStep,
    *,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = inf,
    s_noise: float = 1.0,
) -> Tensor:
    """Euler's method (Karras et al. 2022, algorithm 2 without its second half)."""
    rate = s_churn / (len(sigmas) - 1)
    for sigma, following in pairwise(sigmas):
        x, sigma = churned(x, sigma, noise, rate, s_tmin, s_tmax, s_noise)
        x = x + slope(x, denoise(x, sigma), sigma) * (following - sigma)
        on_step()
    return x


def heun(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise,
    on_step: OnStep,
    *,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = inf,
    s_noise: float = 1.0,
) -> Tensor:
    """Heun's method (Karras et al. 2022, algorithm 2): two evaluations a step, but one for the last."""
    rate = s_churn / (len(sigmas) - 1)
    for sigma, following in pairwise(sigmas):
        x, sigma = churned(x, sigma, noise, rate, s_tmin, s_tmax, s_noise)
        d = slope(x, denoise(x, sigma), sigma)
        if following > 0:
            ahead = x + d * (following - sigma)
            d = (d + slope(ahead, denoise(ahead, following), following)) / 2
        x = x + d * (following - sigma)
        on_step()
    return x


def dpm_2(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise,
    on_step: OnStep,
    *,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = inf,
    s_noise: float = 1.0,
) -> Tensor:
    """DPM-Solver-2 (Lu et al. 2022): the slope at the geometric middle of each step."""
    rate = s_churn / (len(sigmas) - 1)
    for sigma, following in pairwise(sigmas):
        x, sigma = churned(x, sigma, noise, rate, s_tmin, s_tmax, s_noise)
        x = midpoint_step(denoise, x, sigma, following)
        on_step()
    return x


def midpoint_step(denoise: Denoise, x: Tensor, sigma: Tensor, down: Tensor) -> Tensor:
    """One step of DPM-Solver-2 from σ to `down`; Euler's where `down` is 0."""
    d = slope(x, denoise(x, sigma), sigma)
    if down > 0:
        middle = sigma.log().lerp(down.log(), 0.5).exp()
        halfway = x + d * (middle - sigma)
        d = slope(halfway, denoise(halfway, middle), middle)
    return x + d * (down - sigma)


def lms(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, on_step: OnStep, *, order: int = 4
) -> Tensor:
    """Linear multistep, Adams-Bashforth over uneven levels (Liu et al. 2022, PNDM; k-diffusion's LMS)."""
    levels = sigmas.tolist()
    slopes: list[Tensor] = []
    for step, sigma in enumerate(sigmas[:-1]):
        slopes = [slope(x, denoise(x, sigma), sigma), *slopes[: order - 1]]
        weights = adams_bashforth(levels[max(0, step - order + 1) : step + 1][::-1], levels[step + 1])
        x = x + sum(weight * d for weight, d in zip(weights, slopes, strict=True))
        on_step()
    return x


def adams_bashforth(known: Sequence[float], end: float) -> list[float]:
    """Each known slope's weight in the integral from `known[0]`, the latest, to `end`: that of its Lagrange
    polynomial, which Gauss-Legendre quadrature of as many points integrates exactly."""
    points, weights = np.polynomial.legendre.leggauss(len(known))
    half = (end - known[0]) / 2
    at = known[0] + half * (points + 1)
    basis = [
        np.prod([(at - other) / (this - other) for k, other in enumerate(known) if k != j], axis=0)
        for j, this in enumerate(known)
    ]
    return [float(half * np.sum(weights * values)) for values in basis]


def dpm_plus_plus_2m(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, on_step: OnStep) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2) in λ = -log σ."""
    before: Tensor | None = None
    h_before = sigmas[0]
    for sigma, following in pairwise(sigmas):
        denoised = denoise(x, sigma)
        h = sigma.log() - following.log()
        estimate = denoised
        if before is not None and following > 0:
            half = h / (2 * h_before)
            estimate = (1 + half) * denoised - half * before
        x = following / sigma * x - (-h).expm1() * estimate
        before, h_before = denoised, h
        on_step()
    return x


def unipc(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise,
    on_step: OnStep,
    *,
    order: int = 3,
    solver: Literal["bh1", "bh2"] = "bh1",
    lower_order_final: bool = True,
) -> Tensor:
    """UniPC, a multistep predictor and corrector on the denoised latent (Zhao et al. 2023, arXiv 2302.04867).

    Levels may end above 0, as A1111's do: the latent goes back to the variance-preserving scale.
    """
    lambdas = [-log(sigma) if sigma > 0 else inf for sigma in sigmas.tolist()]
    steps = len(lambdas) - 1
    past = [denoise(x, sigmas[0])] if steps else []
    for step in range(1, steps + 1):
        this_order = min(order, step, steps + 1 - step if lower_order_final else order)
        if lambdas[step] == inf:
            this_order = 1
        known = lambdas[step - this_order : step][::-1]
        update = UniPCStep(x, past[:this_order], known, lambdas[step], solver)
        x = update.predict()
        if step < steps:
            ahead = denoise(x, sigmas[step])
            x = update.correct(ahead)
            past = [ahead, *past[: order - 1]]
        on_step()
    return x / (1 + sigmas[-1] ** 2) ** 0.5


class UniPCStep:
    """One step of UniPC's B(h) form (Zhao et al. 2023, algorithms 5 to 8), from `known[0]` to `end` in λ.

    `past` holds the denoised latents at `known`, the latest first; their number is the order.
    """

    def __init__(
        self, x: Tensor, past: Sequence[Tensor], known: Sequence[float], end: float, solver: str
    ) -> None:
        self.latest, self.order = past[0], len(past)
        h = end - known[0]
        ratios = [(before - known[0]) / h for before in known[1:]]
        self.differences = [(d - self.latest) / r for d, r in zip(past[1:], ratios, strict=True)]
        self.ratios = np.array([*ratios, 1.0])
        self.unchanged = -expm1(-h)
        self.plain = x * (1 - self.unchanged) + self.latest * self.unchanged
        self.scale = -h if solver == "bh1" else expm1(-h)
        self.moments = _moments(-h, self.order) / self.scale if h < inf else np.zeros(self.order)

    def predict(self) -> Tensor:
        """x at `end`, from the past alone."""
        if self.order == 1:
            return self.plain
        weights = [0.5] if self.order == 2 else self._solve(self.order - 1)
        return self._corrected(self.differences, weights)

    def correct(self, ahead: Tensor) -> Tensor:
        """x at `end`, once `ahead` is the denoised latent of what was predicted."""
        weights = [0.5] if self.order == 1 else self._solve(self.order)
        return self._corrected([*self.differences, ahead - self.latest], weights)

    def _corrected(self, differences: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        total = sum((w * d for w, d in zip(weights, differences, strict=True)), torch.zeros(()))
        return self.plain - self.scale * total

    def _solve(self, size: int) -> list[float]:
        powers = np.vander(self.ratios[:size], size, increasing=True).T
        solved: list[float] = np.linalg.solve(powers, self.moments[:size]).tolist()
        return solved


def _moments(h: float, order: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """k! h φ_{k+1}(h) for k = 1 to order, where φ are the functions of exponential integrators."""
    h_phi, moments = expm1(h), []
    for k in range(1, order + 1):
        h_phi = h_phi / h - 1 / factorial(k)
        moments.append(h_phi * factorial(k))
    return np.array(moments)
