"""Linear layers and convolutions in training: what doubles give, gradients too; what hangs on them stays."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from aid.sd.model.learning import Learning
from aid.sd.product.kernel import Kernel, find_kernel
from aid.sd.product.product import FEWEST_ROWS

KERNEL = find_kernel()
LANES = [lanes for lanes in (8, 16) if KERNEL and lanes <= KERNEL.lanes]
EACH_KERNEL = pytest.mark.parametrize("lanes", LANES)
NEEDS_KERNEL = pytest.mark.skipif(KERNEL is None, reason="elsewhere torch multiplies")
NEEDS_VECTORS = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"), reason="elsewhere torch multiplies"
)
sizes = st.integers(1, 40) | st.integers(250, 300)


@contextmanager
def products(lanes: int, *layers: nn.Module) -> Iterator[None]:
    """Computed with vectors of so many floats."""
    kernel: Kernel | None = KERNEL and KERNEL._replace(lanes=lanes)
    with patch("aid.sd.model.learning.find_product", lambda: kernel), Learning(*layers):
        yield


def learnt(layer: nn.Module, x: Tensor, grad: Tensor) -> list[Tensor]:
    """What comes out, and the gradients of input and weights."""
    x = x.detach().requires_grad_()
    out = layer(x)
    return [out.detach(), *torch.autograd.grad(out, [x, *layer.parameters()], grad)]


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def filled(layer: Any) -> Any:
    for index, parameter in enumerate(layer.parameters()):
        parameter.data = numbers(index, *parameter.shape)
    return layer.to(memory_format=torch.channels_last)


def assert_is_what_doubles_give(lanes: int, layer: nn.Module, x: Tensor, grad: Tensor) -> None:
    with products(lanes, layer):
        ours = learnt(layer, x, grad)
    exact = learnt(layer.double(), x.double(), grad.double())
    for one, other in zip(ours, exact, strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() < 1e-5 * max(1.0, other.abs().max().item())


@EACH_KERNEL
@given(
    rows=st.tuples(st.integers(1, 3), sizes),
    into=sizes,
    out=sizes,
    bias=st.booleans(),
    sideways=st.booleans(),
)
def test_linear_layers(
    lanes: int, rows: tuple[int, int], into: int, out: int, bias: bool, sideways: bool
) -> None:
    x, grad = numbers(1, *rows, into), numbers(2, *rows, out)
    if sideways:
        x = x.transpose(0, 1).contiguous().transpose(0, 1)
        grad = grad[..., :1].expand(*rows, out)
    assert_is_what_doubles_give(lanes, filled(nn.Linear(into, out, bias)), x, grad)


@EACH_KERNEL
@given(
    pictures=st.integers(1, 3), edges=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    channels=st.tuples(st.integers(1, 70), st.integers(1, 70)), bias=st.booleans(),
    size=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 2)),
    padding=st.tuples(st.integers(1, 3), st.integers(1, 2)), sideways=st.booleans(),
)  # fmt: skip
def test_convolutions(
    lanes: int,
    pictures: int,
    edges: tuple[int, int],
    channels: tuple[int, int],
    bias: bool,
    size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    sideways: bool,
) -> None:
    layer = filled(nn.Conv2d(*channels, size, stride, padding, bias=bias))
    layout = torch.contiguous_format if sideways else torch.channels_last
    x = numbers(1, pictures, channels[0], *edges).contiguous(memory_format=layout)
    grad = numbers(2, *layer(x).shape).contiguous(memory_format=layout)
    assert_is_what_doubles_give(lanes, layer, x, grad)


@EACH_KERNEL
def test_any_number_of_threads_gives_the_same_bits(lanes: int) -> None:
    kinds = [
        (filled(nn.Linear(70, 300)), numbers(1, 77, 70)),
        (filled(nn.Conv2d(40, 50, 3, 2, 1)), numbers(1, 2, 40, 9, 16)),
    ]
    used, made = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            with products(lanes, *(layer for layer, _ in kinds)):
                made.append(
                    [one for layer, x in kinds for one in learnt(layer, x, torch.cos(layer(x).detach()))]
                )
    finally:
        torch.set_num_threads(used)
    assert all(map(torch.equal, made[0], made[1])) and all(map(torch.equal, made[0], made[2]))


@pytest.mark.skipif(len(LANES) < 2, reason="this machine has vectors of one width")
def test_vectors_of_either_width_give_the_same_bits() -> None:
    kinds = [
        (filled(nn.Linear(270, 61)), numbers(1, 77, 270)),
        (filled(nn.Conv2d(40, 50, 3, 2, 1)), numbers(1, 2, 40, 9, 16)),
    ]
    for layer, x in kinds:
        grad = torch.cos(layer(x).detach())
        made = []
        for lanes in LANES:
            with products(lanes, layer):
                made.append(learnt(layer, x, grad))
        assert all(map(torch.equal, *made))


@NEEDS_VECTORS
def test_they_are_used_where_they_can_be_and_only_while_open() -> None:
    linear, pixels = nn.Linear(32, 16), nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last)
    others = [nn.Conv2d(4, 8, 3), nn.Conv2d(4, 8, 3, groups=2), nn.Conv2d(4, 8, 3, padding_mode="circular")]
    rows, picture = torch.ones(FEWEST_ROWS, 32), torch.ones(1, 4, 5, 5)
    with Learning(linear, pixels, *others):
        for made in (linear(rows), pixels(picture)):
            assert "_Product" in str(made.grad_fn)
        for made in (linear(rows[:1]), *(other(picture) for other in others)):
            assert "_Product" not in str(made.grad_fn)
        with torch.autocast("cpu", torch.bfloat16):
            assert linear(rows).dtype == torch.bfloat16
        with pytest.raises(RuntimeError, match="shapes"):
            linear(rows[:, 1:])
    assert "forward" not in vars(linear) and "_Product" not in str(pixels(picture).grad_fn)


@NEEDS_KERNEL
def test_what_the_kernel_has_no_place_for_is_torchs() -> None:
    """Or torch's to refuse: a window larger than the picture, a bias of another format."""
    window = nn.Conv2d(4, 8, 5).to(memory_format=torch.channels_last)
    apart, other = nn.Linear(4, 8), nn.Linear(4, 8)
    apart.bias = nn.Parameter(torch.arange(16.0)[::2])
    other.bias = nn.Parameter(torch.ones(8, dtype=torch.bfloat16))
    rows, expected = torch.ones(FEWEST_ROWS, 4), apart(torch.ones(FEWEST_ROWS, 4))
    for edges in ((4, 9), (9, 4), (3, 3)):
        with Learning(window), pytest.raises(RuntimeError, match="Kernel size"):
            window(torch.ones(1, 4, *edges))
    with Learning(apart, other):
        torch.testing.assert_close(apart(rows), expected)
        with pytest.raises(RuntimeError, match="dtype"):
            other(rows)
    nothing = nn.Linear(1, 1)
    nothing.weight, nothing.bias = nn.Parameter(torch.ones(0, 4)), nn.Parameter(torch.ones(0))
    with Learning(nothing):
        assert nothing(rows).shape == (FEWEST_ROWS, 0)


@NEEDS_KERNEL
def test_what_numbers_are_by_default_makes_no_difference() -> None:
    layer, rows, usual = filled(nn.Linear(51, 12)), numbers(1, 64, 51), torch.get_default_dtype()
    with Learning(layer):
        expected = layer(rows)
        try:
            torch.set_default_dtype(torch.float64)
            assert torch.equal(layer(rows), expected)
        finally:
            torch.set_default_dtype(usual)


@NEEDS_KERNEL
def test_models_may_share_a_layer() -> None:
    shared = nn.Linear(4, 8)
    with Learning(nn.Sequential(shared), nn.Sequential(shared, nn.SiLU())):
        assert "_Product" in str(shared(torch.ones(FEWEST_ROWS, 4)).grad_fn)
    assert "forward" not in vars(shared)


@NEEDS_KERNEL
def test_frozen_weights_get_no_gradient_and_hooks_are_called() -> None:
    layer, x = filled(nn.Linear(51, 12)).requires_grad_(False), numbers(1, 64, 51).requires_grad_()
    layer.register_forward_hook(lambda layer, told, made: 2 * made)
    expected = torch.autograd.grad(layer(x).sum(), x)[0]
    with Learning(layer):
        torch.testing.assert_close(torch.autograd.grad(layer(x).sum(), x)[0], expected)
        layer.bias.requires_grad_()
        layer(x).sum().backward()
    assert layer.weight.grad is None
    assert torch.equal(layer.bias.grad, torch.full((12,), 128.0))


@NEEDS_KERNEL
def test_broken_numbers_stay_visible() -> None:
    layer, x = filled(nn.Conv2d(3, 8, 3, padding=1)), torch.ones(1, 3, 6, 6)
    x[0, 1, 0, 0] = torch.nan
    with Learning(layer):
        seen = layer(x)[0]
    assert seen[:, :2, :2].isnan().all() and seen[:, 2:].isfinite().all() and seen[:, :, 2:].isfinite().all()
