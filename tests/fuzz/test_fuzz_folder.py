"""Damaged diffusers folders: configurations, indexes of shards, weights; opened and loaded."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import torch
from damage import BYTES, JSON, SAFETENSORS
from fuzzing import Sample, Target, fuzz

from aid.sd.model.architecture import TINY, TINY_SDXL, Architecture
from aid.sd.model.checkpoint import create_checkpoint, load_checkpoint, save_checkpoint
from aid.sd.model.weights import open_weights

NARROW = {"text_width": 4, "text_heads": 1, "text_layers": 1}
LOADED = 1, 16  # of the inputs, since building a model takes long


def sample(folder: Path, architecture: Architecture) -> Sample:
    model = create_checkpoint(architecture, seed=1)
    save_checkpoint(model, folder, {"a": "b"}, torch.float16, "diffusers")
    kept = [path for path in folder.rglob("*") if path.is_file() and "tokenizer" not in str(path)]
    return {str(path.relative_to(folder)): path.read_bytes() for path in kept}


def sharded(whole: Sample) -> Sample:
    """The same, with the U-Net behind an index."""
    weights = "unet/diffusion_pytorch_model.safetensors"
    shard = "diffusion_pytorch_model-00001-of-00001.safetensors"
    index = {"metadata": {"total_size": 1}, "weight_map": {"conv_in.weight": shard}}
    moved = {name: content for name, content in whole.items() if name != weights}
    return {**moved, f"unet/{shard}": whole[weights], f"{weights}.index.json": json.dumps(index).encode()}


def read(folder: Path) -> None:
    weights = open_weights(folder)
    for key, one in weights.whole().items():
        if "token_embedding" not in key:
            one.read()
    configurations = b"".join(path.read_bytes() for path in sorted(folder.rglob("*.json")))
    if zlib.crc32(configurations) % LOADED[1] < LOADED[0]:
        load_checkpoint(folder)


def test_damaged_folders(tmp_path: Path) -> None:
    first = sample(tmp_path / "one", TINY.model_copy(update=NARROW))
    second = sample(tmp_path / "two", TINY_SDXL.model_copy(update=NARROW))
    mutators = {".json": JSON, ".safetensors": SAFETENSORS, "": BYTES}
    target = Target(
        "folder", [first, sharded(first), second], read, mutators, memory_mb=256, cpu_seconds=20.0
    )
    fuzz(target, tmp_path / "fuzzed")
