"""What a file is, told from its content alone: a checkpoint, VAE, U-Net, adapter, embedding or picture, or
what lies beside these.

Headers are read, not weights; the hashes, if wanted, read the whole file once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from aid.core.lineage import METADATA_KEY as LINEAGE_KEY
from aid.core.lineage import Lineage
from aid.errors import AidError, FileError, ModelError
from aid.sd.adapter.outline import Outline, outline
from aid.sd.embedding.file import Embedding, load_embedding
from aid.sd.file.hashes import hash_file
from aid.sd.file.tensorfile import NAMES, Stored, is_pickle, open_tensors
from aid.sd.model.architecture import Architecture, Family
from aid.sd.model.blocks import block_of
from aid.sd.model.detection import CONV_IN, FOREIGN
from aid.sd.model.folder import MODEL_INDEX, folder_sha256, is_part, stored_part, under_ldm_names
from aid.sd.model.layouts import AVERAGE, TEXT_ROOT, UNET, VAE, average_key, modern_keys
from aid.sd.model.metadata import architecture_name
from aid.sd.model.relatives import IP_ADAPTER, made_for, relative_of
from aid.sd.model.weights import open_weights, resolve_checkpoint
from aid.sd.picture.text import is_picture, picture_text

INPAINTS = "yes: its U-Net is shown the mask and what lies around it"
MAX_EMBEDDING_BYTES = 64 << 20  # of a pickle, which tells what it is only when it is read
METHODS = {  # kinds of adapters, in words
    "lora": "LoRA", "loha": "LoHa", "lokr": "LoKr", "dora": "DoRA", "full": "whole differences",
    "norm": "norms", "bias": "biases",
}  # fmt: skip
NO_VAE = "checkpoint without VAE"
AVERAGES = "averages of a checkpoint"
UNET_TENSORS: dict[Family, int] = {"sd1": 686, "sd2": 686, "sdxl": 1680}  # of the released models
BARE_UNET = ("input_blocks.0.0.weight", "out.2.weight")  # a ControlNet lacks the last
DIFFUSERS_UNET = ("conv_in.weight", "time_embedding.linear_1.weight", "conv_out.weight")
VAE_LATENT = "decoder.conv_in.weight"
SD_LATENT_CHANNELS = 4
PARTS = {
    "U-Net": (UNET,),
    "text encoders": tuple(set(TEXT_ROOT.values())),
    "VAE": (VAE,),
    "averages": (AVERAGE,),
    "ControlNet": ("control_model.",),
}


@dataclass(frozen=True)
class Share:
    """How much of a file a part or block is."""

    name: str
    tensors: int
    parameters: int
    size: int
    """Bytes."""


@dataclass(frozen=True)
class Inspection:
    """`about` are the facts of the kind, in words; `blocks` only of a U-Net."""

    path: Path
    kind: str
    size: int
    about: dict[str, str] = field(default_factory=dict)
    dtypes: dict[str, int] = field(default_factory=dict)
    """Format -> parameters."""
    parts: tuple[Share, ...] = ()
    blocks: tuple[Share, ...] = ()
    hashes: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    lineage: Lineage | None = None


def inspect(path: Path, hashes: bool = True) -> Inspection:
    """Look at one file, or at a diffusers folder or artifact. Raises FileError for what can't be read."""
    if path.is_dir():
        if is_part(path, "unet") and not (path / MODEL_INDEX).is_file():
            return _inspect_weights(path, *stored_part(path, "unet"), hashes=False)
        files = [*path.glob("*.safetensors")]  # one, if it is an artifact's adapter, embedding or judge
        alone = len(files) == 1 and not (path / MODEL_INDEX).is_file()
        found = files[0] if alone else resolve_checkpoint(path)
        return _inspect_folder(path, hashes) if found.is_dir() else inspect(found, hashes)
    if not path.is_file():
        raise FileError(f"{path} does not exist", "a file")
    if is_picture(path):
        return _inspect_picture(path)
    small = path.stat().st_size <= MAX_EMBEDDING_BYTES
    content = _embedding(path) if small and is_pickle(path) else None
    if content is not None:
        return _finished(path, "embedding", {}, _embedding_words(content), {}, hashes)
    return _inspect_weights(path, *open_tensors(path, nested=True), hashes)


def _inspect_weights(
    path: Path, stored: Mapping[str, Stored], metadata: Mapping[str, str], hashes: bool
) -> Inspection:
    tensors = modern_keys(_prefixed(stored, path))
    shapes = _shapes(tensors)
    other = CONV_IN in tensors or relative_of(shapes) == IP_ADAPTER  # one for faces holds a LoRA, too
    adapter = None if other else outline(shapes, metadata)
    kind = "adapter" if adapter else _kind_of(tensors)
    about = _adapter_words(adapter) if adapter else _about(kind, path, tensors)
    return _finished(path, kind, tensors, about, metadata, hashes)


def _prefixed(tensors: Mapping[str, Stored], path: Path) -> Mapping[str, Stored]:
    """A U-Net alone, as ComfyUI or diffusers names it, under the names that it has in a checkpoint."""
    if CONV_IN not in tensors and all(key in tensors for key in BARE_UNET):
        return {UNET + key: one for key, one in tensors.items()}
    if all(key in tensors for key in DIFFUSERS_UNET):
        family: Family = "sdxl" if "add_embedding.linear_1.weight" in tensors else "sd1"
        return under_ldm_names("unet", tensors, family, path)
    return tensors


def _kind_of(tensors: Mapping[str, Stored]) -> str:
    """Of what is no adapter, told from names and shapes."""
    if CONV_IN in tensors:
        text = any(key.startswith(tuple(TEXT_ROOT.values())) for key in tensors)
        vae = any(key.startswith(VAE) for key in tensors)
        if text:
            return "checkpoint" if vae else NO_VAE
        return "U-Net and VAE" if vae else "U-Net"
    if average_key(CONV_IN) in tensors:
        return AVERAGES
    if _foreign(tensors):
        return "model of another family"
    if {"encoder.conv_in.weight", f"{VAE}encoder.conv_in.weight"} & tensors.keys():
        return "VAE"
    if {"clip_l", "clip_g", "emb_params"} & tensors.keys() or (
        len(tensors) == 1 and _is_vectors(tensors.values())
    ):
        return "embedding"
    return relative_of(_shapes(tensors)) or "weights"


def _foreign(tensors: Mapping[str, Stored]) -> str:
    """A family that AID only recognises, whole or without its prefix."""
    found = (name for key, name in FOREIGN.items() if {key, key.removeprefix(UNET)} & tensors.keys())
    return next(found, "")


def _shapes(tensors: Mapping[str, Stored]) -> dict[str, tuple[int, ...]]:
    return {key: one.shape for key, one in tensors.items()}


def _is_vectors(tensors: Iterable[Stored]) -> bool:
    return all(len(one.shape) <= 2 and one.shape and one.shape[-1] in (768, 1024, 1280) for one in tensors)


def _about(kind: str, path: Path, tensors: Mapping[str, Stored]) -> dict[str, str]:
    if kind in ("checkpoint", NO_VAE):
        try:
            architecture = open_weights(path, vae_given=kind == NO_VAE).architecture
            return _architecture_words(architecture, tensors)
        except ModelError as error:  # of a family that AID only recognises
            return {"architecture": str(error)}
    if kind == "VAE":
        return _vae_words(tensors)
    if kind == "embedding":
        content = _embedding(path)
        return _embedding_words(content) if content else {}
    if kind == AVERAGES:
        return {"U-Net": f"its moving average alone ({AVERAGE}*)"}
    found = _foreign(tensors) or made_for(kind, _shapes(tensors))
    return {"architecture": found} if found else {}


def _architecture_words(architecture: Architecture, tensors: Mapping[str, Stored]) -> dict[str, str]:
    terminal = ", zero terminal SNR" if architecture.zero_terminal_snr else ""
    held, whole = sum(key.startswith(UNET) for key in tensors), UNET_TENSORS[architecture.family]
    pruned = held < whole and not architecture.is_narrow
    lacking = f" with layers left out: {held:,} of {whole:,} tensors of its U-Net" if pruned else ""
    return {
        "architecture": architecture_name(architecture) + lacking,
        "prediction": architecture.prediction + terminal,
        "native size": f"{architecture.native_edge_px} px",
        **({"inpainting": INPAINTS} if architecture.inpaints else {}),
    }


def _vae_words(tensors: Mapping[str, Stored]) -> dict[str, str]:
    """SD1, SD2 and SDXL have VAEs of the same names and shapes."""
    found = tensors.get(VAE_LATENT) or tensors.get(VAE + VAE_LATENT)
    if found is None or len(found.shape) < 2:
        return {}
    channels = found.shape[1]
    if channels != SD_LATENT_CHANNELS:
        return {"architecture": f"no VAE of SD1, SD2 or SDXL: {channels} channels"}
    return {
        "architecture": f"SD VAE, {channels} channels (of SD1, SD2 or SDXL: the weights don't tell which)"
    }


def _adapter_words(found: Outline) -> dict[str, str]:
    told = {
        "method": ", ".join(word for kind, word in METHODS.items() if kind in found.kinds),
        "architecture": found.family,
        "modules": f"{found.modules} ({found.text_modules} in text encoders)",
        "rank": ", ".join(map(str, found.ranks)),
        "embeddings": ", ".join(found.embeddings),
    }
    return {name: text for name, text in told.items() if text}


def _embedding(path: Path) -> Embedding | None:
    try:
        return load_embedding(path)
    except ModelError:
        return None


def _embedding_words(embedding: Embedding) -> dict[str, str]:
    count, width = embedding.vectors.shape
    second = embedding.vectors_g
    also = f" and {second.shape[0]} of {second.shape[1]}" if second is not None else ""
    return {"trigger": embedding.name, "vectors": f"{count} of {width}{also}"}


def _inspect_folder(path: Path, hashes: bool) -> Inspection:
    weights = open_weights(path, vae_given=True)
    found = _finished(
        path,
        _kind_of(weights.tensors),
        weights.tensors,
        _architecture_words(weights.architecture, weights.tensors),
        weights.metadata,
        False,
    )
    about = {**found.about, "layout": f"diffusers folder ({MODEL_INDEX})"}
    known = {"of its parts": folder_sha256(path)} if hashes else {}
    return Inspection(**{**vars(found), "about": about, "hashes": known})


def _inspect_picture(path: Path) -> Inspection:
    picture = picture_text(path)
    about = {"picture": picture.summary}
    if content := _embedding_picture(path):
        about |= _embedding_words(content)
    if picture.parameters:
        about["parameters"] = picture.parameters
    lineage = _lineage(picture.texts)
    metadata = {key: value for key, value in picture.texts.items() if key != LINEAGE_KEY}
    kind = "embedding in a picture" if content else "picture"
    return Inspection(path, kind, path.stat().st_size, about, metadata=metadata, lineage=lineage)


def _embedding_picture(path: Path) -> Embedding | None:
    try:
        return load_embedding(path)
    except AidError:
        return None


def _finished(
    path: Path,
    kind: str,
    tensors: Mapping[str, Stored],
    about: dict[str, str],
    metadata: Mapping[str, str],
    hashes: bool,
) -> Inspection:
    unet = {key: one for key, one in tensors.items() if key.startswith(UNET)}
    family: Family = "sdxl" if f"{UNET}label_emb.0.0.weight" in unet else "sd1"
    rows = _shares((block_of(key, family), one) for key, one in tensors.items()) if unet else ()
    formats: Counter[str] = Counter()
    for one in tensors.values():
        formats[NAMES.get(one.dtype, str(one.dtype))] += one.count
    return Inspection(
        path,
        kind,
        sum(file.stat().st_size for file in _files(path)),
        about,
        dict(sorted(formats.items())),
        _shares((_part_of(key), one) for key, one in tensors.items()) if len(tensors) > 1 else (),
        tuple(sorted(rows, key=_block_order)),
        hash_file(path).named() if hashes else {},
        {key: value for key, value in metadata.items() if key != LINEAGE_KEY},
        _lineage(metadata),
    )


def _files(path: Path) -> list[Path]:
    return [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]


def _part_of(key: str) -> str:
    found = (part for part, prefixes in PARTS.items() if key.startswith(prefixes))
    return next(found, "the rest")


def _block_order(share: Share) -> tuple[int, str]:
    families = ("BASE", "IN", "M", "OUT")
    return families.index(share.name.rstrip("0123456789")), share.name


def _shares(named: Iterable[tuple[str, Stored]]) -> tuple[Share, ...]:
    grouped: dict[str, list[Stored]] = {}
    for name, one in named:
        grouped.setdefault(name, []).append(one)
    return tuple(
        Share(name, len(ones), sum(one.count for one in ones), sum(one.size for one in ones))
        for name, ones in grouped.items()
    )


def _lineage(metadata: Mapping[str, Any]) -> Lineage | None:
    """What stands in the file itself; None for what is no lineage of AID's."""
    try:
        return Lineage.model_validate_json(metadata.get(LINEAGE_KEY, ""))
    except ValidationError:
        return None
