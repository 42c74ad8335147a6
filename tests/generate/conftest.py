"""A checkpoint that heeds its prompt, an embedding, and a dataset of two styles."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from aid.core.dataset import Record
from aid.core.files import write_lines
from aid.sd.adapter.file import save_adapter
from aid.sd.embedding.file import Embedding, save_embedding
from aid.sd.model.architecture import TINY

DOWN = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
RECORDS = [  # style, tags, split
    ("alpha", ("red hair", "smile"), "train"),
    ("alpha", ("blue hair",), "train"),
    ("beta", ("red hair", "frown"), "train"),
    ("beta", ("green hair", "smile"), "train"),
    ("beta", ("black hair", "smile"), "held"),
    ("gamma (ink)", ("smile",), "train"),
    ("", ("white hair",), "train"),
]


@pytest.fixture(scope="session")
def embedding_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embeddings")
    vectors = torch.randn((2, TINY.text_width), generator=torch.Generator().manual_seed(9))
    save_embedding(Embedding("badv3", vectors), folder, {})
    return folder


@pytest.fixture(scope="session")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("loras") / "soft.safetensors"
    chance = torch.Generator().manual_seed(3)
    tensors = {
        f"{DOWN}.lora_down.weight": torch.randn((2, 8), generator=chance),
        f"{DOWN}.lora_up.weight": torch.randn((8, 2), generator=chance),
        f"{DOWN}.alpha": torch.tensor(2.0),
    }
    save_adapter(path, tensors, {})
    return path


@pytest.fixture(scope="session")
def dataset_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dataset")
    records = [
        Record(
            sha256=f"{row:064x}", source=f"in/{row}.png", file=f"pictures/{row}.webp", style=style, tags=tags,
            split=split, width=64, height=64, row=row,
        )
        for row, (style, tags, split) in enumerate(RECORDS)
    ]  # fmt: skip
    write_lines(folder / "records.jsonl", [record.model_dump(mode="json") for record in records])
    return folder
