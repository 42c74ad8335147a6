"""The rounded AdamW of a GPU beside the one that it stands in for. Elsewhere Triton's interpreter runs it."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") else "cuda"
pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(
    DEVICE == "cuda" and not torch.cuda.is_available(), reason="torch has no use for this GPU"
)

from aid.train.optimiser.average import Average  # noqa: E402
from aid.train.optimiser.rounding import RoundedAdamW, change, random_bits  # noqa: E402
from aid.train.optimiser.rounding_kernel import RoundingKernel  # noqa: E402

GROUP = {"betas": (0.9, 0.999), "lr": 1e-2, "eps": 1e-8, "weight_decay": 0.1}
SHAPES = [(5000,), (3,), (70, 130), (16, 8, 3, 3)]
Four = tuple[list[Tensor], ...]  # weights, gradients, means, squares


def made(dtype: torch.dtype, shifted: bool = False) -> Four:
    """The last weight's channels lie last. Shifted, the second's numbers begin where not many can be read at
    once."""
    chance = torch.Generator().manual_seed(0)
    sides: Four = ([], [], [], [])
    for side in sides:
        for shape in SHAPES:
            values = torch.rand(shape, generator=chance) + 0.1
            values = values.to(DEVICE, dtype)
            side.append(values.to(memory_format=torch.channels_last) if values.dim() == 4 else values)
        if shifted:
            side[1] = torch.cat([side[1][:1], side[1]])[1:]
    return sides


def moved(dtype: torch.dtype, step: int, kernel: RoundingKernel, shifted: bool = False) -> Four:
    weights, *sides = made(dtype, shifted)
    kernel.move(weights, sides, range(len(weights)), 1 << 40, step, GROUP)
    assert all(known.aligned is not shifted for known in kernel.known.values())
    return weights, *sides


@pytest.mark.parametrize("step", [1, 1000])
def test_float32_is_changed_as_torch_changes_it(step: int) -> None:
    ours, peer = moved(torch.float32, step, RoundingKernel()), made(torch.float32)
    for index in range(len(SHAPES)):
        change(*(side[index] for side in peer), step, GROUP, random_bits(0, 1, 0, torch.device(DEVICE)))
    for mine, theirs in zip(ours, peer, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2e-6, atol=0)


def test_bfloat16_becomes_one_of_two_neighbours_and_is_right_on_average() -> None:
    ours = moved(torch.bfloat16, 3, RoundingKernel())
    exact = tuple([one.float() for one in side] for side in made(torch.bfloat16))
    for index in range(len(SHAPES)):
        change(*(side[index] for side in exact), 3, GROUP, random_bits(0, 1, 0, torch.device(DEVICE)))
    for mine, right in ((ours[side], exact[side]) for side in (0, 2, 3)):
        off = [(one.float() - other) / other for one, other in zip(mine, right, strict=True)]
        assert all(one.abs().max() < 2**-7 for one in off)
        assert abs(float(off[2].mean())) < 4 * 2**-8 / 9100**0.5
        assert not torch.equal(mine[2], right[2].bfloat16())  # which is what rounding to the nearest gives


def test_bits_are_those_of_seed_step_and_place() -> None:
    kernel = RoundingKernel()
    first, again, later = (moved(torch.bfloat16, step, kernel) for step in (3, 3, 4))
    apart = moved(torch.bfloat16, 3, RoundingKernel(), shifted=True)
    for one, same, other, shifted in zip(first[0], again[0], later[0], apart[0], strict=True):
        assert torch.equal(one, same) and torch.equal(one, shifted)
        assert len(one) == 3 or not torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_averages_follow_their_weights(dtype: torch.dtype) -> None:
    """In bfloat16 to one of two neighbours, right on average; the same again, by another seed other bits."""
    share = 0.01
    values, targets, *_ = made(dtype)
    exact = [v.float().lerp(t.float(), share) for v, t in zip(values, targets, strict=True)]

    def follow(seed: int) -> list[Tensor]:
        moved = [value.clone() for value in values]
        RoundingKernel().follow(moved, targets, range(len(moved)), seed, share)
        return moved

    ours, again, other = follow(1 << 40), follow(1 << 40), follow(1 << 41)
    off = [(one.float() - right) / right for one, right in zip(ours, exact, strict=True)]
    assert all(one.abs().max() < (2**-7 if dtype == torch.bfloat16 else 2e-7) for one in off)
    assert abs(float(off[2].mean())) < 4 * 2**-8 / 9100**0.5
    assert all(map(torch.equal, ours, again))
    assert torch.equal(ours[2], other[2]) == (dtype == torch.float32)


def test_what_belongs_to_another_weight_is_refused() -> None:
    weights, gradients, means, squares = made(torch.bfloat16)
    means[2] = means[2].float()
    with pytest.raises(ValueError, match="float32"):
        RoundingKernel().move(weights, [gradients, means, squares], range(4), 1, 1, GROUP)


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_averages_on_a_gpu_are_near_those_of_a_cpu() -> None:
    weights, targets, *_ = made(torch.bfloat16)
    here = [weight.cpu() for weight in weights]
    averages = [Average(weights, 0.9), Average(here, 0.9)]
    for weight, other, target in zip(weights, here, targets, strict=True):
        weight.copy_(target), other.copy_(target)
    for average in averages:
        for step in range(3):
            average.update(step)
    assert averages[0].kernel is not None
    for value, other in zip(averages[0].values, averages[1].values, strict=True):
        torch.testing.assert_close(value.cpu(), other, rtol=2**-6, atol=0)


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_the_optimiser_moves_weights_as_on_a_cpu() -> None:
    sides = made(torch.bfloat16), made(torch.float32)
    for side in sides:
        weights, gradients = side[0], side[1]
        here = [weight.detach().cpu() for weight in weights]
        optimisers = [RoundedAdamW([{"params": each}], lr=1e-2) for each in (weights, here)]
        for _ in range(3):
            for weight, other, gradient in zip(weights, here, gradients, strict=True):
                weight.grad, other.grad = gradient, gradient.cpu()
            for optimiser in optimisers:
                optimiser.step()
        assert optimisers[0].kernel is not None
        for weight, other in zip(weights, here, strict=True):
            torch.testing.assert_close(weight.cpu(), other, rtol=2**-6, atol=0)
