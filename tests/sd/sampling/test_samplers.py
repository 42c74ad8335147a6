"""Samplers against k-diffusion's recorded latents, diffusers' schedulers, and exact solutions."""

from __future__ import annotations

import json
from math import log2
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler, UniPCMultistepScheduler
from sampler_problem import SEEDS, SHAPE, ExactNoise, exact_course, gaussian, gaussian_flow, mixture
from torch import Tensor

from aid.sd.sampling.course import noise_for, plan_course
from aid.sd.sampling.noise import levels
from aid.sd.sampling.ode import adams_bashforth
from aid.sd.sampling.random import PictureNoise
from aid.sd.sampling.samplers import SAMPLERS, TRAITS

RECORDED = json.loads((Path(__file__).parent / "k_diffusion.json").read_text())
SD1: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def sample(name: str, steps: int, seeds: tuple[int, ...] = SEEDS, **own: Any) -> Tensor:
    course = plan_course(name, "Automatic", steps, levels())
    noise = PictureNoise(seeds, SHAPE)
    x = course.start(noise())
    return SAMPLERS[name](mixture, x, course.sigmas, noise_for(name, course, noise), lambda: None, **own)


def sample_exactly(name: str, steps: int, **own: Any) -> Tensor:
    """In float64, as the peer's latents were recorded."""
    course, noise = exact_course(steps), ExactNoise(SEEDS, SHAPE)
    x = course.start(noise())
    return SAMPLERS[name](mixture, x, course.sigmas, noise_for(name, course, noise), lambda: None, **own)


def far_from(ours: Tensor, theirs: list[float]) -> float:
    peer = torch.tensor(theirs, dtype=torch.float64).reshape(ours.shape)
    return ((ours - peer).abs().max() / peer.std()).item()


@pytest.mark.parametrize("steps", ["20", "32", "40"])
@pytest.mark.parametrize("name", list(RECORDED["latents"]))
def test_same_latents_as_k_diffusion(name: str, steps: str) -> None:
    assert far_from(sample_exactly(name, int(steps)), RECORDED["latents"][name][steps]) < 1e-12


@pytest.mark.parametrize(("name", "own", "latents"), RECORDED["variants"])
def test_own_parameters_as_in_k_diffusion(name: str, own: dict[str, float], latents: list[float]) -> None:
    assert far_from(sample_exactly(name, 20, **own), latents) < 1e-12
    assert far_from(sample_exactly(name, 20), latents) > 1e-3


class Preserving:
    """diffusers' variance-preserving view of the mixture: scaled x and t to ε."""

    def __init__(self, scheduler: Any) -> None:
        self.alphas = scheduler.alphas_cumprod.double()

    def sigma(self, t: Tensor) -> Tensor:
        return ((1 - self.alphas[t]) / self.alphas[t]) ** 0.5

    def epsilon(self, scaled: Tensor, t: Tensor) -> Tensor:
        sigma = self.sigma(t)
        x = scaled * (1 + sigma**2) ** 0.5
        return (x - mixture(x, sigma)) / sigma


def draws(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, *SHAPE, generator=generator, dtype=torch.float64) for _ in range(count)]


@pytest.mark.parametrize("eta", [0.0, 0.6])
def test_ddim_is_diffusers(eta: float) -> None:
    peer = DDIMScheduler(**SD1, clip_sample=False, set_alpha_to_one=True, timestep_spacing="leading")
    peer.set_timesteps(10)
    view, (first, *fresh) = Preserving(peer), draws(11)
    x = first
    for t, noise in zip(peer.timesteps, fresh, strict=True):
        x = peer.step(view.epsilon(x, t), t, x, eta=eta, variance_noise=noise if eta else None).prev_sample
    sigmas = torch.cat([view.sigma(peer.timesteps), torch.zeros(1)])
    start = first * (1 + sigmas[0] ** 2) ** 0.5
    supply = iter(fresh)
    ours = SAMPLERS["DDIM"](mixture, start, sigmas, lambda *_: next(supply), lambda: None, eta=eta)
    assert torch.allclose(ours, x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("solver", "last"), [("bh1", "sigma_min"), ("bh2", "sigma_min"), ("bh2", "zero")])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_is_diffusers(order: int, solver: str, last: str) -> None:
    peer = UniPCMultistepScheduler(
        **SD1, solver_order=order, solver_type=solver, final_sigmas_type=last, timestep_spacing="linspace"
    )
    peer.set_timesteps(12)
    view, (first,) = Preserving(peer), draws(1)
    x = first
    for t in peer.timesteps:
        x = peer.step(view.epsilon(x, t), t, x).prev_sample
    sigmas = torch.cat([view.sigma(peer.timesteps), peer.sigmas[-1:].double()])
    start = first * (1 + sigmas[0] ** 2) ** 0.5
    ours = SAMPLERS["UniPC"](
        mixture, start, sigmas, PictureNoise([1], SHAPE), lambda: None, order=order, solver=solver
    )
    assert torch.allclose(ours, x, rtol=2e-5, atol=2e-5)


def test_lcm_is_diffusers() -> None:
    peer = LCMScheduler(**SD1, clip_sample=False)
    peer.set_timesteps(4, original_inference_steps=50)
    view, (first, *fresh) = Preserving(peer), draws(4)
    sigmas = torch.cat([view.sigma(peer.timesteps), torch.zeros(1)])
    start = first * (1 + sigmas[0] ** 2) ** 0.5
    supply = iter(fresh)
    ours = SAMPLERS["LCM"](mixture, start, sigmas, lambda *_: next(supply), lambda: None)
    x = start
    for index, t in enumerate(peer.timesteps):
        scaled = x / (1 + view.sigma(t) ** 2) ** 0.5
        denoised = peer.step(view.epsilon(scaled, t), t, scaled).denoised
        x = denoised + sigmas[index + 1] * fresh[index] if index < 3 else denoised
    assert torch.allclose(ours, x, rtol=1e-5, atol=1e-5)


ORDERS: list[tuple[str, dict[str, Any], float]] = [
    ("Euler", {}, 1),
    ("DDIM", {}, 1),
    ("Euler a", {"eta": 0}, 1),
    ("Heun", {}, 2),
    ("DPM2", {}, 2),
    ("DPM2 a", {"eta": 0}, 2),
    ("DPM++ 2S a", {"eta": 0}, 2),
    ("DPM++ 2M", {}, 2),
    ("DPM++ SDE", {"eta": 0}, 2),
    ("DPM++ 2M SDE", {"eta": 0}, 2),
    ("DPM++ 2M SDE Heun", {"eta": 0}, 2),
    ("DPM++ 3M SDE", {"eta": 0}, 2),
    ("LMS", {"order": 2}, 2),
    ("LMS", {}, 2),
    ("UniPC", {"order": 2}, 2),
    ("UniPC", {}, 2),
    ("UniPC", {"lower_order_final": False}, 3),
]


@pytest.mark.parametrize(("name", "own", "order"), ORDERS)
def test_error_falls_with_the_samplers_order(name: str, own: dict[str, Any], order: float) -> None:
    """On the exactly solved Gaussian ODE, from σ = 8 to 0.2, evenly in log σ, in float64."""

    def error(steps: int) -> float:
        sigmas = torch.logspace(3, -2.3, steps + 1, base=2, dtype=torch.float64)
        x = torch.full((1, 1), 8.0, dtype=torch.float64)
        end = SAMPLERS[name](gaussian, x, sigmas, PictureNoise([1], (1,)), lambda: None, **own)
        scale = (1 + sigmas[-1] ** 2) ** 0.5 if TRAITS[name].variance_preserving else 1.0
        return (end * scale - gaussian_flow(x, 8.0, sigmas[-1].item())).abs().item()

    assert log2(error(64) / error(128)) > order - 0.25


def test_adams_bashforth_of_even_steps() -> None:
    assert adams_bashforth([3, 2, 1, 0], 4) == pytest.approx([55 / 24, -59 / 24, 37 / 24, -9 / 24])


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_batch_equals_singles(name: str) -> None:
    together = sample(name, 8, (1, 2, 3))
    alone = [sample(name, 8, (seed,)) for seed in (1, 2, 3)]
    assert torch.allclose(together, torch.cat(alone), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(together[0], together[1], atol=1e-2)


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_the_latent_comes_from_the_mixture(name: str) -> None:
    """Every sampler ends where the data is, and tells each step."""
    told: list[int] = []
    course = plan_course(name, "Automatic", 30, levels())
    noise = PictureNoise([3], (4, 16, 16))
    x = course.start(noise())
    end = SAMPLERS[name](mixture, x, course.sigmas, noise_for(name, course, noise), lambda: told.append(1))
    assert len(told) == len(course.sigmas) - 1
    assert end.mean().item() == pytest.approx(-0.08, abs=0.15)  # of 1024 draws; LCM's are not independent
    assert end.std().item() == pytest.approx(1.003, abs=0.12)


def test_ancestral_noise_is_drawn_in_a1111s_order() -> None:
    """One draw at the start and one a step but the last: N in all."""
    course, noise = plan_course("Euler a", "Automatic", 6, levels()), PictureNoise([3], SHAPE)
    SAMPLERS["Euler a"](mixture, course.start(noise()), course.sigmas, noise, lambda: None)
    fresh = torch.Generator("cpu").manual_seed(3)
    for _ in range(6):
        torch.randn(SHAPE, generator=fresh)
    assert torch.equal(noise()[0], torch.randn(SHAPE, generator=fresh))
