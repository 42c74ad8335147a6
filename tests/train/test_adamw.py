"""AdamW and the norm of gradients: what doubles give, by our kernel and by torch's."""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import deepcopy
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from aid.train.optimiser.fused import FusedAdamW, norm_of
from aid.train.optimiser.kernel import find_kernel

KERNEL = find_kernel()
WAYS = {"torch": None} | ({"kernel": KERNEL} if KERNEL else {})
SHAPES = [(3, 5, 3, 3), (64, 16, 1, 1), (7,), (1,), (300, 301), (16384,)]
NEEDS_KERNEL = pytest.mark.skipif(KERNEL is None, reason="elsewhere torch does it")
NEEDS_VECTORS = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"), reason="elsewhere torch does it"
)


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    with patch("aid.train.optimiser.fused.find_kernel", lambda: WAYS[request.param]):
        yield request.param


def numbers(seed: int, channels_last: bool = True) -> list[Tensor]:
    chance = torch.Generator().manual_seed(seed)
    made = [torch.randn(shape, generator=chance) for shape in SHAPES]
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return [one.contiguous(memory_format=layout) if one.dim() == 4 else one for one in made]


def moved(way: str, scale: float = 1.0, steps: int = 4, channels_last: bool = True) -> list[Tensor]:
    """Weights after some steps on gradients that are as they come or laid out otherwise."""
    weights = [one.requires_grad_() for one in numbers(0)]
    groups = [{"params": weights[:4], "lr": 0.1}, {"params": weights[4:], "lr": 0.05}]
    with patch("aid.train.optimiser.fused.find_kernel", lambda: WAYS[way]):
        optimiser = FusedAdamW(groups, weight_decay=0.01)
    for step in range(steps):
        for weight, gradient in zip(weights, numbers(1 + step, channels_last), strict=True):
            weight.grad = gradient
        optimiser.scale = scale
        optimiser.step()
    return [weight.detach() for weight in weights]


@NEEDS_VECTORS
def test_the_kernel_was_built_and_is_used() -> None:
    assert KERNEL is not None
    assert FusedAdamW([{"params": numbers(0)}]).kernel is KERNEL


@pytest.mark.parametrize("way", WAYS)
@given(
    sizes=st.lists(st.integers(1, 40) | st.just(40_000), min_size=1, max_size=4), seed=st.integers(0, 99),
    rate=st.floats(1e-5, 0.1), betas=st.tuples(st.floats(0, 0.99), st.floats(0.5, 0.9999)),
    decay=st.floats(0, 0.5), scale=st.floats(0.01, 1),
)  # fmt: skip
def test_it_is_what_doubles_give(
    way: str,
    sizes: list[int],
    seed: int,
    rate: float,
    betas: tuple[float, float],
    decay: float,
    scale: float,
) -> None:
    chance = torch.Generator().manual_seed(seed)
    ours = [torch.randn(size, generator=chance).requires_grad_() for size in sizes]
    exact = [weight.detach().double().requires_grad_() for weight in ours]
    words = {"lr": rate, "betas": betas, "weight_decay": decay}
    with patch("aid.train.optimiser.fused.find_kernel", lambda: WAYS[way]):
        optimiser = FusedAdamW([{"params": ours}], **words)
    plain = torch.optim.AdamW(exact, foreach=False, **words)  # type: ignore[arg-type]
    for _ in range(3):
        for weight, other in zip(ours, exact, strict=True):
            weight.grad = torch.randn(len(weight), generator=chance)
            other.grad = scale * weight.grad.double()
        optimiser.scale = scale
        optimiser.step()
        plain.step()
    for weight, other in zip(ours, exact, strict=True):
        torch.testing.assert_close(weight.double(), other, rtol=1e-5, atol=1e-5 * rate + 1e-6)


@NEEDS_KERNEL
def test_the_kernel_rounds_as_torchs_does() -> None:
    for ours, theirs in zip(moved("kernel"), moved("torch"), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
    assert torch.equal(moved("kernel")[-1], moved("torch")[-1])  # whole vectors


@NEEDS_KERNEL
def test_gradients_may_be_laid_out_otherwise() -> None:
    assert all(map(torch.equal, moved("kernel", 0.5), moved("kernel", 0.5, channels_last=False)))


@NEEDS_KERNEL
def test_any_number_of_threads_gives_the_same_bits() -> None:
    used, made = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            made.append([*moved("kernel", 0.3), norm_of(numbers(5))])
    finally:
        torch.set_num_threads(used)
    assert all(map(torch.equal, made[0], made[1])) and all(map(torch.equal, made[0], made[2]))


@pytest.mark.parametrize("change", ["weights move", "a state is loaded"])
def test_what_lies_elsewhere_is_found_again(way: str, change: str) -> None:
    undisturbed = moved(way)
    weights = [one.requires_grad_() for one in numbers(0)]
    optimiser = FusedAdamW(
        [{"params": weights[:4], "lr": 0.1}, {"params": weights[4:], "lr": 0.05}], weight_decay=0.01
    )
    for step in range(4):
        for weight, gradient in zip(weights, numbers(1 + step), strict=True):
            weight.grad = gradient
        optimiser.step()
        if change == "a state is loaded":
            optimiser.load_state_dict(deepcopy(optimiser.state_dict()))
        else:
            for weight in weights:
                weight.data = weight.data.clone()
    assert all(map(torch.equal, weights, undisturbed))
    assert all(optimiser.state[weight]["step"] == 4 for weight in weights)


@given(st.lists(st.integers(0, 70) | st.just(50_000), max_size=5), st.integers(-12, 12))
def test_the_norm_is_what_doubles_give(sizes: list[int], power: int) -> None:
    chance = torch.Generator().manual_seed(len(sizes))
    gradients = [10.0**power * torch.randn(size, generator=chance) for size in sizes]
    exact = math.sqrt(sum(float(one.double().square().sum()) for one in gradients))
    assert float(norm_of(gradients)) == pytest.approx(exact, rel=1e-5)


def test_the_norm_goes_by_numbers_that_lie_apart_too(way: str) -> None:
    spread = torch.arange(24.0).view(4, 6)
    for one in (spread[:, ::2], spread.t(), spread[:1].expand(5, 6), spread.bfloat16()):
        assert float(norm_of([one, torch.ones(3)])) == pytest.approx(
            math.sqrt(float(one.double().square().sum()) + 3), rel=1e-2
        )


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_broken_gradient_is_seen_in_the_norm(way: str, broken: float) -> None:
    gradients = numbers(2)
    gradients[4][7, 7] = broken
    assert not norm_of(gradients).isfinite()
