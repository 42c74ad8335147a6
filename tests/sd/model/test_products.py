"""Products by oneDNN are torch's, gradients too, and layers keep what hangs on them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from aid.sd.model.products import HAS_ONEDNN, LEAST, Products

NEEDS_ONEDNN = pytest.mark.skipif(not HAS_ONEDNN, reason="this torch was built without it")


def learnt(layer: nn.Linear, x: Tensor, grad: Tensor) -> list[Tensor]:
    """What comes out, and the gradients of input and weights."""
    x = x.detach().requires_grad_()
    out = layer(x)
    return [out.detach(), *torch.autograd.grad(out, [x, *layer.parameters()], grad)]


@NEEDS_ONEDNN
@given(
    rows=st.tuples(st.integers(1, 3), st.integers(1, 200)), into=st.integers(128, 300),
    out=st.integers(256, 400), bias=st.booleans(), sideways=st.booleans(),
)  # fmt: skip
def test_they_are_what_doubles_give(
    rows: tuple[int, int], into: int, out: int, bias: bool, sideways: bool
) -> None:
    chance = torch.Generator().manual_seed(into)
    layer = nn.Linear(into, out, bias)
    for parameter in layer.parameters():
        parameter.data.normal_(0, 0.1, generator=chance)
    x = torch.randn(*rows, into, generator=chance)
    grad = torch.randn(*rows, out, generator=chance)
    if sideways:
        x = x.transpose(0, 1).contiguous().transpose(0, 1)
        grad = grad[..., :1].expand(*rows, out)
    with Products(layer):
        ours = learnt(layer, x, grad)
    exact = learnt(layer.double(), x.double(), grad.double())
    for one, other in zip(ours, exact, strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() < 1e-5 * max(1.0, other.abs().max().item())


@NEEDS_ONEDNN
def test_they_are_used_where_it_is_worth_it_and_only_while_open() -> None:
    layer, narrow = nn.Linear(512, 512), nn.Linear(16, 16)
    large = torch.ones(LEAST // 512**2, 512)
    with Products(nn.Sequential(layer, narrow)):
        assert "_Product" in str(layer(large).grad_fn)
        assert "_Product" not in str(layer(large[:1]).grad_fn)
        assert "forward" not in vars(narrow)
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(large).dtype == torch.bfloat16
    assert "forward" not in vars(layer)


@NEEDS_ONEDNN
def test_frozen_weights_get_no_gradient_and_hooks_are_called() -> None:
    layer, x = nn.Linear(512, 512).requires_grad_(False), torch.ones(64, 512, requires_grad=True)
    layer.register_forward_hook(lambda layer, told, made: 2 * made)
    expected = learnt_input(layer, x)
    with Products(layer):
        torch.testing.assert_close(learnt_input(layer, x), expected)
    assert layer.weight.grad is None


def learnt_input(layer: nn.Linear, x: Tensor) -> Tensor:
    return torch.autograd.grad(layer(x).square().sum(), x)[0]


@NEEDS_ONEDNN
def test_broken_numbers_stay_visible() -> None:
    layer, x = nn.Linear(512, 512), torch.ones(64, 512)
    x[3, 7] = torch.nan
    with Products(layer):
        seen = layer(x)
    assert seen[3].isnan().all() and seen[:3].isfinite().all() and seen[4:].isfinite().all()
