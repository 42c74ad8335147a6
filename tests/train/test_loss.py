"""Losses, targets, noises and timesteps beside diffusers, scipy-like formulas and their own definitions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from aid.errors import SettingsError
from aid.sd.model.architecture import SD1, Architecture
from aid.sd.sampling.noise import alphas_cumprod
from aid.train.settings import LossSettings
from aid.train.step.batch import step_generator
from aid.train.step.loss import DISTANCES, SCHEDULES, TARGETS, WEIGHTINGS, Condition, Diffusion
from aid.train.step.noising import draw_noise, draw_timesteps, pyramid
from aid.train.tables import TimestepSettings

V = SD1.model_copy(update={"prediction": "v"})
CPU = torch.device("cpu")


class Oracle:
    """A U-Net that predicts what it is told to."""

    def __init__(self, answer: torch.Tensor) -> None:
        self.answer, self.sample = answer, answer

    def __call__(self, x: torch.Tensor, t: torch.Tensor, context: torch.Tensor, **_: Any) -> Oracle:
        self.seen = x
        return self


def scheduler(zero: bool) -> DDPMScheduler:
    return DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", rescale_betas_zero_snr=zero
    )


@pytest.mark.parametrize("zero", [False, True])
def test_velocity_is_diffusers(zero: bool) -> None:
    x, noise = torch.randn(2, 8, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0, 1, 10, 100, 300, 500, 900, 998])
    ᾱ = alphas_cumprod(zero)[t][:, None, None, None]
    torch.testing.assert_close(
        TARGETS["v"](x, noise, ᾱ), scheduler(zero).get_velocity(x, noise, t), atol=2e-6, rtol=1e-5
    )


@pytest.mark.parametrize("architecture", [SD1, V], ids=["epsilon", "v"])
@pytest.mark.parametrize("distance", list(DISTANCES))
def test_the_right_answer_costs_nothing(architecture: Architecture, distance: Any) -> None:
    settings = LossSettings(distance=distance, input_perturbation=0.3)
    noised = draw_noise(torch.randn(3, 4, 8, 8), 2, settings, step_generator(0, 0))
    diffusion = Diffusion(CPU, architecture, settings)
    ᾱ = diffusion.alphas[noised.t][:, None, None, None]
    right = TARGETS[architecture.prediction](noised.latents, noised.noise, ᾱ)
    unet = Oracle(right)
    assert diffusion.losses(unet, noised, Condition(torch.zeros(()))).abs().max() < 1e-6
    expected = ᾱ.sqrt() * noised.latents + (1 - ᾱ).sqrt() * noised.shown
    torch.testing.assert_close(unet.seen, expected)
    wrong = Diffusion(CPU, architecture, settings).losses(
        Oracle(right + 1), noised, Condition(torch.zeros(()))
    )
    assert (wrong > 0).all()


def test_masked_places_cost_nothing_and_the_mean_is_over_all() -> None:
    from dataclasses import replace

    settings = LossSettings(weighting="uniform")
    noised = draw_noise(torch.zeros(2, 4, 2, 2), 1, settings, step_generator(0, 0))
    mask = torch.tensor([1.0, 0, 0, 0.5]).reshape(1, 1, 2, 2).expand(2, 1, 2, 2)
    losses = Diffusion(CPU, SD1, settings).losses(
        Oracle(noised.noise + 2), replace(noised, mask=mask), Condition(torch.zeros(()))
    )
    torch.testing.assert_close(losses, torch.full((2,), 4 * 1.5 / 4))


def test_weightings_are_their_papers() -> None:
    snr = compute_snr(scheduler(False), torch.arange(0, 1000, 13))
    for prediction, floor in (("epsilon", 0), ("v", 1)):
        expected = torch.stack([snr, torch.full_like(snr, 5.0)]).amin(0) / (snr + floor)
        torch.testing.assert_close(WEIGHTINGS["min_snr"](snr, 5.0, prediction), expected)
    torch.testing.assert_close(WEIGHTINGS["debiased"](torch.tensor([0.25, 4.0, 1e6]), 5.0, "epsilon"),
                               torch.tensor([2.0, 0.5, 1000**-0.5]))  # fmt: skip


def test_a_weighting_that_pure_noise_would_have_is_refused() -> None:
    noisy = SD1.model_copy(update={"zero_terminal_snr": True})
    for weighting in ("uniform", "min_snr"):
        Diffusion(CPU, noisy, LossSettings(weighting=weighting))
    Diffusion(CPU, noisy.model_copy(update={"prediction": "v"}), LossSettings(weighting="debiased"))
    with pytest.raises(SettingsError, match=r"debiased counts pure noise \d+ fold; expected min_snr"):
        Diffusion(CPU, noisy, LossSettings(weighting="debiased"))


def test_huber_is_square_near_and_straight_far() -> None:
    zero, c = torch.zeros(1), torch.tensor([0.1])
    near, far = torch.tensor([1e-3]), torch.tensor([100.0])
    torch.testing.assert_close(DISTANCES["huber"](near, zero, c), near**2, rtol=1e-3, atol=1e-8)
    torch.testing.assert_close(DISTANCES["huber"](far, zero, c), 2 * c * (far - c), rtol=1e-3, atol=0)
    torch.testing.assert_close(DISTANCES["smooth_l1"](far, zero, c), 2 * (far - c), rtol=1e-3, atol=0)


@pytest.mark.parametrize("schedule", list(SCHEDULES))
def test_hubers_place_falls_from_one_to_c(schedule: str) -> None:
    ᾱ = alphas_cumprod()
    places = SCHEDULES[schedule](torch.arange(1000), ((1 - ᾱ) / ᾱ).sqrt(), 0.1)
    assert (places.diff() <= 0).all() and places[-1] == pytest.approx(0.1, abs=0.005)
    assert places[0] == pytest.approx(0.1 if schedule == "constant" else 1.0, abs=0.06)


def test_the_logit_normal_law_is_one() -> None:
    settings = TimestepSettings(law="logit_normal", mean=0.4, spread=0.8)
    t = draw_timesteps(4000, 4, settings, step_generator(0, 0))
    logits = torch.logit((t + 0.5) / 1000)
    assert logits.mean() == pytest.approx(0.4, abs=0.02) and logits.std() == pytest.approx(0.8, abs=0.02)


def test_a_range_is_kept_and_filled() -> None:
    settings = TimestepSettings(lowest=200, highest=300)
    t = draw_timesteps(2000, 2, settings, step_generator(0, 0))
    assert t.min() == 200 and t.max() == 299 and len(t.unique()) == 100
    with pytest.raises(ValueError, match="must be below"):
        TimestepSettings(lowest=5, highest=5)


def test_pyramid_noise_has_unit_variance_and_more_of_it_in_large_shapes() -> None:
    noise = torch.randn(16, 4, 32, 32, generator=step_generator(0, 0))
    made = pyramid(noise, 6, 0.5, step_generator(0, 1))
    assert made.std() == pytest.approx(1.0, abs=1e-4)
    coarse = [torch.nn.functional.avg_pool2d(x, 16).std().item() for x in (noise, made)]
    assert coarse[1] > 2 * coarse[0] and coarse[0] == pytest.approx(1 / 16, abs=0.02)


def test_noise_offset_moves_whole_channels() -> None:
    made = draw_noise(torch.zeros(400, 4, 16, 16), 1, LossSettings(noise_offset=0.5), step_generator(0, 0))
    assert made.noise.mean((2, 3)).std() == pytest.approx(math.hypot(0.5, 1 / 16), abs=0.03)
