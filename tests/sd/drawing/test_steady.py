"""Layers whose rows don't depend on the batch, for any number of threads."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from aid.sd.drawing.steady import steady_forward

LAYERS = {
    "linear, a vector a row": (nn.Linear(96, 160), (96,)),
    "linear, four positions": (nn.Linear(96, 160), (4, 96)),
    "norm": (nn.GroupNorm(8, 32), (32, 32, 32)),
    "norm of few pixels": (nn.GroupNorm(8, 32), (32, 4, 4)),
    "silu": (nn.SiLU(), (32, 33, 29)),
}


def random(*shape: int) -> Tensor:
    made = torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))
    return made.contiguous(memory_format=torch.channels_last) if made.dim() == 4 else made


def by_rows(forward: Callable[[Tensor], Tensor], x: Tensor, count: int) -> Tensor:
    return torch.cat([forward(part) for part in x.split(count)])


@torch.inference_mode()
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.usefixtures("threads")
def test_a_row_is_the_same_to_the_bit_whatever_is_beside_it(name: str) -> None:
    layer, shape = LAYERS[name]
    forward = steady_forward(layer)
    assert forward is not None
    x = random(12, *shape)
    together = forward(x)
    assert all(torch.equal(together, by_rows(forward, x, count)) for count in (1, 2, 3))
    torch.testing.assert_close(together, layer(x))


def test_kinds_that_are_steady_by_themselves_keep_their_own() -> None:
    assert steady_forward(nn.LayerNorm(8)) is None
