"""What a file is, told from its content alone: a checkpoint, VAE, U-Net, adapter, embedding or picture.

Headers are read, not weights; the hashes, if wanted, read the whole file once.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from aid.core.lineage import METADATA_KEY as LINEAGE_KEY
from aid.core.lineage import Lineage
from aid.errors import AidError, FileError, ModelError
from aid.sd.embedding.file import Embedding, load_embedding
from aid.sd.file.hashes import hash_file
from aid.sd.file.tensorfile import NAMES, Stored, is_pickle, open_tensors
from aid.sd.model.architecture import Architecture, Family
from aid.sd.model.blocks import block_of
from aid.sd.model.detection import CONV_IN
from aid.sd.model.folder import MODEL_INDEX
from aid.sd.model.layouts import AVERAGE, TEXT_ROOT, UNET, VAE, modern_keys
from aid.sd.model.metadata import architecture_name
from aid.sd.model.weights import open_weights, resolve_checkpoint
from aid.sd.picture.text import is_picture, picture_text

ADAPTER = re.compile(
    r"^(.+?)\.(lora_(?:up|down|mid|A|B)(?:\.default)?(?:\.weight)?|alpha|dora_scale|hada_\w+|lokr_\w+|diff(?:_b)?)$"
)
INPAINTS = "yes: its U-Net is shown the mask and what lies around it"
MAX_EMBEDDING_BYTES = 64 << 20  # of a pickle, which tells what it is only when it is read
RANK_OF = ("lora_down", "lora_A", "hada_w1_b", "lokr_w1_b", "lokr_w2_b")  # their first axis
PARTS = {
    "U-Net": (UNET,),
    "text encoders": tuple(set(TEXT_ROOT.values())),
    "VAE": (VAE,),
    "averages": (AVERAGE,),
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
        found = resolve_checkpoint(path)
        return _inspect_folder(path) if found.is_dir() else inspect(found, hashes)
    if not path.is_file():
        raise FileError(f"{path} does not exist", "a file")
    if is_picture(path):
        return _inspect_picture(path)
    small = path.stat().st_size <= MAX_EMBEDDING_BYTES
    content = _embedding(path) if small and is_pickle(path) else None
    if content is not None:
        return _finished(path, "embedding", {}, _embedding_words(content), {}, hashes)
    stored, metadata = open_tensors(path)
    tensors = modern_keys(stored)
    kind = kind_of(tensors)
    about = _about(kind, path, tensors)
    return _finished(path, kind, tensors, about, metadata, hashes)


def kind_of(tensors: Mapping[str, Stored]) -> str:
    """Told from names and shapes."""
    if CONV_IN in tensors:
        whole = any(key.startswith(tuple(TEXT_ROOT.values())) for key in tensors)
        return "checkpoint" if whole and any(key.startswith(VAE) for key in tensors) else "U-Net"
    if any(ADAPTER.match(key) for key in tensors):
        return "adapter"
    if {"encoder.conv_in.weight", f"{VAE}encoder.conv_in.weight"} & tensors.keys():
        return "VAE"
    if {"clip_l", "clip_g", "emb_params"} & tensors.keys() or (
        len(tensors) == 1 and _is_vectors(tensors.values())
    ):
        return "embedding"
    return "weights"


def _is_vectors(tensors: Iterable[Stored]) -> bool:
    return all(len(one.shape) <= 2 and one.shape and one.shape[-1] in (768, 1024, 1280) for one in tensors)


def _about(kind: str, path: Path, tensors: Mapping[str, Stored]) -> dict[str, str]:
    if kind == "checkpoint":
        try:
            return _architecture_words(open_weights(path).architecture)
        except ModelError as error:  # of a family that AID only recognises
            return {"architecture": str(error)}
    if kind == "adapter":
        return _adapter_words(tensors)
    if kind == "embedding":
        content = _embedding(path)
        return _embedding_words(content) if content else {}
    return {}


def _architecture_words(architecture: Architecture) -> dict[str, str]:
    terminal = ", zero terminal SNR" if architecture.zero_terminal_snr else ""
    return {
        "architecture": architecture_name(architecture),
        "prediction": architecture.prediction + terminal,
        "native size": f"{architecture.native_edge_px} px",
        **({"inpainting": INPAINTS} if architecture.inpaints else {}),
    }


def _adapter_words(tensors: Mapping[str, Stored]) -> dict[str, str]:
    """Modules and ranks by keys and shapes alone."""
    found = {key: match for key in tensors if (match := ADAPTER.match(key))}
    modules = {match[1] for match in found.values()}
    ranks = {
        tensors[key].shape[0]
        for key, match in found.items()
        if match[2].startswith(RANK_OF) and tensors[key].shape
    }
    kinds = {match[2].partition(".")[0].partition("_")[0] for match in found.values()}
    names = {"lora": "LoRA", "hada": "LoHa", "lokr": "LoKr", "dora": "DoRA", "diff": "whole differences"}
    text = sum(module.startswith(("lora_te", "text_encoder")) for module in modules)
    return {
        "method": ", ".join(word for kind, word in names.items() if kind in kinds),
        "modules": f"{len(modules)} ({text} in text encoders)",
        "rank": ", ".join(map(str, sorted(ranks, reverse=True))),
    }


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


def _inspect_folder(path: Path) -> Inspection:
    weights = open_weights(path)
    files = [file for file in path.rglob("*") if file.is_file()]
    found = _finished(
        path,
        "checkpoint",
        weights.tensors,
        _architecture_words(weights.architecture),
        weights.metadata,
        False,
    )
    about = {**found.about, "layout": f"diffusers folder ({MODEL_INDEX})"}
    size = sum(file.stat().st_size for file in files)
    return Inspection(**{**vars(found), "about": about, "size": size})


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
        path.stat().st_size,
        about,
        dict(sorted(formats.items())),
        _shares((_part_of(key), one) for key, one in tensors.items()) if len(tensors) > 1 else (),
        tuple(sorted(rows, key=_block_order)),
        hash_file(path).named() if hashes else {},
        {key: value for key, value in metadata.items() if key != LINEAGE_KEY},
        _lineage(metadata),
    )


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
