"""Damaged safetensors files: header, tensors, hashes, what `inspect` and merges make of them."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import torch
from damage import SAFETENSORS
from fuzzing import Target, each, fuzz

from aid.core.lineage import lineage_of
from aid.merge.streaming.parent import open_parent
from aid.sd.file.tensorfile import is_finite, open_tensors, read_tensors, write_tensors
from aid.sd.inspection import inspect
from aid.sd.model.architecture import TINY
from aid.sd.model.vae_file import open_vae
from aid.sd.model.weights import open_weights

FILE = "model.safetensors"
PLAIN = {
    "half": torch.arange(6, dtype=torch.float16).reshape(2, 3),
    "ids": torch.arange(5).unsqueeze(0),
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 7),
    "brain": torch.ones(3, dtype=torch.bfloat16),
    "small": torch.ones(4).to(torch.float8_e4m3fn),
    "flags": torch.ones(2, dtype=torch.bool),
}
SPARSE = {  # enough to be taken for a checkpoint, and to be opened as one
    "model.diffusion_model.input_blocks.0.0.weight": torch.ones(8, 4, 1, 1),
    "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": torch.ones(3, 16),
    "first_stage_model.encoder.conv_in.weight": torch.ones(4, 3, 1, 1),
    "model_ema.decay": torch.tensor(0.5),
    "v_pred": torch.zeros(0),
}
TOLD = {
    "aid.architecture": TINY.model_dump_json(),
    "modelspec.prediction_type": "v",
    "ss_tag_frequency": '{"a": {"b": 1}}',
    "aid.lineage": '{"key": "k", "nodes": {"k": {"verb": "merge", "settings": {}, "inputs": {}}}}',
}


def content(folder: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> bytes:
    write_tensors(folder / "seed", tensors, metadata)
    return (folder / "seed").read_bytes()


def read(folder: Path) -> None:
    path = folder / FILE
    whole = "model.diffusion_model.input_blocks.0.0.weight" in read_tensors(path)
    readers = [inspect, lineage_of, read_all]
    if whole:
        readers += [open_weights, open_vae, open_as_parent]
    each(*readers)(path)


def open_as_parent(path: Path) -> None:
    with ExitStack() as open_files:
        open_parent("a", path, open_files)


def read_all(path: Path) -> None:
    stored, _ = open_tensors(path)
    for one in stored.values():
        is_finite(one.read())


def test_damaged_safetensors(tmp_path: Path) -> None:
    samples = [{FILE: content(tmp_path, PLAIN, {"a": "b"})}, {FILE: content(tmp_path, SPARSE, TOLD)}]
    fuzz(Target("safetensors", samples, read, {"": SAFETENSORS}), tmp_path / "fuzzed")
