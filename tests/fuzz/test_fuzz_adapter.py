"""Damaged adapters: LoRA, LoHa, LoKr, DoRA, PEFT's metadata, embeddings inside, and changes applied."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from damage import SAFETENSORS, TORCH
from fuzzing import Target, each, fuzz
from torch import Tensor

from aid.sd.adapter.file import load_adapter, save_adapter
from aid.sd.inspection import inspect

NAME = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
TEXT = "lora_te_text_model_encoder_layers_0_mlp_fc1"
LARGEST = 1 << 16  # numbers of a change that is tried out


def ones(*shape: int) -> Tensor:
    return torch.full(shape, 0.5)


CONTENTS: list[tuple[dict[str, Tensor], dict[str, str]]] = [
    (
        {
            f"{NAME}.lora_down.weight": ones(2, 8),
            f"{NAME}.lora_up.weight": ones(6, 2),
            f"{NAME}.alpha": torch.tensor(1.0),
            f"{NAME}.dora_scale": ones(6, 1),
            f"{TEXT}.diff": ones(4, 4),
            f"{TEXT}.diff_b": ones(4),
        },
        {"ss_network_dim": "2", "ss_base_model_version": "sd_v1"},
    ),
    (
        {
            f"{NAME}.hada_w{half}_{side}": ones(*((6, 2) if side == "a" else (2, 8)))
            for half in "12"
            for side in "ab"
        }
        | {f"{TEXT}.lokr_w1": ones(2, 2), f"{TEXT}.lokr_w2_a": ones(3, 1), f"{TEXT}.lokr_w2_b": ones(1, 4)},
        {},
    ),
    (
        {
            "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight": ones(2, 8),
            "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_B.weight": ones(6, 2),
            "bundle_emb.word.string_to_param.*": ones(2, 8),
        },
        {
            "lora_adapter_metadata": json.dumps(
                {"unet.lora_alpha": 4, "unet.r": 2, "unet.alpha_pattern": {"to_q": 2}}
            )
        },
    ),
]


def read(folder: Path) -> None:
    each(apply_all, inspect)(next(folder.iterdir()))


def apply_all(path: Path) -> None:
    """Loaded, and each change made to a weight of its own shape."""
    adapter = load_adapter(path)
    assert isinstance(adapter.family, str) and adapter.kinds
    for change in adapter.changes.values():
        if change.shape and torch.Size(change.shape).numel() <= LARGEST and change.magnitude is None:
            assert change.applied(torch.zeros(change.shape), 0.5).shape == change.shape


def samples(folder: Path) -> Iterator[dict[str, bytes]]:
    for tensors, metadata in CONTENTS:
        save_adapter(folder / "seed.safetensors", tensors, metadata)
        yield {"style.safetensors": (folder / "seed.safetensors").read_bytes()}
    stream = io.BytesIO()
    torch.save(CONTENTS[0][0], stream)
    yield {"style.pt": stream.getvalue()}


def test_damaged_adapters(tmp_path: Path) -> None:
    mutators = {".safetensors": SAFETENSORS, "": TORCH}
    fuzz(Target("adapter", list(samples(tmp_path)), read, mutators), tmp_path / "fuzzed")
