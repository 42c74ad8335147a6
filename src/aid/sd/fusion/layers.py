"""Layers on a GPU: what torch does in many passes done in one or two, with gradients, and the same but for
rounding. Each forward takes what the layer's own takes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.activations import GEGLU
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn

from aid.sd.attention.attention import by_torch
from aid.sd.attention.block import attend, is_plain
from aid.sd.fusion.attention import attention, is_taken
from aid.sd.fusion.group_norm import group_norm
from aid.sd.fusion.plain import is_plain_residual
from aid.sd.fusion.rows import gate, layer_norm, linear, plus


def fused_forward(layer: Any) -> Callable[..., Any] | None:
    """None for what keeps its own."""
    kind = type(layer)
    if kind is nn.GroupNorm and layer.affine:
        return partial(_normed, layer)
    if kind is nn.LayerNorm and layer.elementwise_affine and layer.bias is not None:
        return lambda x: layer_norm(x, layer.weight, layer.bias, layer.eps)
    if kind is nn.Conv2d and _is_pixelwise(layer):
        return lambda x: _pixelwise(x, layer.weight, layer.bias)
    if kind is nn.Linear and layer.bias is not None:
        return lambda x: linear(x, layer.weight, layer.bias)
    if kind is GEGLU:
        return lambda x: gate(layer.proj(x))
    if kind is Attention:
        return partial(attend, layer, seen=_seen) if is_plain(layer) else None
    if kind is Transformer2DModel:
        return partial(transformer, layer) if layer.is_input_continuous else None
    return partial(residual, layer) if kind is ResnetBlock2D and is_plain_residual(layer) else None


def residual(block: Any, x: Tensor, temb: Tensor) -> Tensor:
    """A residual block. Its convolutions' biases go with the sums that follow them."""
    y, bias = _apart(block.conv1, _normed(block.norm1, x, silu=True))
    share = block.time_emb_proj(F.silu(temb))
    y = _normed(block.norm2, y, share if bias is None else share + bias, silu=True)
    y, bias = _apart(block.conv2, y)
    if block.conv_shortcut is not None:
        x, other = _apart(block.conv_shortcut, x)
        bias = other if bias is None else bias if other is None else bias + other
    return x + y if bias is None else plus(x, y, bias)


def transformer(
    layer: Any,
    x: Tensor,
    encoder_hidden_states: Tensor | None = None,
    attention_mask: Tensor | None = None,
    encoder_attention_mask: Tensor | None = None,
    return_dict: bool = True,
    **words: Any,
) -> Any:
    """A transformer whose tokens are the pixels as they lie with the channels last: nothing is copied."""
    if return_dict or attention_mask is not None or encoder_attention_mask is not None:
        masks = {"attention_mask": attention_mask, "encoder_attention_mask": encoder_attention_mask}
        return type(layer).forward(layer, x, encoder_hidden_states, return_dict=return_dict, **masks, **words)
    apart = not layer.use_linear_projection  # a convolution of single pixels, for the projections
    tokens = layer.norm(x)
    tokens = layer.proj_in(tokens).permute(0, 2, 3, 1) if apart else layer.proj_in(tokens.permute(0, 2, 3, 1))
    pixels, tokens = tokens.shape[1:3], tokens.flatten(1, 2)
    for block in layer.transformer_blocks:
        if layer.gradient_checkpointing and torch.is_grad_enabled():
            recompute = layer._gradient_checkpointing_func
            tokens = recompute(block, tokens, None, encoder_hidden_states)
        else:
            tokens = block(tokens, encoder_hidden_states=encoder_hidden_states)
    tokens = tokens.unflatten(1, pixels)
    made = layer.proj_out(tokens.permute(0, 3, 1, 2)) if apart else layer.proj_out(tokens).permute(0, 3, 1, 2)
    return (made + x,)


def _normed(norm: nn.GroupNorm, x: Tensor, shift: Tensor | None = None, silu: bool = False) -> Tensor:
    return group_norm(x, norm.weight, norm.bias, norm.num_groups, norm.eps, shift, silu)


def _apart(layer: nn.Conv2d, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """A convolution without its bias, and the bias. A layer on whose call something hangs keeps it."""
    if layer._forward_hooks or layer._forward_pre_hooks:
        return layer(x), None
    if _is_pixelwise(layer):
        return _pixelwise(x, layer.weight), layer.bias
    return F.conv2d(x, layer.weight, None, layer.stride, layer.padding), layer.bias


def _is_pixelwise(layer: nn.Conv2d) -> bool:
    return layer.kernel_size == (1, 1) == layer.stride and layer.padding == (0, 0) and layer.groups == 1


def _pixelwise(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A convolution of single pixels: a product, with the channels last."""
    pixels, weight = x.permute(0, 2, 3, 1), weight.flatten(1)
    made = F.linear(pixels, weight) if bias is None else linear(pixels, weight, bias)
    return made.permute(0, 3, 1, 2)


def _seen(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Ours only for its gradients' sake: without them torch's is quicker, and doesn't vary."""
    learns = any(side.requires_grad for side in (query, key, value))
    taken = learns and is_taken(query, heads)
    return attention(query, key, value, heads) if taken else by_torch(query, key, value, heads)
