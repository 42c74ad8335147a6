"""The U-Net made quick for drawing: on a GPU its layers are fused and its calls recorded, elsewhere they are
exchanged, also for such as compute each row alike in any batch.

While a sampler runs the text and the weights stay as they are, and no gradient is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

from diffusers.models.activations import GEGLU
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import nn

from aid.sd.drawing import layers
from aid.sd.drawing.layers import StepShares
from aid.sd.drawing.recording import recorder
from aid.sd.drawing.steady import steady_forward
from aid.sd.fusion.find import Forward, find_fusion
from aid.sd.fusion.plain import is_plain_residual
from aid.sd.model.checkpoint import StableDiffusion


def quick(model: StableDiffusion) -> AbstractContextManager[None]:
    """The U-Net made quick; it is as it was at the end."""
    return exchanged(_forwards(model))


@contextmanager
def exchanged(forwards: Iterable[tuple[Any, Forward]]) -> Iterator[None]:
    """Layers with these forwards for their own; they are as they were at the end."""
    changed: list[Any] = []
    try:
        for layer, forward in list(forwards):
            layer.forward = forward
            changed.append(layer)
        yield
    finally:
        for layer in changed:
            del layer.forward


def _forwards(model: StableDiffusion) -> Iterator[tuple[Any, Forward]]:
    """What is exchanged, and for what."""
    unet, on_cpu = model.unet, model.device.type == "cpu"
    if model.device.type == "cuda":
        if "forward" not in vars(unet):
            yield from _fused(model)
            yield unet, partial(recorder(unet).forward, unet)
        return
    timed = [layer for _, layer in model.unet_layers if _is_timed(layer)] if on_cpu else []
    shares = StepShares(timed) if timed else None
    for _, layer in model.unet_layers:
        if "forward" not in vars(layer) and (forward := _quick_forward(layer, on_cpu, shares)):
            yield layer, forward


def _fused(model: StableDiffusion) -> Iterator[tuple[Any, Forward]]:
    """What is fused on a GPU, for the recording."""
    if fused := find_fusion():
        for _, layer in model.unet_layers:
            if "forward" not in vars(layer) and (forward := fused(layer)):
                yield layer, forward


def _quick_forward(layer: Any, on_cpu: bool, shares: StepShares | None) -> Forward | None:
    """None for what keeps its own."""
    kind = type(layer)
    if kind is Attention:
        own = _is_own(layer.to_q, layer.to_k, layer.to_v, layer.to_out[0])
        return layers.TextAttention(layer) if own and layers.is_plain_attention(layer) else None
    if not on_cpu:
        return None
    if kind is Transformer2DModel:
        own = layer.is_input_continuous and _is_own(layer.proj_in, layer.proj_out)
        return layers.PixelTransformer(layer) if own else None
    if kind is BasicTransformerBlock:
        return layers.TokenBlock(layer) if layers.is_plain_block(layer) else None
    if kind is GEGLU:
        return layers.GatedGelu(layer.proj) if _is_own(layer.proj) else None
    if kind is nn.Conv2d:
        return layers.quick_convolution(layer)
    if kind is ResnetBlock2D:
        return layers.ResidualBlock(layer, shares) if shares and layer in shares.blocks else None
    return steady_forward(layer)


def _is_timed(layer: Any) -> bool:
    """Whether a residual block gets its share of the step with the others."""
    return type(layer) is ResnetBlock2D and is_plain_residual(layer) and _is_own(layer.time_emb_proj)


def _is_own(*parts: nn.Module) -> bool:
    """Whether they are called as their class has it: a LoRA in training hangs on its layer's call."""
    return not any(part._forward_hooks or "forward" in vars(part) for part in parts)
