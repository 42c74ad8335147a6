"""The schedule against published values, and against diffusers as an independent peer."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler, EulerAncestralDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st

from aid.sd.noise import all_sigmas, alphas_cumprod, sigma_to_t, sigmas, t_to_sigma
from aid.sd.samplers import ancestral_step

SD1 = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def test_alphas_agree_with_diffusers() -> None:
    peer = DDPMScheduler(**SD1).alphas_cumprod
    assert torch.allclose(alphas_cumprod(), peer, rtol=2e-5, atol=0)  # diffusers sums up in float32
    assert alphas_cumprod().dtype == torch.float32


def test_ends_of_the_schedule() -> None:
    assert all_sigmas()[0].item() == pytest.approx(0.0291675, abs=5e-8)
    assert all_sigmas()[-1].item() == pytest.approx(14.614642, abs=2e-6)


@pytest.mark.parametrize(
    ("steps", "head", "tail"),
    [
        (20, [14.614643, 10.746802, 8.081519, 6.204934], [0.355545, 0.232164, 0.029168, 0.0]),
        (32, [14.614643, 12.071770, 10.057761], []),
        (40, [14.614643, 12.545559, 10.828746], []),
    ],
)
def test_k_diffusion_tables(steps: int, head: list[float], tail: list[float]) -> None:
    levels = sigmas(steps).tolist()
    assert len(levels) == steps + 1
    assert levels[: len(head)] == pytest.approx(head, abs=3e-6)
    assert levels[len(levels) - len(tail) :] == pytest.approx(tail, abs=1e-6)


@pytest.mark.parametrize("steps", [2, 4, 10, 28, 38, 112])
def test_diffusers_agrees_where_steps_meet_its_levels(steps: int) -> None:
    peer = EulerAncestralDiscreteScheduler(**SD1, timestep_spacing="linspace", steps_offset=0)
    peer.set_timesteps(steps)
    assert torch.allclose(sigmas(steps), peer.sigmas, rtol=2e-5, atol=0)


def test_one_step_starts_at_the_top() -> None:
    assert sigmas(1).tolist() == [pytest.approx(14.614643, abs=2e-6), 0.0]


@given(st.floats(0, 999))
def test_t_and_sigma_are_inverse(t: float) -> None:
    there = t_to_sigma(torch.tensor([t]))
    assert sigma_to_t(there).item() == pytest.approx(t, abs=2e-2)


def test_sigma_beyond_the_ends_is_held() -> None:
    assert sigma_to_t(torch.tensor([1e-4, 100.0])).tolist() == [0.0, 999.0]


def test_ancestral_step_of_k_diffusion() -> None:
    levels = sigmas(20)
    down, up = ancestral_step(levels[0], levels[1])
    assert (down.item(), up.item()) == pytest.approx((7.902605, 7.283034), abs=3e-6)
    assert ancestral_step(levels[-2], levels[-1]) == (0, 0)
