"""A model's layers as they compute while it learns: by kernels of our own, with gradients."""

from __future__ import annotations

from functools import partial
from typing import Any

from diffusers.models.attention_processor import Attention
from torch import nn

from aid.sd.attention.block import attend, is_plain
from aid.sd.attention.kernel import find_kernel as find_attention
from aid.sd.fusion.find import Forward, find_fusion
from aid.sd.product.kernel import find_kernel as find_product
from aid.sd.product.product import convolution, linear


class Learning:
    """While open, layers of models compute so. What hangs on the call of a linear layer or a convolution is
    heard; drawing, outside, has forwards of its own."""

    def __init__(self, *models: nn.Module) -> None:
        layers = [layer for model in models for layer in model.modules()]
        self.forwards = {layer: forward for layer in layers if (forward := _forward(layer))}

    def __enter__(self) -> None:
        for layer, forward in self.forwards.items():
            vars(layer)["forward"] = forward  # as nn.Module sets it, which asks much of each

    def __exit__(self, *_: object) -> None:
        for layer in self.forwards:
            del vars(layer)["forward"]


def _forward(layer: nn.Module) -> Forward | None:
    """None for what keeps its own: all layers where there is no kernel for them."""
    weight = next(layer.parameters(), None)
    if weight is None or weight.is_cpu:
        return None if weight is None else _on_cpu(layer)
    fused = find_fusion() if weight.is_cuda else None
    return None if fused is None else fused(layer)


def _on_cpu(layer: Any) -> Forward | None:
    kind, kernel = type(layer), find_product()
    if kind is Attention:
        return partial(attend, layer) if find_attention() and is_plain(layer) else None
    if kernel is None or kind not in (nn.Linear, nn.Conv2d):
        return None
    return partial(linear if kind is nn.Linear else convolution, layer, kernel)
