"""Samplers against diffusers' schedulers, where the two agree, and against an exact solution."""

from __future__ import annotations

import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler, EulerDiscreteScheduler
from torch import Tensor

from aid.sd.noise import sigma_to_t, sigmas
from aid.sd.random import PictureNoise
from aid.sd.samplers import SAMPLERS

SD1 = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "timestep_spacing": "linspace",
    "steps_offset": 0,
}
PEERS = {"Euler a": EulerAncestralDiscreteScheduler, "Euler": EulerDiscreteScheduler}
SHAPE = (4, 8, 8)


def epsilon(scaled: Tensor, t: Tensor) -> Tensor:
    """A stand-in for a U-Net: smooth, not linear, and different at every t."""
    return torch.tanh(scaled * 1.3 + 0.1) * (0.5 + t / 999) + 0.05 * scaled.roll(1, dims=-1)


def denoise(x: Tensor, sigma: Tensor) -> Tensor:
    return x - epsilon(x / (sigma**2 + 1) ** 0.5, sigma_to_t(sigma)) * sigma


def nothing() -> None: ...


@pytest.mark.parametrize("steps", [10, 28])
@pytest.mark.parametrize("name", list(SAMPLERS))
def test_same_latents_as_diffusers(name: str, steps: int) -> None:
    levels, noise = sigmas(steps), PictureNoise([5, 6], SHAPE)
    ours = SAMPLERS[name](denoise, noise() * levels[0], levels, noise, nothing)
    peer = PEERS[name](**SD1)
    peer.set_timesteps(steps)
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in (5, 6)]
    x = torch.stack([torch.randn(SHAPE, generator=g) for g in generators]) * peer.init_noise_sigma
    extra = {"generator": generators} if name == "Euler a" else {}
    for t in peer.timesteps:
        x = peer.step(epsilon(peer.scale_model_input(x, t), t), t, x, **extra).prev_sample
    assert torch.allclose(ours, x, rtol=1e-4, atol=1e-4)
    assert ours.abs().max() > 0.1


def test_euler_converges_on_the_exact_solution() -> None:
    """For Gaussian data of standard deviation s, D = x s²/(s² + σ²) and x(0) = x(σ) s/√(s² + σ²)."""
    s = 0.7

    def gaussian(x: Tensor, sigma: Tensor) -> Tensor:
        return x * s**2 / (s**2 + sigma**2)

    levels, noise = sigmas(1000), PictureNoise([1], SHAPE)
    x = noise() * levels[0]
    exact = x * s / (s**2 + levels[0] ** 2) ** 0.5
    assert torch.allclose(SAMPLERS["Euler"](gaussian, x, levels, noise, nothing), exact, atol=0.02)


def test_ancestral_noise_is_drawn_in_a1111s_order() -> None:
    """One draw at the start and one a step but the last: N in all."""
    levels, noise = sigmas(6), PictureNoise([3], SHAPE)
    SAMPLERS["Euler a"](denoise, noise() * levels[0], levels, noise, nothing)
    fresh = torch.Generator("cpu").manual_seed(3)
    for _ in range(6):
        torch.randn(SHAPE, generator=fresh)
    assert torch.equal(noise()[0], torch.randn(SHAPE, generator=fresh))


def test_a_pictures_noise_ignores_its_neighbours() -> None:
    together, alone = PictureNoise([1, 2, 3], SHAPE), PictureNoise([2], SHAPE)
    for _ in range(3):
        assert torch.equal(together()[1], alone()[0])


def test_every_step_is_told() -> None:
    told: list[int] = []
    levels, noise = sigmas(7), PictureNoise([3], SHAPE)
    for sampler in SAMPLERS.values():
        sampler(denoise, noise(), levels, noise, lambda: told.append(1))
    assert len(told) == 7 * len(SAMPLERS)
