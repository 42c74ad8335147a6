"""The noise of pictures: A1111's draws, order and seeds, and torchsde's Brownian motion as recorded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from aid.errors import SettingsError
from aid.sd.sampling.brownian import BrownianNoise, BrownianTree
from aid.sd.sampling.noise import levels
from aid.sd.sampling.philox import Philox
from aid.sd.sampling.random import PictureNoise, slerp

RECORDED = json.loads((Path(__file__).parent / "k_diffusion.json").read_text())
SHAPE = (4, 8, 8)


def fresh(seed: int, draws: int, shape: tuple[int, ...] = SHAPE) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for _ in range(draws)]


def test_philox_draws_what_cuda_does() -> None:
    draw = Philox(0)
    expected = [
        [-0.92466259, -0.42534415, -2.6438457, 0.14518388],
        [-0.12086647, -0.57972564, -0.62285122, -0.32838709],
        [-1.07454231, -0.36314407, -1.67105067, 2.26550497],
    ]
    assert torch.allclose(draw((3, 4)), torch.tensor(expected), rtol=1e-6, atol=0)
    assert draw((3, 4)).flatten()[:2].tolist() == pytest.approx([0.18082589, -0.5522627], rel=1e-6)


def test_philox_is_normal_and_takes_long_seeds() -> None:
    drawn = Philox(2**63 + 5)((1 << 16,))
    assert drawn.dtype == torch.float32
    assert (drawn.mean().item(), drawn.std().item()) == (
        pytest.approx(0, abs=0.02),
        pytest.approx(1, abs=0.02),
    )
    assert not torch.equal(drawn, Philox(5)((1 << 16,)))


@pytest.mark.parametrize("shape", [SHAPE, (4, 9, 9), (4, 64, 64), (4, 128, 136), (3,), (1,)])
def test_draws_are_the_generators_own_in_order(shape: tuple[int, ...]) -> None:
    """Also those that are drawn ahead of the steps that ask for them."""
    noise, draws = PictureNoise([1, 2], shape), 80 if shape == SHAPE else 8
    for one, two in zip(fresh(1, draws, shape), fresh(2, draws, shape), strict=True):
        assert torch.equal(noise(), torch.stack([one, two]))


def test_nv_noise_has_its_own_source() -> None:
    noise, draw = PictureNoise([7], SHAPE, source="NV"), Philox(7)
    assert torch.equal(noise()[0], draw(SHAPE))
    assert torch.equal(noise()[0], draw(SHAPE))


def test_gpu_noise_needs_a_gpu() -> None:
    with pytest.raises(SettingsError, match="NV"):
        PictureNoise([7], SHAPE, source="GPU")


@pytest.mark.parametrize("source", ["CPU", "NV"])
def test_a_pictures_noise_ignores_its_neighbours(source: str) -> None:
    together, alone = PictureNoise([1, 2, 3], SHAPE, source=source), PictureNoise([2], SHAPE, source=source)
    for _ in range(3):
        assert torch.equal(together()[1], alone()[0])


@pytest.mark.parametrize("delta", [31337, -9])
def test_seed_delta_begins_again_after_the_first_draw(delta: int) -> None:
    noise = PictureNoise([1], SHAPE, seed_delta=delta)
    assert torch.equal(noise()[0], fresh(1, 1)[0])
    for expected in fresh(1 + delta, 2):
        assert torch.equal(noise()[0], expected)


def test_seeds_below_zero_are_2_to_the_64_more() -> None:
    assert torch.equal(Philox(-8)(SHAPE), Philox(2**64 - 8)(SHAPE))
    assert torch.equal(fresh(-8, 1)[0], fresh(2**64 - 8, 1)[0])


def test_a_variation_turns_the_first_draw_alone() -> None:
    varied = PictureNoise([1, 1, 1], SHAPE, variation_seeds=[9, 9, 9], variation_strengths=[0, 0.3, 1])
    first = varied()
    one, nine = fresh(1, 1)[0], fresh(9, 1)[0]
    assert torch.equal(first[0], one)
    assert torch.allclose(first[1], slerp(0.3, one, nine))
    assert torch.allclose(first[2], nine, atol=1e-5)
    assert torch.equal(varied()[1], fresh(1, 2)[1])


def test_slerp_keeps_to_the_arc_of_each_column() -> None:
    low, high = fresh(1, 2)
    low, high = (side / side.norm(dim=1, keepdim=True) for side in (low, high))
    middle = slerp(0.25, low, high)
    assert torch.allclose(middle.norm(dim=1), torch.ones(4, 8), atol=1e-5)
    angle, part = ((low * side).sum(1).clamp(-1, 1).acos() for side in (high, middle))
    assert torch.allclose(part, 0.25 * angle, atol=1e-3)


def test_slerp_of_single_rows_is_finite() -> None:
    """Pictures of 8 pixels' height: their columns lie along or against each other."""
    low, high = (torch.randn(4, 1, 64, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    assert torch.allclose(slerp(0.25, low, high), 0.75 * low + 0.25 * high)


def test_slerp_of_equal_noise_is_that_noise() -> None:
    noise = fresh(1, 1)[0]
    assert torch.allclose(slerp(0.4, noise, noise), noise, atol=1e-6)


def drawer(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Callable[[int], Tensor]:
    return lambda seed: torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_brownian_noise_of_torchsde() -> None:
    """In float64, as it was recorded; processors differ in the eleventh digit."""
    ends = (torch.tensor(end, dtype=torch.float64) for end in (levels().sigma_min, levels().sigma_max))
    noise = BrownianNoise([1, 2**40], drawer((4,), torch.float64), *ends)
    for low, high, expected in RECORDED["brownian"]:
        ours = noise(*torch.tensor([high, low], dtype=torch.float64))
        assert torch.allclose(ours, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0.1, 10), min_size=3, max_size=3, unique=True), st.integers(0, 5))
def test_brownian_increments_add_up_in_any_order(points: list[float], seed: int) -> None:
    low, middle, high = sorted(points)
    one, other = (BrownianTree(seed, drawer((3,)), 0.1, 10.0) for _ in range(2))
    left, right = one(low, middle), one(middle, high)
    whole = other(low, high)
    assert torch.allclose(left + right, whole, atol=1e-5)
    assert torch.equal(other(low, middle), left)


def test_brownian_noise_is_standard_normal_whatever_the_step() -> None:
    noise = BrownianNoise([3], drawer((1 << 14,)), torch.tensor(0.03), torch.tensor(14.0))
    for high, low in ((14.0, 9.0), (9.0, 0.5), (0.5, 0.0300)):
        drawn = noise(torch.tensor(high), torch.tensor(low))
        assert drawn.std().item() == pytest.approx(1, abs=0.03)


def test_brownian_source_follows_the_pictures() -> None:
    ends = torch.tensor(0.03), torch.tensor(14.0)
    step = torch.tensor(10.0), torch.tensor(8.0)
    cpu, nv = (PictureNoise([1, 2], SHAPE, source=source).brownian(*ends)(*step) for source in ("CPU", "NV"))
    alone = PictureNoise([2], SHAPE).brownian(*ends)(*step)
    assert torch.equal(cpu[1], alone[0])
    assert not torch.allclose(cpu, nv)
