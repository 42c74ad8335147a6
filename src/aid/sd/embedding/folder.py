"""A folder of embeddings, as A1111 keeps one: what in it a model can use, and why the rest is skipped."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from aid.errors import AidError, FileError
from aid.sd.embedding.file import WEIGHTS, Embedding, load_embedding
from aid.sd.embedding.picture import PICTURES

SUFFIXES = (*WEIGHTS, *PICTURES)


@dataclass(frozen=True)
class EmbeddingFolder:
    """Embeddings by their words, the file of each, and a reason for every file that was skipped."""

    embeddings: dict[str, Embedding] = field(default_factory=dict)
    paths: dict[str, Path] = field(default_factory=dict)
    skipped: dict[Path, str] = field(default_factory=dict)


def find_embeddings(folder: Path) -> list[Path]:
    """Every file below a folder that may be an embedding: .safetensors before .pt before .bin before
    pictures, then by path. Previews (`NAME.preview.png`) are none.

    Raises FileError for a folder that isn't there.
    """
    if not folder.is_dir():
        raise FileError(f"{folder} is not a folder", "a folder of embeddings")
    found = [path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()]
    kept = [path for path in found if not path.stem.lower().endswith(".preview")]
    return sorted(kept, key=lambda path: (SUFFIXES.index(path.suffix.lower()), str(path)))


def load_embeddings(paths: Iterable[Path], width: int, width_g: int | None = None) -> EmbeddingFolder:
    """Those of `paths` that a model of these text widths can use (SDXL: also `width_g`).

    The first of several files with one word wins, so that .safetensors do; words that differ only in case
    are one, as prompts read them. Never raises for what a file holds.
    """
    folder, words = EmbeddingFolder(), dict[str, Path]()
    for path in paths:
        try:
            embedding = load_embedding(path, width, width_g)
        except AidError as error:
            folder.skipped[path] = str(error)
            continue
        if (other := words.get(embedding.name.lower())) is not None:
            folder.skipped[path] = f"{other} stands for {embedding.name} already"
            continue
        folder.embeddings[embedding.name] = embedding
        folder.paths[embedding.name] = words[embedding.name.lower()] = path
    return folder
