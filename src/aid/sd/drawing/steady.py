"""Layers each row of which is the same to the bit in any batch, on a CPU: so a picture is the same whatever
it is drawn together with. Where a batch is small torch adds up in another order, or threads share it out
otherwise; what that touches was found by comparing every layer of the U-Net (docs/experiments.md).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEWEST_ROWS = 16  # of a product; fewer have a kernel of their own
PAIR_OF_VECTORS = 32  # float32 of the widest registers
PIXELS_SHARED_OUT = 1024  # of a picture; from here on threads share a norm's sums


def steady_forward(layer: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """The layer's forward made steady; None for kinds that are so by themselves."""
    if type(layer) is nn.Linear:
        return lambda x: linear(x, layer.weight, layer.bias)
    if type(layer) is nn.GroupNorm:
        return partial(_norm, layer)
    return _silu if type(layer) is nn.SiLU else None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + b, x [..., width]."""
    rows = x.numel() // x.shape[-1]
    if rows >= FEWEST_ROWS:
        return F.linear(x, weight, bias)
    padded = F.pad(x.reshape(rows, -1), (0, 0, 0, FEWEST_ROWS - rows))
    return F.linear(padded, weight, bias)[:rows].view(*x.shape[:-1], -1)


def _norm(layer: nn.GroupNorm, x: Tensor) -> Tensor:
    alone = len(x) == 1 or x[0, 0].numel() < PIXELS_SHARED_OUT or torch.get_num_threads() == 1
    rows = [x] if alone else torch.split(x, 1)
    return _joined([F.group_norm(row, layer.num_groups, layer.weight, layer.bias, layer.eps) for row in rows])


def silu_(x: Tensor) -> Tensor:
    """In place. What is left over when threads share a tensor in pairs of vectors is computed otherwise."""
    whole = x[0].numel() % (PAIR_OF_VECTORS * torch.get_num_threads()) == 0
    for part in [x] if whole else torch.split(x, 1):
        F.silu(part, inplace=True)
    return x


def _silu(x: Tensor) -> Tensor:
    return silu_(x.clone())


def _joined(rows: list[Tensor]) -> Tensor:
    return rows[0] if len(rows) == 1 else torch.cat(rows)
