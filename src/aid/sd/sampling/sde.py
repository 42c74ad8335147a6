"""Samplers that add noise as they go down: of the reverse SDE, ancestral ones, and consistency models'.

Each matches the k-diffusion function (Crowson 2022) or other source that it names. The levels for which
noise is asked are computed as there, to the last bit: a Brownian tree tells apart levels that differ by one.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from torch import Tensor

from aid.sd.sampling.ode import midpoint_step
from aid.sd.sampling.step import Denoise, Noise, OnStep, ancestral_step, slope


def euler_ancestral(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise,
    on_step: OnStep,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Tensor:
    """Euler steps that go further down than asked and add noise back up (k-diffusion; Song et al. 2021).
    The last step, to 0, draws no noise."""
    downs, ups = ancestral_step(sigmas[:-1], sigmas[1:], eta)
    steps, spreads = (downs - sigmas[:-1]).tolist(), (s_noise * ups).tolist()
    for (sigma, following), step, spread in zip(pairwise(sigmas), steps, spreads, strict=True):
        x = x + slope(x, denoise(x, sigma), sigma) * step
        if spread > 0:
            x = x + noise(sigma, following) * spread
        on_step()
    return x


def ddim(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, on_step: OnStep, *, eta: float = 0.0
) -> Tensor:
    """DDIM (Song et al. 2021, equation 12), which in σ = √(1/ᾱ - 1) is Euler's ancestral step.

    Levels may end above 0, as A1111's do: the latent goes back to the variance-preserving scale.
    """
    x = euler_ancestral(denoise, x, sigmas, noise, on_step, eta=eta)
    return x / (1 + sigmas[-1] ** 2) ** 0.5


def dpm_2_ancestral(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise,
    on_step: OnStep,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Tensor:
    """DPM-Solver-2 (Lu et al. 2022) with ancestral noise (k-diffusion)."""
    for sigma, following in pairwise(sigmas):
        down, up = ancestral_step(sigma, following, eta)
        x = midpoint_step(denoise, x, sigma, down)
        if up > 0:
            x = x + noise(sigma, following) * s_noise * up
        on_step()
    return x


def dpm_plus_plus_2s_ancestral(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise,
    on_step: OnStep,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Tensor:
    """DPM-Solver++(2S) (Lu et al. 2022, arXiv 2211.01095, algorithm 1) with ancestral noise."""
    for sigma, following in pairwise(sigmas):
        down, up = ancestral_step(sigma, following, eta)
        denoised = denoise(x, sigma)
        if down > 0:
            t, end = -sigma.log(), -down.log()
            h = end - t
            middle = (-(t + h / 2)).exp()
            halfway = middle / sigma * x - (-h / 2).expm1() * denoised
            x = down / sigma * x - (-h).expm1() * denoise(halfway, middle)
        else:
            x = x + slope(x, denoised, sigma) * (down - sigma)
        if up > 0:
            x = x + noise(sigma, following) * s_noise * up
        on_step()
    return x


def dpm_plus_plus_sde(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise,
    on_step: OnStep,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    r: float = 0.5,
) -> Tensor:
    """DPM-Solver++ for the SDE, single-step of second order (k-diffusion's, after Lu et al. 2022). `r` is
    where in λ = -log σ the second evaluation lies."""
    for sigma, following in pairwise(sigmas):
        denoised = denoise(x, sigma)
        if following > 0:
            t, end = -sigma.log(), -following.log()
            start, middle, finish = (-t).exp(), (-(t + (end - t) * r)).exp(), (-end).exp()
            halfway = _sde_step(x, denoised, start, middle, noise, eta, s_noise)
            share = 1 / (2 * r)
            estimate = (1 - share) * denoised + share * denoise(halfway, middle)
            x = _sde_step(x, estimate, start, finish, noise, eta, s_noise)
        else:
            x = x + slope(x, denoised, sigma) * (following - sigma)
        on_step()
    return x


def _sde_step(
    x: Tensor, denoised: Tensor, sigma: Tensor, following: Tensor, noise: Noise, eta: float, s_noise: float
) -> Tensor:
    down, up = ancestral_step(sigma, following, eta)
    x = down / sigma * x - (down.log() - sigma.log()).expm1() * denoised
    return x + noise(sigma, following) * s_noise * up if up > 0 else x


def dpm_plus_plus_2m_sde(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise,
    on_step: OnStep,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    solver: Literal["midpoint", "heun"] = "midpoint",
) -> Tensor:
    """DPM-Solver++(2M) for the SDE (k-diffusion's; SDE-DPM-Solver++ of Lu et al. 2022)."""
    before: Tensor | None = None
    h_before = sigmas[0]
    for sigma, following in pairwise(sigmas):
        denoised = denoise(x, sigma)
        if following > 0:
            h = sigma.log() - following.log()
            shrink = -(-h - eta * h).expm1()
            x = following / sigma * (-eta * h).exp() * x + shrink * denoised
            if before is not None:
                weight = 0.5 * shrink if solver == "midpoint" else 1 - shrink / (h + eta * h)
                x = x + weight * (h / h_before) * (denoised - before)
            x = _add_noise(x, h, sigma, following, noise, eta, s_noise)
            h_before = h
        else:
            x = denoised
        before = denoised
        on_step()
    return x


def dpm_plus_plus_2m_sde_heun(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise,
    on_step: OnStep,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Tensor:
    """DPM-Solver++(2M) for the SDE, its correction integrated exactly instead of by the midpoint."""
    return dpm_plus_plus_2m_sde(denoise, x, sigmas, noise, on_step, eta=eta, s_noise=s_noise, solver="heun")


def dpm_plus_plus_3m_sde(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise,
    on_step: OnStep,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Tensor:
    """DPM-Solver++(3M) for the SDE (k-diffusion's): the denoised latent as a parabola in λ = -log σ."""
    past: list[tuple[Tensor, Tensor]] = []  # (denoised, the step in λ that followed), the latest first
    for sigma, following in pairwise(sigmas):
        denoised = denoise(x, sigma)
        if following > 0:
            h = sigma.log() - following.log()
            wide = h * (eta + 1)
            x = (-wide).exp() * x - (-wide).expm1() * denoised
            phi_2 = (-wide).expm1() / wide + 1
            if len(past) == 2:
                r_0, r_1 = past[0][1] / h, past[1][1] / h
                d_0 = (denoised - past[0][0]) / r_0
                d_1 = (past[0][0] - past[1][0]) / r_1
                curve = (d_0 - d_1) / (r_0 + r_1)
                x = x + phi_2 * (d_0 + curve * r_0) - (phi_2 / wide - 0.5) * curve
            elif past:
                x = x + phi_2 * (denoised - past[0][0]) / (past[0][1] / h)
            x = _add_noise(x, h, sigma, following, noise, eta, s_noise)
            past = [(denoised, h), *past[:1]]
        else:
            x = denoised
        on_step()
    return x


def _add_noise(
    x: Tensor, h: Tensor, sigma: Tensor, following: Tensor, noise: Noise, eta: float, s_noise: float
) -> Tensor:
    """The noise of the exact solution of the linear SDE over a step h in λ."""
    if eta <= 0:
        return x
    return x + noise(sigma, following) * following * (-(-2 * eta * h).expm1()).sqrt() * s_noise


def lcm(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, on_step: OnStep) -> Tensor:
    """Latent consistency sampling (Luo et al. 2023, arXiv 2310.04378, algorithm 3): denoise, add noise.

    Its boundary condition c_skip x is left out: at its lowest level, t = 19, c_skip is 7e-6.
    """
    for sigma, following in pairwise(sigmas):
        x = denoise(x, sigma)
        if following > 0:
            x = x + following * noise(sigma, following)
        on_step()
    return x
