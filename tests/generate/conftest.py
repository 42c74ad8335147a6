"""A checkpoint that heeds its prompt, an embedding, and a dataset of two styles."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from aid.core.dataset import Record
from aid.core.files import write_lines
from aid.sd.embedding.file import Embedding, save_embedding
from aid.sd.model.architecture import TINY

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
