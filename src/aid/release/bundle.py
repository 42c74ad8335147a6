"""The release's binary files: the model with its metadata, the embeddings in both formats, their hashes."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from aid.core.artifact import under_construction
from aid.core.files import CHUNK_BYTES, sha256_file
from aid.core.release import EMBEDDING_FOLDER
from aid.errors import FileError, SettingsError
from aid.release.settings import ReleaseSettings
from aid.sd.embedding.file import embedding_metadata, load_embedding, save_embedding
from aid.sd.file.tensorfile import is_pickle, read_header
from aid.sd.model.architecture import Architecture
from aid.sd.model.metadata import architecture_name

FORMATS = (".safetensors", ".pt")


@dataclass(frozen=True)
class FileHash:
    """A file of the release. `tensors` is the sha256 of what follows a safetensors header, else empty."""

    name: str
    size_bytes: int
    sha256: str
    tensors: str = ""


@dataclass(frozen=True)
class ReleasedEmbedding:
    """An embedding as the card tells of it."""

    name: str
    vectors: int
    negative: bool


def release_embeddings(
    settings: ReleaseSettings, paths: Iterable[Path], out: Path, architecture: Architecture
) -> tuple[ReleasedEmbedding, ...]:
    """Put every embedding into `embeddings/`, each as .safetensors and .pt; files given are copied as they
    are, a missing format is made from the other. `architecture` is the model's.

    Raises ModelError for an embedding of another width, SettingsError for two of one name.
    """
    found: dict[str, dict[str, Path]] = {}
    for path in paths:
        for stem, files in _embedding_files(path).items():
            if stem in found:
                raise SettingsError(f"two embeddings are called {stem}", "one of each name")
            found[stem] = files
    folder = out / EMBEDDING_FOLDER
    widths = architecture.text_width, architecture.text_2_width or None
    released = []
    for stem, files in sorted(found.items()):
        loaded = [load_embedding(path, *widths) for path in files.values()]
        folder.mkdir(exist_ok=True)
        is_negative = _says_negative(files) or stem == settings.parameters.negative_embedding
        if not files.keys() >= set(FORMATS):
            lineage, family = under_construction(out).embedded(), architecture_name(architecture)
            metadata = embedding_metadata(stem, lineage, is_negative, family)
            save_embedding(replace(loaded[0], name=stem), folder, metadata)
        for suffix in files.keys() & set(FORMATS):
            shutil.copyfile(files[suffix], folder / f"{stem}{suffix}")
        released.append(ReleasedEmbedding(stem, len(loaded[0].vectors), is_negative))
    return tuple(released)


def embedding_files(embeddings: Iterable[ReleasedEmbedding]) -> list[str]:
    """Their paths inside the release."""
    return [f"{EMBEDDING_FOLDER}/{one.name}{suffix}" for one in embeddings for suffix in FORMATS]


def hash_files(out: Path, names: Iterable[str]) -> tuple[FileHash, ...]:
    """Sizes and hashes of files in the release."""
    return tuple(_hash(out / name, name) for name in names)


def _embedding_files(path: Path) -> dict[str, dict[str, Path]]:
    """Stem -> suffix -> file: those directly in an artifact's folder, or the one file of any format."""
    if not path.is_dir():
        return {path.stem: {path.suffix: path}}
    found: dict[str, dict[str, Path]] = {}
    for file in sorted(path.iterdir()):
        if file.is_file() and file.suffix in FORMATS:
            found.setdefault(file.stem, {})[file.suffix] = file
    if not found:
        raise FileError(
            f"{path} holds no embedding",
            "a .safetensors or .pt file, or a folder with one",
            "Check the path.",
        )
    return found


def _says_negative(files: Mapping[str, Path]) -> bool:
    path = files.get(".safetensors")
    if path is None or is_pickle(path):
        return False
    return read_header(path).metadata.get("modelspec.is_negative_embedding", "").lower() == "true"


def _hash(path: Path, name: str) -> FileHash:
    tensors = _hash_from(path, read_header(path).data_start) if path.suffix == ".safetensors" else ""
    return FileHash(name, path.stat().st_size, sha256_file(path), tensors)


def _hash_from(path: Path, start: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        stream.seek(start)
        while piece := stream.read(CHUNK_BYTES):
            digest.update(piece)
    return digest.hexdigest()
