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

from aid.train.optimiser.rounding import change, random_bits  # noqa: E402
from aid.train.optimiser.rounding_kernel import RoundingKernel  # noqa: E402

GROUP = {"betas": (0.9, 0.999), "lr": 1e-2, "eps": 1e-8, "weight_decay": 0.1}
SHAPES = [(5000,), (3,), (70, 130), (16, 8, 3, 3)]
Four = tuple[list[Tensor], ...]  # weights, gradients, means, squares


def made(dtype: torch.dtype) -> Four:
    """The last weight's channels lie last, and the second's numbers begin where not many are read at once."""
    chance = torch.Generator().manual_seed(0)
    sides: Four = ([], [], [], [])
    for side in sides:
        for shape in SHAPES:
            values = torch.rand(shape, generator=chance) + 0.1
            values = values.to(DEVICE, dtype)
            side.append(values.to(memory_format=torch.channels_last) if values.dim() == 4 else values)
        side[1] = torch.cat([side[1], side[1]])[1:4]
    return sides


def moved(dtype: torch.dtype, step: int, kernel: RoundingKernel | None = None) -> Four:
    weights, *sides = made(dtype)
    (kernel or RoundingKernel()).move(weights, sides, range(len(weights)), 1 << 40, step, GROUP)
    return weights, *sides


@pytest.mark.parametrize("step", [1, 1000])
def test_float32_is_changed_as_torch_changes_it(step: int) -> None:
    ours, peer = moved(torch.float32, step), made(torch.float32)
    for index in range(len(SHAPES)):
        change(*(side[index] for side in peer), step, GROUP, random_bits(0, 1, 0, torch.device(DEVICE)))
    for mine, theirs in zip(ours, peer, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2e-6, atol=0)


def test_bfloat16_becomes_one_of_two_neighbours_and_is_right_on_average() -> None:
    ours, exact = (
        moved(torch.bfloat16, 3),
        tuple([one.float() for one in side] for side in made(torch.bfloat16)),
    )
    for index in range(len(SHAPES)):
        change(*(side[index] for side in exact), 3, GROUP, random_bits(0, 1, 0, torch.device(DEVICE)))
    for mine, right in ((ours[side], exact[side]) for side in (0, 2, 3)):
        off = [(one.float() - other) / other for one, other in zip(mine, right, strict=True)]
        assert all(one.abs().max() < 2**-7 for one in off)
        assert abs(float(off[2].mean())) < 4 * 2**-8 / 9100**0.5
        assert not torch.equal(mine[2], right[2].bfloat16())  # which is what rounding to the nearest gives


def test_bits_are_those_of_seed_step_and_place() -> None:
    kernel = RoundingKernel()
    first, again, later = (
        moved(torch.bfloat16, 3),
        moved(torch.bfloat16, 3, kernel),
        moved(torch.bfloat16, 4, kernel),
    )
    for one, same, other in zip(first[0], again[0], later[0], strict=True):
        assert torch.equal(one, same)
        assert len(one) == 3 or not torch.equal(one, other)
