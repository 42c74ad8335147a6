"""Attention, with gradients where they are asked for.

On a CPU each row is the same to the bit whatever is beside it. Where it was compiled with the package and the
processor has vectors of eight floats or more it is our own kernel, 1.7 to 4 times as quick as torch's at the
widths of these models; elsewhere it is torch's.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from aid.sd.attention.kernel import WIDEST, Kernel, find_kernel

FEW_SCORES = 24 << 10  # of a head, 96 KiB; more don't stay in the nearest memory


def attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """softmax(Q K^T / √width of a head) V, all [b, tokens, heads * width of a head]."""
    sides = query, key, value
    kernel = find_kernel()
    if kernel is None or not _is_taken(*sides, heads):
        return by_torch(*sides, heads)
    if torch.is_grad_enabled() and any(side.requires_grad for side in sides):
        made: Tensor = _Learning.apply(*sides, heads, kernel)  # type: ignore[no-untyped-call]
        return made
    return kernel.attend(*sides, heads)


def _is_taken(query: Tensor, key: Tensor, value: Tensor, heads: int) -> bool:
    """Whether it is for the kernel; torch does the rest, or tells what is wrong with it."""
    rows, _, whole = query.shape
    alike = key.shape == value.shape and (rows, whole) == (len(key), key.shape[2])
    fits = whole % heads == 0 and whole <= heads * WIDEST and key.numel() > 0
    return alike and fits and all(map(_is_plain, (query, key, value)))


def _is_plain(side: Tensor) -> bool:
    plain = side.is_cpu and side.dtype == torch.float32 and side.stride(2) == 1
    return plain and type(side) in (Tensor, nn.Parameter)


class _Learning(torch.autograd.Function):
    """The kernel's, with gradients. Scores are computed again for them and never kept."""

    @staticmethod
    def forward(
        context: Any, query: Tensor, key: Tensor, value: Tensor, heads: int, kernel: Kernel
    ) -> Tensor:
        ends = query.new_empty((len(query), heads, query.shape[1]))
        out = kernel.attend(query, key, value, heads, ends)
        context.save_for_backward(query, key, value, out, ends)
        context.heads, context.kernel = heads, kernel
        return out

    @staticmethod
    @once_differentiable
    def backward(context: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grads = context.kernel.attend_back(*context.saved_tensors, grad.contiguous(), context.heads)
        return *grads, None, None


def by_torch(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Few scores by plain products: that is sooner done, and threads would share out the keys of one query
    or three."""
    few = query.shape[1] * key.shape[1] <= FEW_SCORES and query.dtype == torch.float32
    seen = _by_products if few else F.scaled_dot_product_attention
    apart = (side.view(*side.shape[:2], heads, -1).transpose(1, 2) for side in (query, key, value))
    return seen(*apart).transpose(1, 2).flatten(2)


def _by_products(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """[b, heads, tokens, width of a head], all laid out alike: else one row would be multiplied otherwise
    than many."""
    batch, heads, _, width = query.shape
    query, key, value = (side.flatten(0, 1).contiguous() for side in (query, key, value))
    scores = torch.baddbmm(query.new_zeros(1), query, key.transpose(1, 2), beta=0, alpha=width**-0.5)
    return torch.bmm(scores.softmax(-1), value).view(batch, heads, *query.shape[1:])
