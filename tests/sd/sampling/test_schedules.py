"""Schedules against published tables, k-diffusion's and scipy's recorded values, and their own promises."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from aid.sd.sampling.noise import levels
from aid.sd.sampling.samplers import ancestral_step
from aid.sd.sampling.schedules import (
    SCHEDULES,
    beta_quantile,
    ddim_levels,
    polyexponential,
    uniform,
    unipc_levels,
)

RECORDED = json.loads((Path(__file__).parent / "k_diffusion.json").read_text())
SD1 = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.mark.parametrize(
    ("steps", "head", "tail"),
    [
        (20, [14.614643, 10.746802, 8.081519, 6.204934], [0.355545, 0.232164, 0.029168, 0.0]),
        (32, [14.614643, 12.071770, 10.057761], []),
        (40, [14.614643, 12.545559, 10.828746], []),
    ],
)
def test_k_diffusion_tables(steps: int, head: list[float], tail: list[float]) -> None:
    sigmas = uniform(steps, levels()).tolist()
    assert len(sigmas) == steps + 1
    assert sigmas[: len(head)] == pytest.approx(head, rel=5e-7)
    assert sigmas[len(sigmas) - len(tail) :] == pytest.approx(tail, abs=1e-6)


@pytest.mark.parametrize("name", list(RECORDED["schedules"]))
def test_same_levels_as_k_diffusion(name: str) -> None:
    peer = torch.tensor(RECORDED["schedules"][name])
    assert torch.allclose(SCHEDULES[name](20, levels()), peer, rtol=1e-6, atol=0)


def test_polyexponential_takes_rho() -> None:
    peer = torch.tensor(RECORDED["polyexponential_rho_2"])
    assert torch.allclose(polyexponential(12, levels(), rho=2.0), peer, rtol=1e-6, atol=0)


@pytest.mark.parametrize("steps", [2, 4, 10, 28, 38, 112])
def test_diffusers_agrees_where_steps_meet_its_levels(steps: int) -> None:
    peer = EulerAncestralDiscreteScheduler(**SD1, timestep_spacing="linspace", steps_offset=0)
    peer.set_timesteps(steps)
    assert torch.allclose(uniform(steps, levels()), peer.sigmas, rtol=2e-5, atol=0)


@settings(deadline=None)
@given(st.sampled_from(list(SCHEDULES)), st.integers(1, 120))
def test_levels_fall_from_the_top(name: str, steps: int) -> None:
    sigmas = SCHEDULES[name](steps, levels())
    assert len(sigmas) == steps + 1 or (name == "DDIM" and len(sigmas) >= steps + 1)
    assert sigmas.dtype == torch.float32
    assert (sigmas.diff() < 0).all()
    assert name == "DDIM" or sigmas[0].item() == pytest.approx(levels().sigma_max, rel=1e-5)
    assert sigmas[-1] == 0 or (
        name == "KL Optimal" and sigmas[-1].item() == pytest.approx(0.0291675, rel=1e-4)
    )


def test_narrowed_ends() -> None:
    sigmas = SCHEDULES["Karras"](9, levels().between(0.1, 10.0)).tolist()
    assert (sigmas[0], sigmas[-2]) == (pytest.approx(10.0, rel=1e-5), pytest.approx(0.1, rel=1e-4))


def test_discrete_schedules_take_trained_levels() -> None:
    trained = levels().sigmas
    assert torch.equal(SCHEDULES["Simple"](4, levels())[:-1], trained[[999, 749, 499, 249]])
    assert torch.equal(SCHEDULES["DDIM"](4, levels())[:-1], trained[[751, 501, 251, 1]])
    middle = SCHEDULES["SGM Uniform"](3, levels())[:-1]
    assert torch.allclose(middle, trained[[999, 666, 333]], rtol=1e-4)


def test_samplers_own_levels() -> None:
    assert torch.equal(ddim_levels(4, levels()), levels().sigmas[[751, 501, 251, 1]])
    assert len(ddim_levels(30, levels())) == 31
    assert torch.allclose(unipc_levels(9, levels()), levels().sigmas[::111].flip(0), rtol=1e-5)


def test_beta_quantiles_of_scipy() -> None:
    for alpha, beta, share, quantile in RECORDED["beta"]:
        ours = beta_quantile(np.array([share]), alpha, beta).item()
        assert ours == pytest.approx(quantile, rel=1e-9)
    assert beta_quantile(np.array([0.0, 1.0]), 0.6, 0.6).tolist() == [0.0, 1.0]


def test_ancestral_step_of_k_diffusion() -> None:
    sigmas = uniform(20, levels())
    down, up = ancestral_step(sigmas[0], sigmas[1])
    assert (down.item(), up.item()) == pytest.approx((7.902605, 7.283034), abs=3e-6)
    assert ancestral_step(sigmas[-2], sigmas[-1]) == (0, 0)
