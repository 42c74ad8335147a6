"""Linear layers and convolutions in training, by a kernel of our own with gradients: twice as quick as torch,
which asks MKL for most of them, and no slower than oneDNN at any size."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from aid.sd.product.kernel import Kernel
from aid.sd.product.taps import Taps, window

FEWEST_ROWS = 4  # fewer read the weights just as often, and torch has a kernel for one
LAST = torch.channels_last


def linear(layer: nn.Linear, kernel: Kernel, x: Tensor) -> Tensor:
    """What the layer computes, x [..., width]."""
    taken = _is_taken(x, layer, -1, torch.contiguous_format)
    if not taken or (rows := x.numel() // x.shape[-1]) < FEWEST_ROWS:
        return F.linear(x, layer.weight, layer.bias)
    shape = (*x.shape[:-1], layer.weight.shape[0])
    return _product(x, layer, kernel, Taps(1, rows, rows), shape, torch.contiguous_format)


def convolution(layer: nn.Conv2d, kernel: Kernel, x: Tensor) -> Tensor:
    """What the layer computes, x [b, width, h, w], if its weights have their channels last."""
    padding = layer.padding
    plain = layer.groups == 1 and layer.dilation == (1, 1) and layer.padding_mode == "zeros"
    if plain and not isinstance(padding, str) and x.dim() == 4 and _is_taken(x, layer, 1, LAST):
        pictures, _, height, width = x.shape
        taps, edges = window((pictures, height, width), layer.kernel_size, layer.stride, padding)
        if taps.rows:
            return _product(x, layer, kernel, taps, (pictures, layer.weight.shape[0], *edges), LAST)
    made: Tensor = layer._conv_forward(x, layer.weight, layer.bias)
    return made


def _is_taken(x: Tensor, layer: nn.Linear | nn.Conv2d, channels: int, layout: torch.memory_format) -> bool:
    """Whether it is for the kernel; torch does the rest, or tells what is wrong with it."""
    weight, bias = layer.weight, layer.bias
    plain = x.is_cpu and x.dtype == weight.dtype == torch.float32 and type(weight) is nn.Parameter
    fits = x.shape[channels] == weight.shape[1] and min(x.numel(), weight.numel()) > 0
    laid = weight.is_contiguous(memory_format=layout) and (bias is None or _is_laid(bias))
    return plain and fits and laid and not torch.is_autocast_enabled("cpu")


def _is_laid(bias: Tensor) -> bool:
    return bias.dtype == torch.float32 and bias.is_contiguous()


def _product(
    x: Tensor,
    layer: nn.Linear | nn.Conv2d,
    kernel: Kernel,
    taps: Taps,
    shape: tuple[int, ...],
    layout: torch.memory_format,
) -> Tensor:
    asked = kernel, taps, shape, layout
    made: Tensor = _Product.apply(x.contiguous(memory_format=layout), layer.weight, layer.bias, asked)  # type: ignore[no-untyped-call]
    return made


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor, bias: Tensor | None, asked: Any) -> Tensor:
        kernel, taps, shape, layout = asked
        out = torch.empty(shape, dtype=x.dtype, memory_format=layout)
        kernel.multiply(x, weight, bias, out, taps)
        context.save_for_backward(x, weight)
        context.asked = asked
        return out

    @staticmethod
    @once_differentiable
    def backward(context: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight), (kernel, taps, _, layout) = context.saved_tensors, context.asked
        of_x, of_weight, of_bias, _ = context.needs_input_grad
        grads = (
            torch.empty_like(x) if of_x else None,
            torch.empty_like(weight) if of_weight else None,
            grad.new_empty(weight.shape[0]) if of_bias else None,
        )
        kernel.multiply_back(x, weight, grad.contiguous(memory_format=layout), grads, taps)
        return *grads, None
