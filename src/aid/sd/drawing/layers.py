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

from aid.sd.drawing.steady import attention, linear, silu_

TEXTS_KEPT = 2  # of a batch, what attention made of each
VECTOR = 16  # float32 of the widest register; what doesn't fill its last takes longer than what does
LARGEST_PACKED = 1 << 20  # numbers of a convolution's weights; laying out larger ones is little of their work
HAS_ONEDNN = torch._C._has_mkldnn


class FilledAttention:
    """Attention without what diffusers looks up at every call. Keys and values of the text are computed once
    for all steps: they depend on the text alone. With `filled`, what is narrower than a vector is filled up
    with zeros: heads by their weights, so that nothing is copied, and the text's last vector by masked keys.
    """

    def __init__(self, block: Any, filled: bool) -> None:
        self.heads, self.filled = block.heads, filled
        width = block.to_q.out_features // block.heads
        self.scale = width**-0.5
        missing = max(0, VECTOR - width) if filled else 0
        self.query, self.key, self.value = (
            _filled_heads(layer.weight, block.heads, missing)
            for layer in (block.to_q, block.to_k, block.to_v)
        )
        self.out = _filled_heads(block.to_out[0].weight.T, block.heads, missing).T
        self.bias = block.to_out[0].bias
        self.kept: list[tuple[Tensor, tuple[Tensor, Tensor, Tensor | None]]] = []

    def __call__(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, *_: object, **__: object
    ) -> Tensor:
        query = self._heads(hidden_states, self.query)
        if encoder_hidden_states is None:
            key, value = self._heads(hidden_states, self.key), self._heads(hidden_states, self.value)
            seen = attention(query, key, value, None, self.scale)
        else:
            seen = attention(query, *self._of(encoder_hidden_states), self.scale)
        return linear(seen.transpose(1, 2).flatten(2), self.out, self.bias)

    def _of(self, context: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Key, value, and the mask of what they are filled up with."""
        for known, made in self.kept:
            if known is context:
                return made
        key, value = self._heads(context, self.key), self._heads(context, self.value)
        rows = key.shape[2]
        missing = -rows % VECTOR
        mask: Tensor | None = None
        if self.filled and missing:
            key, value = (F.pad(side, (0, 0, 0, missing)) for side in (key, value))
            mask = F.pad(key.new_zeros(1, 1, 1, rows), (0, missing), value=-torch.inf)
        self.kept = [*self.kept[1 - TEXTS_KEPT :], (context, (key, value, mask))]
        return key, value, mask

    def _heads(self, x: Tensor, weight: Tensor) -> Tensor:
        """[b, n, width] to [b, heads, n, width of a head]."""
        made = linear(x, weight, None)
        return made.view(*made.shape[:-1], self.heads, -1).transpose(1, 2)


def _filled_heads(weight: Tensor, heads: int, missing: int) -> Tensor:
    """[heads * width of a head, n], each head with as many rows of zeros more."""
    if not missing:
        return weight
    apart = weight.reshape(heads, -1, weight.shape[1])
    return F.pad(apart, (0, 0, 0, missing)).flatten(0, 1)


def is_plain_attention(block: Any) -> bool:
    """Whether `FilledAttention` does all that the block does."""
    norms = (block.spatial_norm, block.group_norm, block.norm_q, block.norm_k, block.norm_cross)
    projections = (block.to_q, block.to_k, block.to_v)
    scaled = block.rescale_output_factor != 1 or any(layer.bias is not None for layer in projections)
    return not any(norms) and not block.residual_connection and not scaled


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


def is_plain_residual(block: Any) -> bool:
    """Whether `ResidualBlock` does all that the block does."""
    sized = block.upsample is not None or block.downsample is not None or block.output_scale_factor != 1
    timed = block.time_emb_proj is not None and block.time_embedding_norm == "default"
    return timed and not (sized or block.skip_time_act) and type(block.nonlinearity) is nn.SiLU


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
