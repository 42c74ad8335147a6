"""Textual-inversion embeddings: every file that A1111 reads, and the two that AID writes.

Source: A1111 modules/textual_inversion/textual_inversion.py; kohya train_textual_inversion.py and
sdxl_train_textual_inversion.py. Folders of them: `embedding_folder`.
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
from aid.sd.embedding.picture import PICTURES, read_embedded_picture
from aid.sd.file.pickled import read_pickle
from aid.sd.file.tensorfile import is_finite, is_pickle, read_tensors, require_plain, write_tensors
from aid.sd.model.metadata import ModelSpec
from aid.sd.picture.infotext import encodable

WEIGHTS = (".safetensors", ".pt", ".bin")
ONE, PAIR = "emb_params", ("clip_l", "clip_g")  # kohya's tensor, and SDXL's two
A1111_TOKEN = 265  # what A1111 stores for "*", and never reads
ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Embedding:
    """A word that isn't in the vocabulary: float32 `vectors` [n, width] stand in its place.

    SDXL has two text encoders: `vectors` are CLIP-L's [n, 768], `vectors_g` bigG's [n, 1280].
    """

    name: str
    vectors: Tensor
    vectors_g: Tensor | None = None

    def is_like(self, other: Embedding) -> bool:
        """Whether both are the same vectors, whatever their names."""
        pairs = ((self.vectors, other.vectors), (self.vectors_g, other.vectors_g))
        return all(
            one is two or (one is not None and two is not None and torch.equal(one, two))
            for one, two in pairs
        )


def load_embedding(path: Path, width: int | None = None, width_g: int | None = None) -> Embedding:
    """Read one embedding. Its trigger is the file's stem; only a picture's own `name` counts for more.

    Known: A1111 .pt, kohya and diffusers .safetensors/.pt/.bin of one tensor, SDXL's pairs of `clip_l`
    and `clip_g`, A1111 pictures. Raises FileError for an unreadable or unsafe file, ModelError for
    another family or, where the model's `width` is given (SDXL: and `width_g`), another width.
    """
    name = path.stem
    if path.suffix.lower() in PICTURES:
        content = read_embedded_picture(path)
        name = encodable(str(content.get("name") or name))
    elif is_pickle(path):
        with torch.serialization.safe_globals([torch.nn.ParameterDict]):
            content = read_pickle(path)
    else:
        content = read_tensors(path)
    embedding = read_embedding(content, name, path)
    if width is not None:
        require_widths(embedding, width, width_g, path)
    return embedding


def read_embedding(content: Any, name: str, path: Path) -> Embedding:
    """The embedding in a file's content, in the order A1111 looks: its own dictionary, an SDXL pair, one
    tensor under any name. Raises ModelError for anything else."""
    if isinstance(content, dict) and "string_to_param" in content:
        content = content["string_to_param"]
        content = getattr(content, "_parameters", content)  # old files hold a ParameterDict
    if not isinstance(content, Mapping):
        raise ModelError(f"{path} is not an embedding", "vectors under one name")
    if content.keys() >= set(PAIR):
        vectors, vectors_g = (_vectors(content[key], path) for key in PAIR)
        if len(vectors) != len(vectors_g):
            raise ModelError(f"{path} holds {len(vectors)} vectors of CLIP-L and {len(vectors_g)} of bigG")
        return Embedding(name, vectors, vectors_g)
    tensors = [value for value in content.values() if isinstance(value, Tensor)]
    if len(tensors) != 1 or len(content) != 1:
        raise ModelError(f"{path} holds {len(content)} entries", "an embedding: one tensor under one name")
    return Embedding(name, _vectors(tensors[0], path))


def require_widths(embedding: Embedding, width: int, width_g: int | None, path: Path) -> None:
    """Raises ModelError if a model of these text widths can't read the embedding."""
    found = _widths(embedding)
    expected = (width,) if width_g is None else (width, width_g)
    if found == expected:
        return
    raise ModelError(
        f"embedding {path} is {_words(found)} wide",
        f"{_words(expected)}, the model's text width",
        "An embedding only works with models of the family it was trained on.",
    )


def _widths(embedding: Embedding) -> tuple[int, ...]:
    parts = (embedding.vectors, embedding.vectors_g)
    return tuple(part.shape[1] for part in parts if part is not None)


def _words(widths: tuple[int, ...]) -> str:
    return " + ".join(map(str, widths)) + (" (SDXL's two encoders)" if len(widths) > 1 else "")


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
    A pair of SDXL has no place in A1111's dictionary: both files hold `clip_l` and `clip_g`.

    Raises SettingsError for a name that can't be a file's.
    """
    name = embedding.name
    if not name.strip() or name != Path(name).name or name.startswith("."):
        raise SettingsError(f"{name!r} can't name an embedding", "a file name's stem, such as aid210")
    tensors = embedding_tensors(embedding)
    write_tensors(folder / f"{name}.safetensors", tensors, metadata)
    if embedding.vectors_g is not None:
        write_bytes(folder / f"{name}.pt", _archive(tensors))
        return
    content = {
        "string_to_token": {"*": A1111_TOKEN},
        "string_to_param": {"*": tensors[ONE]},
        "name": name,
        "step": step,
        "sd_checkpoint": checkpoint_hash,
        "sd_checkpoint_name": checkpoint_name,
    }
    write_bytes(folder / f"{name}.pt", _archive(content))


def embedding_tensors(embedding: Embedding) -> dict[str, Tensor]:
    """As a .safetensors file holds them, float32."""
    if embedding.vectors_g is None:
        return {ONE: _stored(embedding.vectors)}
    return dict(zip(PAIR, map(_stored, (embedding.vectors, embedding.vectors_g)), strict=True))


def embedding_metadata(
    name: str, lineage: str, negative: bool, architecture: str = "stable-diffusion-v1"
) -> dict[str, str]:
    """ModelSpec's keys for an embedding, with AID's lineage. `architecture` is ModelSpec's word for the
    model, such as stable-diffusion-xl-v1-base."""
    spec = ModelSpec(
        architecture=f"{architecture}/textual-inversion",
        implementation="diffusers",
        title=name,
        trigger_phrase=name,
        is_negative_embedding=negative,
    )
    return {METADATA_KEY: lineage, **spec.written()}


def _stored(vectors: Tensor) -> Tensor:
    return vectors.detach().cpu().float().clone()


def _vectors(tensor: Any, path: Path) -> Tensor:
    """One tensor, float32 [n, width]."""
    if not isinstance(tensor, Tensor):
        raise ModelError(f"{path} holds {type(tensor).__name__} where vectors should be", "[vectors, width]")
    require_plain(tensor, f"{path}: a tensor")
    vectors = tensor.detach().float()
    vectors = vectors.unsqueeze(0) if vectors.dim() == 1 else vectors
    if vectors.dim() != 2 or not vectors.numel():
        raise ModelError(f"{path} holds a tensor of shape {list(tensor.shape)}", "[vectors, width]")
    if not is_finite(vectors):
        raise ModelError(f"{path} holds NaN or infinity", "finite vectors", "Train the embedding again.")
    return vectors


def _archive(content: Mapping[str, Any]) -> bytes:
    """torch.save's zip with only the records that every A1111 accepts, and without times.

    A1111 refuses a file with a record it doesn't know, and newer torch adds some.
    """
    saved, slim = io.BytesIO(), io.BytesIO()
    torch.save(dict(content), saved)
    with zipfile.ZipFile(saved) as source, zipfile.ZipFile(slim, "w", zipfile.ZIP_STORED) as target:
        for record in source.namelist():
            folder, _, inner = record.partition("/")
            if inner in ("data.pkl", "version") or inner.startswith("data/"):
                target.writestr(zipfile.ZipInfo(f"{folder}/{inner}", ZIP_EPOCH), source.read(record))
    return slim.getvalue()
