"""Layers fused on a GPU compute what torch's own do, and their gradients. Elsewhere Triton's interpreter runs
the same kernels."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") else "cuda"
pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(
    DEVICE == "cuda" and not torch.cuda.is_available(), reason="torch has no use for this GPU"
)

from aid.sd.fusion.attention import attention  # noqa: E402
from aid.sd.fusion.group_norm import group_norm  # noqa: E402
from aid.sd.fusion.layers import fused_forward  # noqa: E402
from aid.sd.fusion.rows import dense, gate, layer_norm, linear, plus  # noqa: E402
from aid.sd.model.architecture import TINY  # noqa: E402
from aid.sd.model.checkpoint import create_checkpoint  # noqa: E402


def made(*shape: int, seed: int, mean: float = 0.0) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + mean
    return values.to(DEVICE).requires_grad_()


def assert_alike(ours: Tensor, peer: Tensor, sides: tuple[Tensor, ...]) -> None:
    """Both and their gradients, the peer's in doubles."""
    grad = torch.randn(ours.shape, generator=torch.Generator().manual_seed(99)).to(DEVICE)
    back = torch.autograd.grad(ours, sides, grad), torch.autograd.grad(peer, sides, grad.double())
    for one, other in zip((ours, *back[0]), (peer, *back[1]), strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() <= 1e-6 * other.norm()


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("shape", [(2, 40, 9, 8, 4), (1, 64, 3, 5, 32), (2, 96, 12, 12, 32), (1, 8, 1, 1, 2)])
def test_group_norm(shape: tuple[int, ...], shifted: bool, silu: bool) -> None:
    *size, groups = shape
    x, shift = made(*size, seed=1, mean=5.0), made(*size[:2], seed=2)
    weight, bias = made(size[1], seed=3), made(size[1], seed=4)
    ours = group_norm(x, weight, bias, groups, 1e-5, shift if shifted else None, silu)
    assert ours.is_contiguous(memory_format=torch.channels_last)
    moved = x.double() + shift.double()[:, :, None, None] * shifted
    peer = nn.functional.group_norm(moved, groups, weight.double(), bias.double(), 1e-5)
    sides = (x, weight, bias, shift) if shifted else (x, weight, bias)
    assert_alike(ours, nn.functional.silu(peer) if silu else peer, sides)


@pytest.mark.parametrize("shape", [(3, 70, 48), (1, 1, 320), (5, 1280)])
def test_layer_norm(shape: tuple[int, ...]) -> None:
    x, weight, bias = made(*shape, seed=1, mean=5.0), made(shape[-1], seed=2), made(shape[-1], seed=3)
    peer = nn.functional.layer_norm(x.double(), shape[-1:], weight.double(), bias.double(), 1e-5)
    assert_alike(layer_norm(x, weight, bias, 1e-5), peer, (x, weight, bias))


@pytest.mark.parametrize("width", [48, 1280, 7])
def test_gate(width: int) -> None:
    both = made(3, 33, 2 * width, seed=1)
    value, gated = both.double().chunk(2, -1)
    assert_alike(gate(both), value * nn.functional.gelu(gated), (both,))


def test_linear() -> None:
    x, weight, bias = made(3, 41, 24, seed=1), made(70, 24, seed=2), made(70, seed=3)
    peer = nn.functional.linear(x.double(), weight.double(), bias.double())
    assert_alike(linear(x, weight, bias), peer, (x, weight, bias))


@pytest.mark.parametrize(
    "sizes", [(2, 2, 150, 77, 40), (1, 2, 64, 64, 64), (1, 3, 7, 200, 8), (1, 1, 129, 2, 16)]
)
def test_attention(sizes: tuple[int, ...]) -> None:
    pictures, heads, queries, keys, head = sizes
    sides = tuple(
        made(pictures, tokens, heads * head, seed=seed).detach().half().requires_grad_()
        for seed, tokens in enumerate((queries, keys, keys))
    )
    apart = (side.double().view(pictures, -1, heads, head).transpose(1, 2) for side in sides)
    peer = nn.functional.scaled_dot_product_attention(*apart).transpose(1, 2).flatten(2)
    ours = attention(*sides, heads)
    grad = made(*ours.shape, seed=9).detach()
    back = torch.autograd.grad(ours, sides, grad.half()), torch.autograd.grad(peer, sides, grad.double())
    for one, other in zip((ours, *back[0]), (peer, *back[1]), strict=True):
        assert one.dtype == torch.float16
        assert (one - other).norm() <= 1e-3 * other.norm()


def test_rows_that_lie_apart_become_dense() -> None:
    whole = made(2, 5, 7, 48, seed=1).detach()
    for part in (whole[..., :20], whole[..., 20:], whole[:, :, 1:4], whole.transpose(1, 2)):
        assert dense(part).is_contiguous()
        assert torch.equal(dense(part), part)


def test_plus() -> None:
    x, y, bias = made(3, 20, 7, 5, seed=1), made(3, 20, 7, 5, seed=2), made(20, seed=3)
    assert_alike(plus(x, y, bias), x.double() + y.double() + bias.double()[:, None, None], (x, y, bias))


def test_sums_are_exact_where_numbers_are_of_half_the_size() -> None:
    x = made(2, 64, 8, 8, seed=1).detach().bfloat16()
    weight, bias = made(64, seed=2), made(64, seed=3)
    with torch.autocast(DEVICE, torch.bfloat16):
        ours = group_norm(x, weight, bias, 32, 1e-5, silu=True)
    peer = nn.functional.silu(nn.functional.group_norm(x.float(), 32, weight, bias, 1e-5))
    assert ours.dtype == torch.bfloat16
    assert ((ours - peer).abs() <= 2**-7 * peer.abs() + 1e-6).all()  # the interpreter cuts off


def test_a_whole_unet_and_its_gradients() -> None:
    unet: Any = create_checkpoint(TINY, seed=1).unet.to(DEVICE, memory_format=torch.channels_last)
    chance = torch.Generator(DEVICE).manual_seed(0)
    for parameter in unet.parameters():
        parameter.data.normal_(0, 0.1, generator=chance)
    x, context = made(2, 4, 8, 8, seed=1), made(2, 77, TINY.text_width, seed=2)
    t = torch.tensor([3, 500], device=DEVICE)
    sides = (x, context, *unet.parameters())

    def passes() -> tuple[Tensor, ...]:
        predicted = unet(x, t, context).sample
        return predicted, *torch.autograd.grad(predicted.square().mean(), sides)

    expected = passes()
    layers = [(layer, fused_forward(layer)) for layer in unet.modules()]
    for layer, forward in layers:
        if forward is not None:
            layer.forward = forward
    kinds = {type(layer) for layer, forward in layers if forward is not None}
    assert {nn.GroupNorm, nn.LayerNorm, nn.Conv2d} < kinds and len(kinds) == 8
    for ours, peer in zip(passes(), expected, strict=True):
        assert (ours - peer).norm() <= 1e-4 * peer.norm() + 1e-5


def test_what_hangs_on_layers_is_heard_once() -> None:
    """As LoRA in training hangs there."""
    unet: Any = create_checkpoint(TINY, seed=1).unet.to(DEVICE, memory_format=torch.channels_last)
    heard: Counter[nn.Module] = Counter()
    layers = [layer for layer in unet.modules() if type(layer) in (nn.Linear, nn.Conv2d)]

    def doubled(layer: nn.Module, _: object, made: Tensor) -> Tensor:
        heard[layer] += 1
        return 2 * made

    for layer in layers:
        layer.register_forward_hook(doubled)
    given = made(2, 4, 8, 8, seed=1), torch.tensor(500, device=DEVICE), made(2, 77, TINY.text_width, seed=2)
    with torch.no_grad():
        expected = unet(*given).sample
        once = Counter(heard)
        for layer in unet.modules():
            if forward := fused_forward(layer):
                layer.forward = forward
        ours = unet(*given).sample
    assert len(once) == len(layers) and heard == once + once
    assert (ours - expected).norm() <= 1e-4 * expected.norm()
