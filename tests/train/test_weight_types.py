"""Weights are read in the type in which a training holds them."""

from __future__ import annotations

from pathlib import Path

import torch

from aid.sd.model.checkpoint import load_checkpoint
from aid.train.settings import FinetuneSettings, LoraSettings
from aid.train.weight_types import frozen_types, trained_types


def test_matrices_alone_are_halved_and_not_the_vaes(lively_checkpoint: Path) -> None:
    rounded = FinetuneSettings(steps=1, optimiser="adamw_bf16", precision="bf16")
    whole, light = (
        load_checkpoint(lively_checkpoint),
        load_checkpoint(lively_checkpoint, dtype=trained_types(rounded)),
    )
    for part, module in light.parts().items():
        for name, weight in module.named_parameters():
            halved = part != "vae" and weight.dim() > 1
            expected = whole.parts()[part].get_parameter(name).to(torch.bfloat16 if halved else torch.float32)
            assert weight.dtype == expected.dtype and torch.equal(weight, expected), name


def test_beside_a_lora_words_stay_as_they_are_for_autocast_leaves_them(lively_checkpoint: Path) -> None:
    light = load_checkpoint(lively_checkpoint, dtype=frozen_types(LoraSettings(steps=1, precision="bf16")))
    types = {name: weight.dtype for name, weight in light.text_encoder.named_parameters()}
    words = {name for name, kind in types.items() if "embedding" in name}
    assert words and all(types[name] == torch.float32 for name in words)
    assert torch.bfloat16 in types.values()
