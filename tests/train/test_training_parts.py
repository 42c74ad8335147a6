"""Parts of training beside independent peers, and their properties."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from hypothesis import given
from hypothesis import strategies as st

from aid.core.dataset import Record
from aid.core.rate import rate_factor
from aid.sd.model.architecture import SD1
from aid.sd.model.tokenizer import load_tokenizer
from aid.train.log import running_mean
from aid.train.optimiser.average import Average
from aid.train.optimiser.fused import clip_factor, norm_of
from aid.train.settings import LossSettings
from aid.train.step.batch import step_generator, token_windows
from aid.train.step.loss import WEIGHTINGS, Diffusion
from aid.train.step.noising import draw_noise
from aid.train.step.order import Order, Replay


def record(index: int, width: int = 64) -> Record:
    return Record(
        sha256="", source=str(index), file="", style="lorelei", tags=("red hair", "smile", "glasses"),
        split="train", width=width, height=64, row=index,
    )  # fmt: skip


@pytest.fixture(scope="module")
def scheduler() -> DDPMScheduler:
    return DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


def test_noising_is_diffusers(scheduler: DDPMScheduler) -> None:
    generator = torch.Generator().manual_seed(0)
    x, noise = torch.randn(2, 8, 4, 4, 4, generator=generator)
    t = torch.tensor([0, 1, 10, 100, 300, 500, 900, 999])
    ours = Diffusion(torch.device("cpu"), SD1, LossSettings()).add_noise(x, noise, t)
    torch.testing.assert_close(ours, scheduler.add_noise(x, noise, t), atol=1e-6, rtol=1e-6)


def test_min_snr_is_that_of_diffusers_training_scripts(scheduler: DDPMScheduler) -> None:
    t = torch.arange(0, 1000, 37)
    snr = compute_snr(scheduler, t)
    expected = torch.stack([snr, 5.0 * torch.ones_like(t)], dim=1).min(dim=1)[0] / snr
    torch.testing.assert_close(WEIGHTINGS["min_snr"](snr, 5.0), expected)


def test_windows_are_transformers_padding() -> None:
    tokenizer = load_tokenizer()
    texts = ["by lorelei, red hair", "", "x" * 400]
    theirs = tokenizer(
        texts, padding="max_length", truncation=True, max_length=77, return_tensors="pt"
    ).input_ids
    assert torch.equal(token_windows(texts, 1)[:, 0], theirs)


@given(
    st.lists(st.sampled_from([64, 96, 128]), min_size=1, max_size=40), st.integers(1, 7), st.integers(0, 9)
)
def test_an_epoch_is_every_record_once_in_batches_of_one_size(
    widths: list[int], size: int, seed: int
) -> None:
    records = [record(index, width) for index, width in enumerate(widths)]
    order = Order(records, size, seed)
    for epoch in (0, 1):
        batches = [order.batch(epoch * order.steps_per_epoch + step) for step in range(order.steps_per_epoch)]
        assert sorted(r.row for batch in batches for r in batch) == list(range(len(records)))
        assert all(len({r.width for r in batch}) == 1 and len(batch) <= size for batch in batches)


def test_replay_uses_all_its_pictures_equally() -> None:
    replay = Replay([record(index) for index in range(6)], 2, seed=0, sizes=[(64, 64)])
    seen = [r.row for step in range(6) for r in replay.batch(step, (64, 64))]
    assert sorted(seen) == sorted([*range(6), *range(6)])


def test_timesteps_are_spread_within_a_picture_and_uniform_over_all() -> None:
    noised = draw_noise(torch.zeros(3000, 4, 1, 1), 4, LossSettings(), step_generator(0, 0))
    t = noised.t.reshape(3000, 4)
    gaps = (t - t[:, :1]) % 1000
    assert ((gaps.sort(dim=1).values - torch.tensor([0, 250, 500, 750])).abs() <= 1).all()
    counts = torch.bincount(noised.t // 100, minlength=10)
    assert noised.t.min() >= 0 and noised.t.max() <= 999 and (counts - 1200).abs().max() < 150


def test_average_converges_to_constant_weights() -> None:
    weight = torch.zeros(3)
    average = Average([weight], 0.5)
    weight += 1.0
    for step in range(40):
        average.update(step)
    torch.testing.assert_close(average.values[0], torch.ones(3))
    weight += 1.0
    with average.applied():
        torch.testing.assert_close(weight, torch.ones(3))
    torch.testing.assert_close(weight, torch.full((3,), 2.0))


class OfAFullGPU(torch.Tensor):
    """Of which there is no room for a second one."""

    def clone(self, **_: object) -> torch.Tensor:  # type: ignore[override]
        raise torch.OutOfMemoryError("the GPU is full")


def test_averages_change_places_where_a_gpu_is_full_too() -> None:
    """Else an error halfway, such as a sample sheet's, would leave some of each in the model."""
    weights = [torch.zeros(3), torch.zeros(2, 2)]
    average = Average(weights, 0.5)
    for weight in weights:
        weight += 1.0
    average.parameters = [weights[0], weights[1].as_subclass(OfAFullGPU)]
    with pytest.raises(torch.OutOfMemoryError, match="a sheet's"), average.applied():
        assert not any(weight.any() for weight in weights)
        raise torch.OutOfMemoryError("a sheet's")
    assert all(weight.eq(1).all() for weight in weights)


def test_an_average_is_as_if_brought_up_to_date_at_every_step() -> None:
    """Of a random walk, beside the plain formula: the same at first, then within 3 % of what is averaged
    away, with far less work."""
    generator, weight = torch.Generator().manual_seed(0), torch.zeros(200)
    average, plain, changes = Average([weight], 0.999), torch.zeros(200), 0
    for step in range(2000):
        weight += 0.1 * torch.randn(200, generator=generator) + 0.01
        plain.lerp_(weight, 1 - min(0.999, (1 + step) / (10 + step)))
        before = average.values[0].clone()
        average.update(step)
        changes += not torch.equal(before, average.values[0])
        assert step > 300 or torch.equal(average.values[0], plain)
    assert (average.values[0] - plain).norm() < 0.03 * (weight - plain).norm()
    assert changes < 800


@given(st.floats(2**-10, 2**10, width=32), st.floats(0.5, 1.5, width=32))
def test_gradients_are_clipped_as_torch_does_it(limit: float, times: float) -> None:
    """Also close to the limit."""
    ours, theirs = torch.tensor([0.0, -limit * times, 0.0]), torch.zeros(3, requires_grad=True)
    theirs.grad = ours.clone()
    factor = clip_factor(float(norm_of([ours])), limit)
    torch.nn.utils.clip_grad_norm_([theirs], limit)
    torch.testing.assert_close(factor * ours, theirs.grad)
    assert clip_factor(1e9, 0) == 1


def test_rates_rise_then_follow_the_schedule() -> None:
    assert [rate_factor(i, 10, 4, "constant") for i in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert rate_factor(9, 10, 4, "constant") == 1.0
    assert rate_factor(7, 10, 4, "linear") == pytest.approx(0.5)
    assert rate_factor(7, 10, 4, "cosine") == pytest.approx(0.5)


def test_running_mean_of_a_constant() -> None:
    assert running_mean([2.0] * 200) == pytest.approx([2.0] * 200)
