"""Products with wide weights by oneDNN, with gradients. torch asks MKL for them, which is made for Intel's
processors and takes twice as long on others."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

HAS_ONEDNN = torch._C._has_mkldnn
LEAST = 1 << 22  # multiplications of a product; a smaller one is sooner done than asked for
WIDE = 1 << 15  # numbers of a weight; narrower ones aren't worth looking at


class Products:
    """While open, wide linear layers of models on the CPU compute by oneDNN, gradients too. What hangs on a
    layer's call is heard; drawing, outside, has forwards of its own."""

    def __init__(self, *models: nn.Module) -> None:
        layers = [layer for model in models for layer in model.modules()] if HAS_ONEDNN else []
        linears = [layer for layer in layers if type(layer) is nn.Linear]
        self.layers = [one for one in linears if one.weight.is_cpu and one.weight.numel() >= WIDE]

    def __enter__(self) -> None:
        for layer in self.layers:
            layer.forward = partial(linear, layer)  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        for layer in self.layers:
            del layer.forward


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """What the layer computes, x [..., width]; what is small or isn't float32 on the CPU by torch as ever."""
    weight, bias = layer.weight, layer.bias
    plain = x.is_cpu and x.dtype == weight.dtype == torch.float32 and type(weight) is nn.Parameter
    if not plain or x.numel() * len(weight) < LEAST or torch.is_autocast_enabled("cpu"):
        return F.linear(x, weight, bias)
    made: Tensor = _Product.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return made


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        context.save_for_backward(x if context.needs_input_grad[1] else None, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(context: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = context.saved_tensors
        of_x, of_weight, of_bias = context.needs_input_grad
        rows = grad.flatten(0, -2)
        return (
            _product(grad, weight.t()) if of_x else None,
            _product(rows.t(), x.flatten(0, -2).t()) if of_weight else None,
            rows.sum(0) if of_bias else None,
        )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b."""
    made: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return made
