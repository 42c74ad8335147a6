"""The VAE's decoder for a few pictures at once on a CPU, each to the bit as torch decodes it by itself.

What torch computes otherwise in a batch is done picture by picture; the rest, most of the work, together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from aid.sd.drawing.quick import exchanged
from aid.sd.drawing.steady import PIXELS_SHARED_OUT, silu_
from aid.sd.fusion.find import Forward

TORCH: Any = torch._C


def few_at_once(vae: Any) -> AbstractContextManager[None]:
    """A float32 VAE, layers [b, c, h, w], whose `decode` gives each picture the same in any batch."""
    return exchanged(_forwards(vae))


def _forwards(vae: Any) -> Iterator[tuple[Any, Forward]]:
    decoder = vae.decoder
    yield decoder.conv_norm_out, partial(_activated, decoder.conv_norm_out)
    yield decoder.conv_act, lambda x: x
    for layer in chain(vae.post_quant_conv.modules(), decoder.modules()):
        kind = type(layer)
        if kind is nn.Conv2d:
            yield layer, partial(_convolution, layer)
        elif kind is ResnetBlock2D:
            yield layer, partial(_residual, layer)
        elif kind is Attention:
            yield layer, partial(_one_by_one, layer.forward)


def _one_by_one(call: Callable[..., Tensor], x: Tensor, **named: Any) -> Tensor:
    return torch.cat([call(picture, **named) for picture in torch.split(x, 1)])


def _convolution(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """oneDNN's are alike in any batch; a small picture alone has another of torch's."""
    weight, bias, stride, padding = layer.weight, layer.bias, layer.stride, layer.padding
    places = (stride, padding, layer.dilation, False, (0, 0), layer.groups)
    alone = TORCH._select_conv_backend(x[:1], weight, bias, *places)
    call = partial(F.conv2d, weight=weight, bias=bias, stride=stride, padding=padding)
    return call(x) if alone == TORCH._ConvBackend.Mkldnn else _one_by_one(call, x)


def _residual(block: Any, x: Tensor, temb: None = None) -> Tensor:
    """A residual block without a step, its sum made in place."""
    y = block.conv2(_activated(block.norm2, block.conv1(_activated(block.norm1, x))))
    made: Tensor = y.add_(x if block.conv_shortcut is None else block.conv_shortcut(x))
    return made


def _activated(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """SiLU of the norm. Where threads share a norm's sums, each picture has its own."""
    call = partial(F.group_norm, num_groups=norm.num_groups, weight=norm.weight, bias=norm.bias, eps=norm.eps)
    if x[0, 0].numel() < PIXELS_SHARED_OUT or torch.get_num_threads() == 1:
        return silu_(call(x))
    made = torch.empty_like(x)
    for picture, place in zip(torch.split(x, 1), torch.split(made, 1), strict=True):
        torch.ops.aten.silu.out(call(picture), out=place)
    return made
