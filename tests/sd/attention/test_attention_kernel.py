"""Attention in the kernel and in torch: what doubles give, and a row the same beside any other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from aid.sd.attention.attention import attention, by_torch
from aid.sd.attention.kernel import WIDEST, Kernel, find_kernel
from aid.sd.model.architecture import TINY
from aid.sd.model.checkpoint import create_checkpoint
from aid.sd.model.learning import Learning

Attend = Callable[[Tensor, Tensor, Tensor, int], Tensor]


def kernels() -> list[Kernel]:
    """For every width of vectors that this machine has. Empty where there is no compiler."""
    kernel = find_kernel()
    return [kernel._replace(lanes=lanes) for lanes in (8, 16) if lanes <= kernel.lanes] if kernel else []


WAYS: dict[str, Attend] = {
    "torch": by_torch,
    **{f"vectors of {kernel.lanes}": kernel.attend for kernel in kernels()},
}


NEEDS_KERNEL = pytest.mark.skipif(find_kernel() is None, reason="elsewhere torch attends")
NEEDS_VECTORS = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"), reason="elsewhere torch attends"
)


def sides(rows: int, queries: int, keys: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(queries)
    query, key, value = (
        torch.randn((rows, tokens, width), generator=generator) for tokens in (queries, keys, keys)
    )
    return 3 * query, key, value


def exact(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """By torch, in doubles."""
    apart = (side.double().unflatten(2, (heads, -1)).transpose(1, 2) for side in (query, key, value))
    return F.scaled_dot_product_attention(*apart).transpose(1, 2).flatten(2)


@NEEDS_VECTORS
def test_the_kernel_was_built_and_is_used() -> None:
    assert len(WAYS) > 1
    given_sides = sides(2, 40, 77, 16)
    widest = list(WAYS.values())[-1]
    assert torch.equal(attention(*given_sides, 2), widest(*given_sides, 2))


@pytest.mark.parametrize("way", WAYS)
@given(
    rows=st.integers(1, 3), heads=st.integers(1, 3), width=st.integers(1, 80) | st.just(WIDEST),
    queries=st.integers(1, 70), keys=st.integers(1, 300),
)  # fmt: skip
def test_it_is_what_doubles_give(
    way: str, rows: int, heads: int, width: int, queries: int, keys: int
) -> None:
    found = sides(rows, queries, keys, heads * width)
    seen, expected = WAYS[way](*found, heads), exact(*found, heads)
    assert (seen - expected).abs().max() < 1e-5 * max(1, width**0.5)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("queries", [1, 2, 3, 4, 100])
@pytest.mark.usefixtures("threads")
@torch.inference_mode()
def test_a_row_is_the_same_to_the_bit_whatever_is_beside_it(way: str, queries: int) -> None:
    query, key, value = sides(6, queries, 77, 8 * 16)
    together = WAYS[way](query, key, value, 8)
    apart = zip(query.split(1), key.split(1), value.split(1), strict=True)
    assert torch.equal(together, torch.cat([WAYS[way](*part, 8) for part in apart]))


@pytest.mark.parametrize("way", WAYS)
def test_sides_may_lie_apart_and_be_shared(way: str) -> None:
    """As slices of one product, and as one text for all rows."""
    whole, text = sides(3, 20, 9, 3 * 24)[:2]
    query, key, _ = whole.chunk(3, 2)
    text = text[:1, :, :24].expand(3, -1, -1)
    for given_sides in ((query, key, key), (query, text, text)):
        plain = [side.contiguous() for side in given_sides]
        torch.testing.assert_close(WAYS[way](*given_sides, 2), WAYS[way](*plain, 2))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FC00001, 0x7FFFFFFF, 0x7F800000])
def test_what_is_broken_stays_visible_and_where_it_is(way: str, bits: int) -> None:
    """NaN of any kind, and infinity."""
    query, key, value = sides(2, 20, 77, 32)
    sound = WAYS[way](query, key, value, 2)
    query[0, 3, 0] = torch.tensor(bits, dtype=torch.int32).view(torch.float32)
    seen = WAYS[way](query, key, value, 2)
    assert not seen[0, 3, :16].isfinite().any()
    seen[0, 3, :16] = sound[0, 3, :16]
    torch.testing.assert_close(seen, sound)


@pytest.mark.parametrize("way", WAYS)
def test_keys_infinitely_far_weigh_nothing_unless_all_are(way: str) -> None:
    query, key, value = (side.abs() for side in sides(1, 20, 300, 8))
    key[0, :200] = -torch.inf
    torch.testing.assert_close(
        WAYS[way](query, key, value, 1), WAYS[way](query, key[:, 200:], value[:, 200:], 1)
    )
    key[:] = -torch.inf
    assert WAYS[way](query, key, value, 1).isnan().all()


@pytest.mark.parametrize("way", WAYS)
def test_scores_of_any_size_are_no_trouble(way: str) -> None:
    """The highest comes last, so all sums so far count for nothing, and first, so the rest does."""
    query, key, value = sides(1, 20, 300, 8)
    key[0, 299], query[:, :, :] = 400.0, 4.0
    torch.testing.assert_close(WAYS[way](query, key, value, 1), value[:, 299:].expand(1, 20, 8))
    found = query, key.flip(1), value.flip(1)
    torch.testing.assert_close(WAYS[way](*found, 1), value[:, 299:].expand(1, 20, 8))


@pytest.mark.parametrize(
    "shapes",
    [
        ((2, 3, 8), (1, 9, 8), (1, 9, 8)),
        ((2, 3, 8), (2, 9, 4), (2, 9, 4)),
        ((2, 3, 8), (2, 9, 8), (2, 1, 8)),
        ((2, 3, 8), (3, 9, 8), (3, 9, 8)),
        ((1, 3, 10), (1, 9, 10), (1, 9, 10)),
    ],
)
def test_what_does_not_fit_together_is_an_error(shapes: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(RuntimeError):
        attention(*(torch.ones(shape) for shape in shapes), heads=4)  # type: ignore[misc]


def test_other_formats_and_wider_heads_go_by_torch() -> None:
    found = sides(2, 12, 12, 2 * WIDEST + 2)
    assert torch.equal(attention(*found, 2), by_torch(*found, 2))
    half: Any = [side.bfloat16() for side in found]
    assert torch.equal(attention(*half, 2), by_torch(*half, 2))


def learnt(attend: Attend, given_sides: Sequence[Tensor], heads: int, grad: Tensor) -> list[Tensor]:
    """What comes out, and the gradients of what went in."""
    leaves = [side.detach().requires_grad_() for side in given_sides]
    out = attend(*leaves, heads)  # type: ignore[call-arg]
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


@given(
    rows=st.integers(1, 2), heads=st.integers(1, 3), width=st.integers(1, 48) | st.just(WIDEST),
    queries=st.integers(1, 200), keys=st.integers(1, 200),
)  # fmt: skip
def test_gradients_are_what_doubles_give(rows: int, heads: int, width: int, queries: int, keys: int) -> None:
    found = sides(rows, queries, keys, heads * width)
    grad = torch.randn(found[0].shape, generator=torch.Generator().manual_seed(3))
    expected = learnt(exact, [side.double() for side in found], heads, grad.double())
    for kernel in kernels():
        with patch("aid.sd.attention.attention.find_kernel", lambda kernel=kernel: kernel):
            for ours, other in zip(learnt(attention, found, heads, grad), expected, strict=True):
                assert (ours - other).abs().max() < 2e-5 * max(1.0, other.abs().max().item())


def test_gradients_of_huge_scores_stay_within_bounds_and_second_ones_are_refused() -> None:
    query, key, value = sides(1, 200, 77, 64)
    for kernel in kernels():
        with patch("aid.sd.attention.attention.find_kernel", lambda kernel=kernel: kernel):
            *_, of_value = learnt(attention, (1e8 * query, key, value), 1, torch.ones_like(query))
            assert of_value.max() <= 200
            leaf = query.clone().requires_grad_()
            (first,) = torch.autograd.grad(attention(leaf, key, value, 1).sum(), leaf, create_graph=True)
            with pytest.raises(RuntimeError):
                torch.autograd.grad(first.sum(), leaf)


@NEEDS_KERNEL
@pytest.mark.usefixtures("threads")
def test_gradients_are_the_same_to_the_bit_by_any_number_of_threads() -> None:
    found = sides(3, 100, 77, 4 * 16)
    made = learnt(attention, found, 4, found[0])
    torch.set_num_threads(1)
    assert all(map(torch.equal, made, learnt(attention, found, 4, found[0])))


@NEEDS_KERNEL
def test_a_unet_learns_what_it_would_with_diffusers_attention() -> None:
    """Where a layer that others hang on, as a LoRA does, is heard."""
    unet = create_checkpoint(TINY, seed=2).unet
    for parameter in unet.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(4))
    unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2.to_k.register_forward_hook(
        lambda layer, told, made: 2 * made
    )
    x = torch.randn((2, 4, 16, 16), generator=torch.Generator().manual_seed(1))
    text = torch.randn((2, 77, unet.config.cross_attention_dim), generator=torch.Generator().manual_seed(5))

    def gradients() -> list[Tensor]:
        unet.zero_grad()
        unet(x, torch.tensor(300.0), text).sample.square().sum().backward()
        return [parameter.grad.clone() for parameter in unet.parameters()]

    expected = gradients()
    blocks = [module for module in unet.modules() if type(module) is Attention]
    with Learning(unet):
        assert all("forward" in vars(block) for block in blocks)
        made = gradients()
    for ours, other in zip(made, expected, strict=True):
        assert (ours - other).abs().max() < 1e-4 * max(other.abs().max().item(), 1e-3)
