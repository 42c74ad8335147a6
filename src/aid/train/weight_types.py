"""Weights that a training holds in half the memory: read so, so that no more is ever taken."""

from __future__ import annotations

import torch
from torch import Tensor

from aid.sd.model.checkpoint import TypeOf
from aid.train.settings import CommonSettings, FinetuneSettings

LAYERS = (torch.nn.Linear, torch.nn.Conv2d)


def frozen_types(settings: CommonSettings) -> torch.dtype | TypeOf:
    """Of a model that something is trained beside, and that stays as it is. Where the passes are in bfloat16
    so are its layers' weights, as autocast would make them at every pass: the same bits."""
    return _of_layers if settings.precision == "bf16" else torch.float32


def trained_types(settings: FinetuneSettings) -> torch.dtype | TypeOf:
    """Of a model that is trained. `adamw_bf16` rounds its weights to bfloat16; vectors (biases, norms) are
    few and stay."""
    return _of_matrices if settings.optimiser == "adamw_bf16" else torch.float32


def _of_layers(part: str, layer: torch.nn.Module, weight: Tensor) -> torch.dtype:
    return _of_matrices(part, layer, weight) if isinstance(layer, LAYERS) else torch.float32


def _of_matrices(part: str, _: torch.nn.Module, weight: Tensor) -> torch.dtype:
    return torch.bfloat16 if part != "vae" and weight.dim() > 1 else torch.float32
