"""Tensor files: safetensors written with reproducible bytes and read with a checked header; pickles
only through torch's weights-only loader, told by content and not by extension.

Format: u64 little-endian header length, JSON header padded with spaces to 8 bytes, then the tensors
one after another (huggingface/safetensors).
"""

from __future__ import annotations

import hashlib
import json
import math
import pickle
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aid.core.files import replacing
from aid.errors import FileError

MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit
DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32,
    "I64": torch.int64, "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32,
    "F64": torch.float64, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class TensorInfo:
    """One tensor's entry: `start` and `end` are byte offsets in the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """A safetensors header, checked: entries are in file order, back to back, inside the file."""

    path: Path
    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    data_start: int

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: info.shape for name, info in self.tensors.items()}

    def read(self, name: str) -> Tensor:
        """One tensor, read from disk now."""
        info = self.tensors[name]
        if info.start == info.end:
            return torch.empty(info.shape, dtype=info.dtype)
        with open(self.path, "rb") as stream:
            stream.seek(info.start)
            raw = bytearray(stream.read(info.end - info.start))
        return torch.frombuffer(raw, dtype=info.dtype).reshape(info.shape)


def read_header(path: Path) -> Header:
    """The header alone, in milliseconds whatever the file's size. Raises FileError if it is malformed."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as stream:
            prefix = stream.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else -1
            if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
                raise _malformed(path, f"its header claims {length} bytes of a {size}-byte file")
            entries = json.loads(stream.read(length))
    except OSError as error:
        raise FileError(
            f"{path} could not be read ({error.strerror or error})", "a safetensors file"
        ) from error
    except (ValueError, RecursionError) as error:
        raise _malformed(path, "its header is not JSON") from error
    if not isinstance(entries, dict):
        raise _malformed(path, "its header is not a JSON object")
    metadata = _checked_metadata(path, entries.pop("__metadata__", {}))
    tensors = {name: _checked_entry(path, name, entry, 8 + length) for name, entry in entries.items()}
    ordered = dict(sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)))
    _check_layout(path, ordered, 8 + length, size)
    return Header(path, ordered, metadata, 8 + length)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file, or of a `.ckpt`, `.pt` or `.bin` that holds only weights.

    Raises FileError for a file that is truncated, malformed, or would run code when unpickled.
    """
    if not is_pickle(path):
        header = read_header(path)
        return {name: header.read(name) for name in header.tensors}
    content = read_pickle(path)
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    tensors = {key: value for key, value in (state or {}).items() if isinstance(value, Tensor)}
    if not tensors:
        raise FileError(f"{path} holds no tensors", "a checkpoint or a dictionary of weights")
    return tensors


def is_pickle(path: Path) -> bool:
    """Whether the content is a torch zip archive or a bare pickle, whatever the file is called."""
    try:
        with open(path, "rb") as stream:
            head = stream.read(9)
    except OSError as error:
        raise FileError(f"{path} could not be read ({error.strerror or error})", "a weights file") from error
    return head[:2] == b"PK" or (head[:1] == b"\x80" and head[8:9] != b"{")


def read_pickle(path: Path) -> Any:
    """Unpickle weights and plain containers, nothing that could run code."""
    try:
        with open(path, "rb") as stream:  # given a path, torch goes by its extension
            return torch.load(stream, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise FileError(
            f"{path} would run code when opened, or is not a weights file",
            "tensors and plain containers only",
            "Don't use it; ask its maker for a .safetensors file.",
        ) from error
    except Exception as error:  # garbage makes the unpickler raise anything
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise FileError(f"{path} is truncated or damaged ({reason})", "a whole weights file") from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file atomically; the same tensors and metadata give the same bytes.

    Tensors stand by dtype size, largest first, then by name, as the official writer orders them.
    """
    names = file_order(tensors)
    entries: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    offset = 0
    for name in names:
        tensor = tensors[name]
        end = offset + tensor.numel() * tensor.element_size()
        entries[name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    with replacing(path) as stream:
        stream.write(struct.pack("<Q", len(header)) + header)
        for name in names:
            stream.write(raw_bytes(tensors[name]))


def file_order(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names in the order in which a file holds their tensors."""
    return sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """The sha256 of all that follows a file's header: what A1111 calls AutoV3, and kohya's scripts
    `sshs_model_hash`."""
    digest = hashlib.sha256()
    for name in file_order(tensors):
        digest.update(raw_bytes(tensors[name]))
    return digest.hexdigest()


def raw_bytes(tensor: Tensor) -> memoryview:
    """A tensor's values, little-endian and contiguous, without a copy where it already is."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy().data) if flat.numel() else memoryview(b"")


def _malformed(path: Path, reason: str) -> FileError:
    return FileError(
        f"{path} is not a whole safetensors file: {reason}", next_step="Download it or make it again."
    )


def _checked_metadata(path: Path, metadata: Any) -> dict[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _malformed(path, "its metadata is not text")
    return metadata


def _checked_entry(path: Path, name: str, entry: Any, data_start: int) -> TensorInfo:
    try:
        dtype, shape, (start, end) = DTYPES[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
        sizes_are_whole = all(type(number) is int and number >= 0 for number in (*shape, start, end))
        sound = sizes_are_whole and end - start == math.prod(shape) * dtype.itemsize
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        raise _malformed(path, f"the entry of {name[:80]!r} is inconsistent")
    return TensorInfo(dtype, shape, data_start + start, data_start + end)


def _check_layout(path: Path, ordered: dict[str, TensorInfo], data_start: int, size: int) -> None:
    at = data_start
    for name, info in ordered.items():
        if info.start != at:
            raise _malformed(path, f"{name[:80]!r} overlaps its neighbour or leaves a gap")
        at = info.end
    if at != size:
        raise _malformed(path, f"its tensors end at byte {at}, the file at {size}")
