"""A folder of embeddings, as A1111 keeps one: what in it a model can use, and why the rest is skipped."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from aid.core.release import EMBEDDING_FOLDER, MODEL_FILE
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


def embedding_files(path: Path) -> list[Path]:
    """The files of a folder that may be embeddings: a release's, an artifact's, or anyone's.

    Raises FileError for a folder without any, or that isn't there.
    """
    folder = path / EMBEDDING_FOLDER if (path / EMBEDDING_FOLDER).is_dir() else path
    if not folder.is_dir():
        raise FileError(f"{path} does not exist", "an embedding or a folder of embeddings")
    files = [file for file in find_embeddings(folder) if file.name != MODEL_FILE]
    if not files:
        raise FileError(f"{folder} holds no embedding", f"files ending in {', '.join(WEIGHTS)}")
    return files


def load_embeddings(
    paths: Iterable[Path], width: int | None = None, width_g: int | None = None
) -> EmbeddingFolder:
    """Those of `paths` that a model of these text widths can use (SDXL: also `width_g`); of any width
    without them.

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
