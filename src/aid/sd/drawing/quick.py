"""The U-Net as drawing can have it quicker than training can: the same results but for rounding. On a GPU its
calls are recorded, elsewhere its layers are exchanged, also for such as compute each row alike in any batch.

While a batch is drawn the text and the weights stay as they are, and no gradient is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.activations import GEGLU
from torch import Tensor, nn

from aid.sd.drawing.recording import recorder
from aid.sd.drawing.steady import attention, linear, steady_forward
from aid.sd.model.checkpoint import StableDiffusion

TEXTS_KEPT = 2  # of a batch, what attention made of each
VECTOR = 16  # float32 of the widest register: a row of keys that doesn't fill its last is half as fast
LARGEST_PACKED = 1 << 20  # numbers of a convolution's weights; laying out larger ones is little of their work
HAS_ONEDNN = torch._C._has_mkldnn


@contextmanager
def quick(model: StableDiffusion) -> Iterator[None]:
    """The U-Net made quick; it is as it was at the end."""
    changed: list[Any] = []
    try:
        for layer, forward in _forwards(model):
            layer.forward = forward
            changed.append(layer)
        yield
    finally:
        for layer in changed:
            del layer.forward


def _forwards(model: StableDiffusion) -> Iterator[tuple[Any, Callable[..., Any]]]:
    """What is exchanged, and for what."""
    unet, on_cpu = model.unet, model.device.type == "cpu"
    if model.device.type == "cuda":
        if "forward" not in vars(unet):
            yield unet, partial(recorder(unet).forward, unet)
        return
    for name, layer in model.unet_layers:
        if "forward" not in vars(layer) and (forward := _quick_forward(name, layer, on_cpu)):
            yield layer, forward


def _quick_forward(name: str, layer: Any, on_cpu: bool) -> Callable[..., Tensor] | None:
    if name.endswith((".attn1", ".attn2")):
        return TextAttention(layer, on_cpu) if _is_plain(layer) else None
    if on_cpu and type(layer) is GEGLU and "forward" not in vars(layer.proj):
        return GatedGelu(layer.proj)
    if on_cpu and type(layer) is nn.Conv2d and _is_packable(layer):
        return PackedConvolution(layer)
    return steady_forward(layer) if on_cpu else None


class TextAttention:
    """The forward of an attention block, without what diffusers looks up at every call. Keys and values of
    the text are computed once for all steps: they depend on the text alone. `padded`: to whole vectors."""

    def __init__(self, block: Any, padded: bool) -> None:
        self.block, self.padded = block, padded
        self.kept: list[tuple[Tensor, tuple[Tensor, Tensor, Tensor | None]]] = []

    def __call__(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, *_: object, **__: object
    ) -> Tensor:
        block = self.block
        query = _heads(block.to_q(hidden_states), block.heads)
        if encoder_hidden_states is None:
            seen = F.scaled_dot_product_attention(query, *self._project(hidden_states))
        else:
            seen = attention(query, *self._of(encoder_hidden_states))
        made: Tensor = block.to_out[0](seen.transpose(1, 2).flatten(2))
        return made

    def _of(self, context: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Key, value, and the mask of what they are padded with."""
        for known, made in self.kept:
            if known is context:
                return made
        key, value = self._project(context)
        rows = key.shape[2]
        missing = -rows % VECTOR
        mask: Tensor | None = None
        if self.padded and missing:
            key, value = (F.pad(side, (0, 0, 0, missing)) for side in (key, value))
            mask = F.pad(key.new_zeros(1, 1, 1, rows), (0, missing), value=-torch.inf)
        self.kept = [*self.kept[1 - TEXTS_KEPT :], (context, (key, value, mask))]
        return key, value, mask

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        heads = self.block.heads
        return _heads(self.block.to_k(x), heads), _heads(self.block.to_v(x), heads)


def _heads(x: Tensor, heads: int) -> Tensor:
    """[b, n, width] to [b, heads, n, width of a head]."""
    return x.view(*x.shape[:-1], heads, -1).transpose(1, 2)


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


def _is_packable(layer: nn.Conv2d) -> bool:
    """Whether `PackedConvolution` does all that the layer does, and a second copy of the weights is small."""
    plain = layer.groups == 1 and layer.dilation == (1, 1) and layer.padding_mode == "zeros"
    small = layer.weight.numel() <= LARGEST_PACKED
    return HAS_ONEDNN and plain and small and not isinstance(layer.padding, str)


def _is_plain(block: Any) -> bool:
    """Whether `TextAttention` does all that the block does."""
    norms = (block.spatial_norm, block.group_norm, block.norm_q, block.norm_k, block.norm_cross)
    scaled = block.rescale_output_factor != 1
    return not any(norms) and not block.residual_connection and not scaled
