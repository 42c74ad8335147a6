"""Noise levels against published values and diffusers, and what predictions say of the clean latent."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from hypothesis import given, settings
from hypothesis import strategies as st

from aid.sd.sampling.noise import BETA_END, BETA_START, alphas_cumprod, input_scale, levels, to_denoised

SD1 = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def test_alphas_agree_with_diffusers() -> None:
    peer = DDPMScheduler(**SD1).alphas_cumprod
    assert torch.allclose(alphas_cumprod(), peer, rtol=2e-5, atol=0)  # diffusers sums up in float32
    assert alphas_cumprod().dtype == torch.float32


@pytest.mark.parametrize(
    ("zero_terminal", "downcast", "low", "high"),
    [
        (False, False, 0.0291675, 14.614642),
        (False, True, 0.031265, 14.61234),
        (True, False, 0.0291675, 4518.8),
    ],
)
def test_ends_of_the_levels(zero_terminal: bool, downcast: bool, low: float, high: float) -> None:
    known = levels(zero_terminal, downcast)
    assert known.sigma_min == pytest.approx(low, rel=2e-5)
    assert known.sigma_max == pytest.approx(high, rel=2e-5)
    assert (known.sigmas.diff() >= 0).all()


def test_zero_terminal_snr_agrees_with_diffusers() -> None:
    betas = torch.linspace(BETA_START**0.5, BETA_END**0.5, 1000, dtype=torch.float64) ** 2
    peer = torch.cumprod(1 - rescale_zero_terminal_snr(betas), 0).float()
    ours = alphas_cumprod(zero_terminal=True)
    assert torch.allclose(ours[:-1], peer[:-1], rtol=1e-3, atol=1e-7)  # ours rescales float32, as A1111
    assert torch.allclose(ours[:-10], peer[:-10], rtol=1e-4)
    assert ours[-1].item() == pytest.approx(4.8973451890853435e-08)


@settings(deadline=None)
@given(st.floats(0, 999))
def test_t_and_sigma_are_inverse(t: float) -> None:
    there = levels().t_to_sigma(torch.tensor([t]))
    assert levels().sigma_to_t(there).item() == pytest.approx(t, abs=2e-2)


def test_sigma_beyond_the_ends_is_held() -> None:
    assert levels().sigma_to_t(torch.tensor([1e-4, 100.0])).tolist() == [0.0, 999.0]


def test_an_lcm_is_asked_at_the_nearest_of_its_timesteps() -> None:
    sigma = levels().sigmas[[19, 40, 995, 999]]
    assert levels().sigma_to_t(sigma, stride=20).tolist() == [19, 39, 999, 999]
    assert levels().every(20).sigmas.tolist() == levels().sigmas[19::20].tolist()


@settings(deadline=None)
@given(st.floats(0.03, 4000), st.integers(0, 9))
def test_both_predictions_name_the_clean_latent(sigma: float, seed: int) -> None:
    """ε and v are made from their definitions at α = 1/√(1 + σ²)."""
    draw = torch.Generator().manual_seed(seed)
    clean, noise = torch.randn(2, 4, generator=draw, dtype=torch.float64).unbind()
    level = torch.tensor(sigma, dtype=torch.float64)
    alpha = (1 + level**2) ** -0.5
    x = clean + level * noise
    v = alpha * noise - alpha * level * clean
    assert torch.allclose(to_denoised("epsilon", x, noise, level), clean, atol=1e-9)
    assert torch.allclose(to_denoised("v", x, v, level), clean, atol=1e-9)
    assert torch.allclose(x * input_scale(level), alpha * clean + alpha * level * noise)
