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
    weight, rows = layer.weight, x.numel() // x.shape[-1]
    if rows < FEWEST_ROWS or not _is_taken(x, weight, -1, torch.contiguous_format):
        return F.linear(x, weight, layer.bias)
    shape = (*x.shape[:-1], weight.shape[0])
    return _product(x, layer, kernel, Taps(1, rows, rows), shape, torch.contiguous_format)


def convolution(layer: nn.Conv2d, kernel: Kernel, x: Tensor) -> Tensor:
    """What the layer computes, x [b, width, h, w], if its weights have their channels last."""
    weight, size, padding = layer.weight, layer.kernel_size, layer.padding
    plain = layer.groups == 1 and layer.dilation == (1, 1) and layer.padding_mode == "zeros"
    if not plain or isinstance(padding, str) or x.dim() != 4 or not _is_taken(x, weight, 1, LAST):
        made: Tensor = layer._conv_forward(x, weight, layer.bias)
        return made
    pictures, _, height, width = x.shape
    taps, edges = window((pictures, height, width), size, layer.stride, padding)
    return _product(x, layer, kernel, taps, (pictures, weight.shape[0], *edges), LAST)


def _is_taken(x: Tensor, weight: Tensor, channels: int, layout: torch.memory_format) -> bool:
    """Whether it is for the kernel; torch does the rest, or tells what is wrong with it."""
    plain = x.is_cpu and x.dtype == weight.dtype == torch.float32 and type(weight) is nn.Parameter
    fits = x.shape[channels] == weight.shape[1] and x.numel() > 0
    return (
        plain and fits and weight.is_contiguous(memory_format=layout) and not torch.is_autocast_enabled("cpu")
    )


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
        out = torch.empty(shape, memory_format=layout)
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
