"""Textual-inversion embeddings: every SD1 file that A1111 reads, and the two that AID writes.

Source: A1111 modules/textual_inversion/textual_inversion.py; kohya train_textual_inversion.py.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aid.core.files import write_bytes
from aid.core.lineage import METADATA_KEY
from aid.errors import ModelError, SettingsError
from aid.sd.embedding_picture import PICTURES, read_embedded_picture
from aid.sd.tensorfile import is_pickle, read_pickle, read_tensors, write_tensors

WEIGHTS = (".safetensors", ".pt", ".bin")
A1111_TOKEN = 265  # what A1111 stores for "*", and never reads
ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Embedding:
    """A word that isn't in the vocabulary: float32 `vectors` [n, width] stand in its place."""

    name: str
    vectors: Tensor


def load_embedding(path: Path, width: int | None = None) -> Embedding:
    """Read one embedding. Its trigger is the file's stem; only a picture's own `name` counts for more.

    Known: A1111 .pt, kohya and diffusers .safetensors/.pt/.bin of one tensor, A1111 pictures.
    Raises FileError for an unreadable or unsafe file, ModelError for another family or, where the
    model's `width` is given, another width.
    """
    name = path.stem
    if path.suffix.lower() in PICTURES:
        content = read_embedded_picture(path)
        name = str(content.get("name") or name)
    elif is_pickle(path):
        with torch.serialization.safe_globals([torch.nn.ParameterDict]):
            content = read_pickle(path)
    else:
        content = read_tensors(path)
    vectors = _vectors(content, path)
    if width is not None and vectors.shape[1] != width:
        raise ModelError(
            f"embedding {path} is {vectors.shape[1]} wide",
            f"{width}, the model's text width",
            "An embedding only works with models of the family it was trained on.",
        )
    return Embedding(name, vectors)


def save_embedding(
    embedding: Embedding,
    folder: Path,
    metadata: Mapping[str, str],
    step: int | None = None,
    checkpoint_hash: str | None = None,
    checkpoint_name: str | None = None,
) -> None:
    """Write NAME.safetensors (kohya's `emb_params`) and NAME.pt (A1111's dictionary), float32, the same
    bytes every time. `step`, hash and name of the checkpoint are what A1111 shows beside the embedding.

    Raises SettingsError for a name that can't be a file's.
    """
    name = embedding.name
    if not name.strip() or name != Path(name).name or name.startswith("."):
        raise SettingsError(f"{name!r} can't name an embedding", "a file name's stem, such as aid210")
    vectors = embedding.vectors.detach().cpu().float().clone()
    write_tensors(folder / f"{name}.safetensors", {"emb_params": vectors}, metadata)
    content = {
        "string_to_token": {"*": A1111_TOKEN},
        "string_to_param": {"*": vectors},
        "name": name,
        "step": step,
        "sd_checkpoint": checkpoint_hash,
        "sd_checkpoint_name": checkpoint_name,
    }
    write_bytes(folder / f"{name}.pt", _archive(content))


def embedding_metadata(name: str, lineage: str, negative: bool) -> dict[str, str]:
    """ModelSpec's keys for an embedding of SD1, with AID's lineage."""
    return {
        METADATA_KEY: lineage,
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-v1/textual-inversion",
        "modelspec.implementation": "diffusers",
        "modelspec.title": name,
        "modelspec.trigger_phrase": name,
        "modelspec.is_negative_embedding": "true" if negative else "false",
    }


def _vectors(content: Any, path: Path) -> Tensor:
    """The one tensor of a file's content, float32 [n, width]."""
    if isinstance(content, dict) and "string_to_param" in content:
        content = content["string_to_param"]
        content = getattr(content, "_parameters", content)  # old files hold a ParameterDict
    if not isinstance(content, Mapping):
        raise ModelError(f"{path} is not an embedding", "vectors under one name")
    if {"clip_l", "clip_g"} & content.keys():
        widths = [str(list(tensor.shape)[-1:]) for tensor in content.values() if isinstance(tensor, Tensor)]
        raise ModelError(f"{path} is an SDXL embedding, {' + '.join(widths)} wide", "one of SD1, [768] wide")
    tensors = [value for value in content.values() if isinstance(value, Tensor)]
    if len(tensors) != 1 or len(content) != 1:
        raise ModelError(f"{path} holds {len(content)} entries", "an embedding: one tensor under one name")
    vectors = tensors[0].detach().float()
    vectors = vectors.unsqueeze(0) if vectors.dim() == 1 else vectors
    if vectors.dim() != 2 or not vectors.numel():
        raise ModelError(f"{path} holds a tensor of shape {list(tensors[0].shape)}", "[vectors, width]")
    if not torch.isfinite(vectors).all():
        raise ModelError(f"{path} holds NaN or infinity", "finite vectors", "Train the embedding again.")
    return vectors


def _archive(content: dict[str, Any]) -> bytes:
    """torch.save's zip with only the records that every A1111 accepts, and without times.

    A1111 refuses a file with a record it doesn't know, and newer torch adds some.
    """
    saved, slim = io.BytesIO(), io.BytesIO()
    torch.save(content, saved)
    with zipfile.ZipFile(saved) as source, zipfile.ZipFile(slim, "w", zipfile.ZIP_STORED) as target:
        for record in source.namelist():
            folder, _, inner = record.partition("/")
            if inner in ("data.pkl", "version") or inner.startswith("data/"):
                target.writestr(zipfile.ZipInfo(f"{folder}/{inner}", ZIP_EPOCH), source.read(record))
    return slim.getvalue()
