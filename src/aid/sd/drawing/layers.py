"""Layers of the U-Net as drawing can have them quicker than training can: the same results but for rounding,
for weights that stay as they are, and no gradient. Each takes what the layer's own `forward` takes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aid.sd.attention.attention import attention
from aid.sd.attention.block import is_plain
from aid.sd.drawing.steady import linear, silu_

HAS_ONEDNN = torch._C._has_mkldnn
TEXTS_KEPT = 2  # of a batch, what attention made of each
LARGEST_PACKED = 1 << 20  # numbers of a convolution's weights; laying out larger ones is little of their work


class TextAttention:
    """Attention without what diffusers looks up at every call. Keys and values of the text are computed once
    for all steps: they depend on the text alone."""

    def __init__(self, block: Any) -> None:
        self.block = block
        self.kept: list[tuple[Tensor, tuple[Tensor, Tensor]]] = []

    def __call__(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, *_: object, **__: object
    ) -> Tensor:
        block, text = self.block, encoder_hidden_states
        key, value = self._sides(hidden_states) if text is None else self._of(text)
        seen = attention(linear(hidden_states, block.to_q.weight, None), key, value, block.heads)
        return linear(seen, block.to_out[0].weight, block.to_out[0].bias)

    def _of(self, text: Tensor) -> tuple[Tensor, Tensor]:
        for known, made in self.kept:
            if known is text:
                return made
        made = self._sides(text)
        self.kept = [*self.kept[1 - TEXTS_KEPT :], (text, made)]
        return made

    def _sides(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Key and value, [b, tokens, heads * width of a head]."""
        return linear(x, self.block.to_k.weight, None), linear(x, self.block.to_v.weight, None)


def is_plain_attention(block: Any) -> bool:
    """Whether `TextAttention` does all that the block does."""
    return is_plain(block) and all(layer.bias is None for layer in (block.to_q, block.to_k, block.to_v))


class GatedGelu:
    """x -> (W x) gelu(V x) (Shazeer 2020, GLU variants), its halves computed apart and in place: as one
    tensor cut in two, each would be read across the other."""

    def __init__(self, both: nn.Linear) -> None:
        self.both = both

    def __call__(self, x: Tensor, *_: object, **__: object) -> Tensor:
        half = self.both.out_features // 2
        weight, bias = self.both.weight, self.both.bias
        gate = torch.ops.aten.gelu_(linear(x, weight[half:], bias[half:]))
        made: Tensor = gate.mul_(linear(x, weight[:half], bias[:half]))
        return made


class TokenBlock:
    """A transformer's block, whose sums are made in place."""

    def __init__(self, block: Any) -> None:
        self.block = block

    def __call__(self, x: Tensor, encoder_hidden_states: Tensor | None = None, **_: object) -> Tensor:
        block = self.block
        x = block.attn1(block.norm1(x)).add_(x)
        x = block.attn2(block.norm2(x), encoder_hidden_states).add_(x)
        made: Tensor = block.ff(block.norm3(x)).add_(x)
        return made


def is_plain_block(block: Any) -> bool:
    """Whether `TokenBlock` does all that the block does."""
    plain = block.norm_type == "layer_norm" and block.attn2 is not None
    return plain and block.pos_embed is None and not (block.only_cross_attention or block._chunk_size)


class PixelTransformer:
    """A transformer whose tokens are the pixels as they lie with the channels last: nothing is copied."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer

    def __call__(self, x: Tensor, encoder_hidden_states: Tensor | None = None, **__: object) -> tuple[Tensor]:
        layer, (rows, _, height, width) = self.layer, x.shape
        pixels = layer.norm(x).permute(0, 2, 3, 1)
        tokens = linear(pixels.flatten(1, 2), layer.proj_in.weight.flatten(1), layer.proj_in.bias)
        for block in layer.transformer_blocks:
            tokens = block(tokens, encoder_hidden_states=encoder_hidden_states)
        tokens = linear(tokens, layer.proj_out.weight.flatten(1), layer.proj_out.bias)
        return (tokens.view(rows, height, width, -1).permute(0, 3, 1, 2).add_(x),)


class StepShares:
    """What residual blocks add of the step, [b, c, 1, 1], computed for all of them when the first asks."""

    def __init__(self, blocks: Sequence[Any]) -> None:
        self.blocks = blocks
        projections = [block.time_emb_proj for block in blocks]
        self.widths = [projection.out_features for projection in projections]
        self.weight = torch.cat([projection.weight for projection in projections])
        self.bias = torch.cat([projection.bias for projection in projections])
        self.known: Tensor | None = None
        self.shares: dict[Any, Tensor] = {}

    def of(self, block: Any, temb: Tensor) -> Tensor:
        if temb is not self.known:
            together = linear(silu_(temb.clone()), self.weight, self.bias)[:, :, None, None]
            self.known = temb
            self.shares = dict(zip(self.blocks, torch.split(together, self.widths, 1), strict=True))
        return self.shares[block]


class ResidualBlock:
    """A residual block, whose activations and sums are made in place."""

    def __init__(self, block: Any, shares: StepShares) -> None:
        self.block, self.shares = block, shares

    def __call__(self, x: Tensor, temb: Tensor) -> Tensor:
        block = self.block
        y = block.conv1(silu_(block.norm1(x))).add_(self.shares.of(block, temb))
        y = block.conv2(silu_(block.norm2(y)))
        made: Tensor = y.add_(x if block.conv_shortcut is None else block.conv_shortcut(x))
        return made


def quick_convolution(layer: nn.Conv2d) -> Callable[[Tensor], Tensor] | None:
    """None for one of which a second copy of the weights isn't small, or that does more."""
    plain = layer.groups == 1 and layer.dilation == (1, 1) and not isinstance(layer.padding, str)
    if not plain or layer.padding_mode != "zeros":
        return None
    if layer.kernel_size == (1, 1) == layer.stride and layer.padding == (0, 0):
        return partial(_pixelwise, layer)
    return PackedConvolution(layer) if HAS_ONEDNN and layer.weight.numel() <= LARGEST_PACKED else None


def _pixelwise(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """A convolution of single pixels: a product, with the channels last."""
    return linear(x.permute(0, 2, 3, 1), layer.weight.flatten(1), layer.bias).permute(0, 3, 1, 2)


class PackedConvolution:
    """A convolution whose weights oneDNN has laid out once and not at every call."""

    def __init__(self, layer: nn.Conv2d) -> None:
        self.layer = layer
        self.packed: dict[torch.Size, Tensor] = {}

    def __call__(self, x: Tensor) -> Tensor:
        layer = self.layer
        weight, bias, stride, padding = layer.weight, layer.bias, layer.stride, layer.padding
        if x.dtype != torch.float32 or weight.dtype != torch.float32:
            return F.conv2d(x, weight, bias, stride, padding)
        places = (padding, stride, layer.dilation, layer.groups)
        if x.shape not in self.packed:
            lay_out: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
            self.packed[x.shape] = lay_out(layer.weight.to_mkldnn(), *places, list(x.shape))
        operator = torch.ops.mkldnn._convolution_pointwise
        made: Tensor = operator(x, self.packed[x.shape], bias, *places, "none", [], "")
        return made
