"""A folder of embeddings: found by their stems, and what can't be used is skipped with its reason."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from aid.errors import FileError
from aid.sd.embedding.file import Embedding, save_embedding
from aid.sd.embedding.folder import find_embeddings, load_embeddings


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    deep = tmp_path / "styles" / "deep"
    deep.mkdir(parents=True)
    save_embedding(Embedding("one", torch.ones(2, 16)), tmp_path, {})
    save_embedding(Embedding("pair", torch.ones(1, 16), torch.ones(1, 24)), deep, {})
    save_embedding(Embedding("wide", torch.ones(1, 32)), deep, {})
    shutil.copy(tmp_path / "one.pt", deep / "ONE.pt")
    (deep / "broken.pt").write_bytes(b"not an embedding")
    (deep / "one.pt.optim").write_bytes(b"its optimiser")
    Image.new("RGB", (8, 8)).save(deep / "one.preview.png")
    Image.new("RGB", (8, 8)).save(deep / "photo.png")
    return tmp_path


def test_what_an_sd1_model_can_use(folder: Path) -> None:
    found = load_embeddings(find_embeddings(folder), 16)
    assert found.paths == {"one": folder / "one.safetensors"}
    assert found.embeddings["one"].vectors.shape == (2, 16)
    reasons = {path.relative_to(folder).as_posix(): reason for path, reason in found.skipped.items()}
    assert sorted(reasons) == [
        "one.pt", "styles/deep/ONE.pt", "styles/deep/broken.pt", "styles/deep/pair.pt",
        "styles/deep/pair.safetensors", "styles/deep/photo.png", "styles/deep/wide.pt",
        "styles/deep/wide.safetensors",
    ]  # fmt: skip
    assert "one.safetensors stands for one already" in reasons["one.pt"]
    assert "one.safetensors stands for ONE already" in reasons["styles/deep/ONE.pt"]
    assert "32 wide; expected 16" in reasons["styles/deep/wide.pt"]
    assert "16 + 24 (SDXL's two encoders) wide" in reasons["styles/deep/pair.pt"]
    assert "carries no embedding" in reasons["styles/deep/photo.png"]


def test_what_an_sdxl_model_can_use(folder: Path) -> None:
    assert list(load_embeddings(find_embeddings(folder), 16, 24).embeddings) == ["pair"]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="not a folder"):
        find_embeddings(tmp_path / "nowhere")
