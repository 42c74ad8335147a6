"""Every module with weights of a U-Net and of the text encoders, by diffusers' and transformers' names,
without building one: who bakes or extracts an adapter waits for neither library.

Source: diffusers' UNet2DConditionModel (CompVis 2022), transformers' CLIPTextModel. A test compares them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from aid.sd.model.architecture import Architecture

WORDS, TOKENS = 49408, 77
Shape = tuple[int, ...]


class Module(NamedTuple):
    """Its path in the part, and the shapes of its weight and bias, if it has one."""

    path: str
    shape: Shape
    bias: Shape | None


Enter = Callable[[str, int, int], Module]


def anatomy(architecture: Architecture) -> dict[str, list[Module]]:
    """Part -> its modules."""
    parts = {
        "unet": list(_unet(architecture)),
        "text_encoder": list(_text(architecture.text_width, architecture.text_layers)),
    }
    if width := architecture.text_2_width:
        parts["text_encoder_2"] = [
            *_text(width, architecture.text_2_layers),
            _linear("text_projection", width, width, bias=False),
        ]
    return parts


def _linear(path: str, width: int, inputs: int, bias: bool = True) -> Module:
    return Module(path, (width, inputs), (width,) if bias else None)


def _convolution(path: str, width: int, inputs: int, edge: int = 3) -> Module:
    return Module(path, (width, inputs, edge, edge), (width,))


def _norm(path: str, width: int) -> Module:
    return Module(path, (width,), (width,))


def _text(width: int, layers: int) -> Iterator[Module]:
    yield Module("embeddings.token_embedding", (WORDS, width), None)
    yield Module("embeddings.position_embedding", (TOKENS, width), None)
    for number in range(layers):
        layer = f"encoder.layers.{number}"
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            yield _linear(f"{layer}.self_attn.{name}", width, width)
        yield _norm(f"{layer}.layer_norm1", width)
        yield _linear(f"{layer}.mlp.fc1", 4 * width, width)
        yield _linear(f"{layer}.mlp.fc2", width, 4 * width)
        yield _norm(f"{layer}.layer_norm2", width)
    yield _norm("final_layer_norm", width)


def _unet(own: Architecture) -> Iterator[Module]:
    widths, first = own.unet_widths, own.unet_widths[0]
    yield _convolution("conv_in", first, own.unet_inputs)
    yield _linear("time_embedding.linear_1", 4 * first, first)
    yield _linear("time_embedding.linear_2", 4 * first, 4 * first)
    if own.adm_width:
        yield _linear("add_embedding.linear_1", 4 * first, own.adm_width)
        yield _linear("add_embedding.linear_2", 4 * first, 4 * first)
    skips = [first]  # the widths of what the way up is given
    last = len(widths) - 1
    for level, width in enumerate(widths):
        block = f"down_blocks.{level}"
        for number in range(2):
            yield from _resnet(own, f"{block}.resnets.{number}", width, skips[-1])
            yield from _transformer(own, f"{block}.attentions.{number}", width, own.unet_depths[level])
            skips.append(width)
        if level < last:
            yield _convolution(f"{block}.downsamplers.0.conv", width, width)
            skips.append(width)
    depth = next(depth for depth in reversed(own.unet_depths) if depth)
    yield from _resnet(own, "mid_block.resnets.0", widths[-1], widths[-1])
    yield from _transformer(own, "mid_block.attentions.0", widths[-1], depth)
    yield from _resnet(own, "mid_block.resnets.1", widths[-1], widths[-1])
    below = widths[-1]
    for number, level in enumerate(range(last, -1, -1)):
        block, width = f"up_blocks.{number}", widths[level]
        for inner in range(3):
            yield from _resnet(own, f"{block}.resnets.{inner}", width, below + skips.pop())
            yield from _transformer(own, f"{block}.attentions.{inner}", width, own.unet_depths[level])
            below = width
        if level:
            yield _convolution(f"{block}.upsamplers.0.conv", width, width)
    yield _norm("conv_norm_out", first)
    yield _convolution("conv_out", 4, first)


def _resnet(own: Architecture, path: str, width: int, inputs: int) -> Iterator[Module]:
    yield _norm(f"{path}.norm1", inputs)
    yield _convolution(f"{path}.conv1", width, inputs)
    yield _linear(f"{path}.time_emb_proj", width, 4 * own.unet_widths[0])
    yield _norm(f"{path}.norm2", width)
    yield _convolution(f"{path}.conv2", width, width)
    if width != inputs:
        yield _convolution(f"{path}.conv_shortcut", width, inputs, edge=1)


def _transformer(own: Architecture, path: str, width: int, depth: int) -> Iterator[Module]:
    """Nothing where there are no blocks."""
    enter: Enter = _linear if own.linear_projection else partial(_convolution, edge=1)
    if depth:
        yield _norm(f"{path}.norm", width)
        yield enter(f"{path}.proj_in", width, width)
    for number in range(depth):
        yield from _transformer_block(f"{path}.transformer_blocks.{number}", width, own.context_width)
    if depth:
        yield enter(f"{path}.proj_out", width, width)


def _transformer_block(path: str, width: int, context: int) -> Iterator[Module]:
    for number, inputs in enumerate((width, context), 1):
        yield _norm(f"{path}.norm{number}", width)
        yield _linear(f"{path}.attn{number}.to_q", width, width, bias=False)
        yield _linear(f"{path}.attn{number}.to_k", width, inputs, bias=False)
        yield _linear(f"{path}.attn{number}.to_v", width, inputs, bias=False)
        yield _linear(f"{path}.attn{number}.to_out.0", width, width)
    yield _norm(f"{path}.norm3", width)
    yield _linear(f"{path}.ff.net.0.proj", 8 * width, width)
    yield _linear(f"{path}.ff.net.2", width, 4 * width)
