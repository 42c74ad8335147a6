"""Layers compiled by torch, piece by piece."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D

MOST_SHAPES = 1024  # 18 of SD1's U-Net for each shape of a bucket


def compile_blocks(unet: Any) -> None:
    """Let torch compile the U-Net's residual and transformer blocks, each kind and shape once at its first
    call: the whole U-Net would take minutes. Source: PyTorch's notes on regional compilation."""
    torch._dynamo.config.recompile_limit = MOST_SHAPES
    torch._dynamo.config.accumulated_recompile_limit = MOST_SHAPES
    for layer in unet.modules():
        if isinstance(layer, (BasicTransformerBlock, ResnetBlock2D)):
            layer.compile(dynamic=False)
