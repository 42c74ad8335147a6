"""Conversion of weights between precisions, layouts and containers, one tensor at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch

from aid.core.lineage import METADATA_KEY as LINEAGE_KEY
from aid.errors import FileError, ModelError, SettingsError
from aid.sd.embedding.file import Embedding, embedding_tensors, load_embedding, read_embedding
from aid.sd.embedding.picture import read_embedded_picture
from aid.sd.file.tensorfile import Stored, in_memory, is_pickle, open_tensors, write_stored
from aid.sd.model.architecture import METADATA_KEY, Prediction
from aid.sd.model.detection import CONV_IN
from aid.sd.model.folder import MODEL_INDEX
from aid.sd.model.layouts import VAE
from aid.sd.model.metadata import PREDICTION_KEY, STALE
from aid.sd.model.vae_file import open_vae, with_vae_of
from aid.sd.model.weights import Weights, cast, describe, open_weights, resolve_checkpoint, shapes_of
from aid.sd.picture.text import is_picture

Layout = Literal["ldm", "diffusers"]
SINGLE_FILE = ".safetensors"


@dataclass(frozen=True)
class Conversion:
    """What is wanted; what is None stays as it is in the source."""

    dtype: torch.dtype | None = None
    layout: Layout | None = None
    """None: a folder, unless the target's name ends in .safetensors."""
    vae: Path | None = None
    ema: bool = False
    untransposed: bool = False
    """The source's SDXL `text_projection` is as trainers of the kohya family take it."""
    prediction: Prediction | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Set on top of the source's; an empty value removes a key."""

    @property
    def for_checkpoints(self) -> bool:
        return bool(
            self.vae or self.ema or self.untransposed or self.prediction or self.layout == "diffusers"
        )


@dataclass(frozen=True)
class Converted:
    """What was written, and how many tensors of each kind were left out."""

    path: Path
    tensors: int
    dropped: dict[str, int]


def convert(source: Path, target: Path, wanted: Conversion) -> Converted:
    """Write `source`, a checkpoint or any other file of weights, as safetensors or as a diffusers folder.

    Of a checkpoint only the model itself is kept: no averages (unless they are asked for), optimiser or
    schedule. At most one tensor is held. Hashes of the old tensors leave the metadata.

    Raises FileError for an unreadable source or a target that can't be, ModelError for weights that aren't
    finite or don't fit `dtype`, and SettingsError for what can only be asked of a checkpoint.
    """
    layout = wanted.layout or ("ldm" if target.suffix == SINGLE_FILE else "diffusers")
    _require_target(target, layout)
    if not _is_checkpoint(source):
        return _convert_plain(source, target, wanted)
    weights = open_weights(
        source,
        ema=wanted.ema,
        untransposed=wanted.untransposed,
        prediction=wanted.prediction,
        vae_given=wanted.vae is not None,
    )
    tensors = weights.whole()
    if wanted.vae is not None:
        weights, given = _with_vae(weights, wanted.vae)
        tensors = {key: one for key, one in tensors.items() if not key.startswith(VAE)} | given
    ready = {key: cast(one, wanted.dtype, key, weights.path) for key, one in tensors.items()}
    metadata = _metadata(weights, wanted)
    if layout == "ldm":
        write_stored(target, ready, metadata)
    else:
        from aid.sd.model.checkpoint import save_folder  # diffusers takes seconds to import

        save_folder(weights.architecture, ready, target, metadata, weights.path)
    return Converted(target, len(ready), _dropped(weights, ready))


def _is_checkpoint(path: Path) -> bool:
    if path.is_dir():
        return (path / MODEL_INDEX).is_file() or _is_checkpoint(resolve_checkpoint(path))
    if not path.is_file():
        raise FileError(f"{path} does not exist", "a file of weights or a diffusers folder")
    return CONV_IN in _open(path)[0]


def _open(path: Path) -> tuple[Mapping[str, Stored], Mapping[str, str]]:
    """What a file holds; of A1111's embeddings, which are a dictionary with more than tensors, or a picture,
    the vectors under the names that they have in a safetensors file."""
    if is_picture(path):
        return _embedding_tensors(read_embedding(read_embedded_picture(path), path.stem, path)), {}
    try:
        return open_tensors(path)
    except FileError:
        if not is_pickle(path):
            raise
        try:
            embedding = load_embedding(path)
        except ModelError:
            embedding = None
        if embedding is None:
            raise
    return _embedding_tensors(embedding), {}


def _embedding_tensors(embedding: Embedding) -> dict[str, Stored]:
    return {name: in_memory(tensor) for name, tensor in embedding_tensors(embedding).items()}


def _require_target(target: Path, layout: Layout) -> None:
    if layout == "ldm" and target.suffix != SINGLE_FILE:
        raise SettingsError(f"{target} is to be a single file", f"a name that ends in {SINGLE_FILE}")
    if layout == "diffusers" and target.suffix in (SINGLE_FILE, ".ckpt", ".pt", ".bin"):
        raise SettingsError(f"{target} is to be a diffusers folder", "a name without such an ending")


def _convert_plain(source: Path, target: Path, wanted: Conversion) -> Converted:
    """A VAE, LoRA or embedding: every tensor under its own name."""
    if wanted.for_checkpoints or target.suffix != SINGLE_FILE:
        raise SettingsError(
            f"{source} is no whole checkpoint",
            f"no layout, VAE, averages or prediction for it, and a target ending in {SINGLE_FILE}",
        )
    tensors, metadata = _open(source)
    ready = {key: cast(one, wanted.dtype, key, source) for key, one in tensors.items()}
    write_stored(target, ready, _changed(metadata, wanted.metadata))
    return Converted(target, len(ready), {})


def _with_vae(weights: Weights, path: Path) -> tuple[Weights, dict[str, Stored]]:
    """The weights, of that VAE's widths if they have no VAE of their own, and its tensors. Raises ModelError
    naming the first that doesn't fit."""
    given, metadata = open_vae(path, weights.architecture.family)
    if not weights.has_vae:
        fitted = with_vae_of(weights.architecture, path, shapes_of(given), metadata)
        weights = replace(weights, architecture=fitted)
    for key, shape in _vae_shapes(weights).items():
        if key not in given or given[key].shape != shape:
            found = f"has shape {list(given[key].shape)}" if key in given else "is missing"
            raise ModelError(f"{path}: {key} {found}", f"{list(shape)}, as {weights.path} needs it")
    return weights, given


def _vae_shapes(weights: Weights) -> Mapping[str, Sequence[int]]:
    """Of the source's own VAE, or of the one that its architecture has."""
    if weights.has_vae:
        return {key: one.shape for key, one in weights.model().items() if key.startswith(VAE)}
    from aid.sd.model.checkpoint import vae_shapes  # diffusers takes seconds to import

    return vae_shapes(weights.architecture)


def _metadata(weights: Weights, wanted: Conversion) -> dict[str, str]:
    kept = {key: value for key, value in weights.metadata.items() if key != METADATA_KEY}
    if PREDICTION_KEY in kept:
        kept[PREDICTION_KEY] = weights.architecture.prediction
    return _changed(kept | describe(weights.architecture), wanted.metadata)


def _changed(metadata: Mapping[str, str], changes: Mapping[str, str]) -> dict[str, str]:
    """Raises SettingsError for a change of the lineage, which is not for people to write."""
    if LINEAGE_KEY in changes:
        raise SettingsError(f"{LINEAGE_KEY} can't be set", "another key")
    kept = {key: value for key, value in metadata.items() if key not in STALE} | dict(changes)
    return {key: value for key, value in kept.items() if value}


def _dropped(weights: Weights, kept: Mapping[str, Stored]) -> dict[str, int]:
    """Tensors of the source that were left out, by the first word of their names."""
    return dict(Counter(key.partition(".")[0] for key in weights.tensors if key not in kept))
