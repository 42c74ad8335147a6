"""Tensor files: safetensors written with reproducible bytes and read with a checked header, one tensor at
a time; pickles only through torch's weights-only loader, told by content and not by extension.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from aid.core.files import replacing
from aid.errors import FileError
from aid.sd.file.header import Format, layout_bytes, malformed, read_layout
from aid.sd.file.header import is_pickle as is_pickle
from aid.sd.file.pickled import read_pickle
from aid.sd.file.raw import Raw

DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32,
    "I64": torch.int64, "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32,
    "F64": torch.float64, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Stored:
    """One tensor where it lies: its format and shape are known, its values are read when asked for."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], Tensor]

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """In bytes."""
        return self.count * self.dtype.itemsize


def in_memory(tensor: Tensor) -> Stored:
    return Stored(tensor.dtype, tuple(tensor.shape), lambda: tensor)


def raw_of(stored: Stored) -> Raw:
    return Raw(
        Format(NAMES[stored.dtype], stored.shape), lambda at, size: raw_bytes(stored.read())[at : at + size]
    )


def tensor_of(raw: Raw) -> Tensor:
    """Read now."""
    values, dtype = raw.read(), DTYPES[raw.format.name]
    return (
        torch.frombuffer(values, dtype=dtype).view(raw.shape)
        if values
        else torch.empty(raw.shape, dtype=dtype)
    )


class TensorInfo(NamedTuple):
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
        """One tensor, read from disk now. Raises FileError if the file has become shorter."""
        info = self.tensors[name]
        values = torch.empty(info.shape, dtype=info.dtype)
        if values.numel() and self._read_into(_bytes_of(values), info.start) != info.end - info.start:
            raise malformed(self.path, f"it ends inside {name[:80]!r}")
        return values

    def _read_into(self, values: memoryview, start: int) -> int:
        try:
            with open(self.path, "rb") as stream:
                stream.seek(start)
                return stream.readinto(values)
        except OSError as error:
            raise FileError(f"{self.path} could not be read ({error.strerror or error})") from error

    def stored(self) -> dict[str, Stored]:
        return {
            name: Stored(info.dtype, info.shape, partial(self.read, name))
            for name, info in self.tensors.items()
        }


def read_header(path: Path) -> Header:
    """The header alone, in milliseconds whatever the file's size. Raises FileError if it is malformed."""
    layout = read_layout(path)
    tensors = {
        name: TensorInfo(DTYPES[entry.format.name], entry.format.shape, entry.start, entry.end)
        for name, entry in layout.entries.items()
    }
    return Header(path, tensors, layout.metadata, layout.data_start)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file, or of a `.ckpt`, `.pt` or `.bin` that holds only weights.

    Raises FileError for a file that is truncated, malformed, or would run code when unpickled.
    """
    if is_pickle(path):
        return _state(read_pickle(path), path)
    header = read_header(path)
    return {name: header.read(name) for name in header.tensors}


def open_tensors(path: Path, nested: bool = False) -> tuple[dict[str, Stored], dict[str, str]]:
    """A file's tensors where they lie, and its metadata; a pickle's storages are mapped, not read, where its
    archive allows that. `nested`: also those of a pickle's dictionaries, each under `OUTER.INNER`. Raises
    FileError as `read_tensors` does."""
    if is_pickle(path):
        content = read_pickle(path, mapped=True)
        tensors = _state(_unnested(content) if nested else content, path)
        return {name: in_memory(tensor) for name, tensor in tensors.items()}, {}
    header = read_header(path)
    return header.stored(), header.metadata


def _state(content: Any, path: Path) -> dict[str, Tensor]:
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    named = state.items() if isinstance(state, Mapping) else ()
    tensors = {key: value for key, value in named if isinstance(key, str) and isinstance(value, Tensor)}
    if not tensors:
        raise FileError(f"{path} holds no tensors", "a checkpoint or a dictionary of weights")
    for key, tensor in tensors.items():
        require_plain(tensor, f"{path}: {key[:80]!r}")
    return tensors


def _unnested(content: Any) -> Any:
    """With what is in its dictionaries beside it, but for `state_dict`, which is taken alone."""
    if not isinstance(content, dict) or "state_dict" in content:
        return content
    inner = ((outer, one) for outer, one in content.items() if isinstance(one, Mapping))
    return content | {f"{outer}.{key}": value for outer, one in inner for key, value in one.items()}


def require_plain(tensor: Tensor, name: str) -> None:
    """Raises FileError, naming it, for an unpickled tensor that a safetensors file couldn't hold: sparse,
    quantised, on no device, or one that claims more values than are stored."""
    whole = tensor.layout == torch.strided and tensor.device.type == "cpu" and tensor.dtype in NAMES
    if not whole or tensor.nbytes > tensor.untyped_storage().nbytes():
        kind = f"{list(tensor.shape)}, {tensor.dtype}, {tensor.layout}"
        raise FileError(f"{name} is no plain tensor ({kind})", "as many values as it claims")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file atomically; the same tensors and metadata give the same bytes.

    Tensors stand by dtype size, largest first, then by name, as the official writer orders them.
    """
    write_stored(path, {name: in_memory(tensor) for name, tensor in tensors.items()}, metadata)


def write_stored(path: Path, tensors: Mapping[str, Stored], metadata: Mapping[str, str]) -> None:
    """`write_tensors` for tensors that are read one at a time, while the file is being written.

    Raises FileError for a tensor that turns out to be of another format or shape than was said.
    """
    with replacing(path) as stream:
        stream.write(header_bytes(tensors, metadata))
        for name in file_order(tensors):
            stored, tensor = tensors[name], tensors[name].read()
            if (tensor.dtype, tuple(tensor.shape)) != (stored.dtype, stored.shape):
                raise FileError(f"{name} is {list(tensor.shape)}, {tensor.dtype}", f"{stored.shape}")
            stream.write(raw_bytes(tensor))
            del tensor  # before the next one is read


def header_bytes(tensors: Mapping[str, Stored], metadata: Mapping[str, str], always: bool = False) -> bytes:
    """All that stands before the tensors, as `layout_bytes` writes it."""
    formats = {name: Format(NAMES[stored.dtype], stored.shape) for name, stored in tensors.items()}
    return layout_bytes(formats, metadata, always)


def file_order(tensors: Mapping[str, Tensor] | Mapping[str, Stored]) -> list[str]:
    """Names in the order in which a file holds their tensors."""
    return sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """The sha256 of all that follows a file's header: what A1111 calls AutoV3, and kohya's scripts
    `sshs_model_hash`."""
    digest = hashlib.sha256()
    for name in file_order(tensors):
        digest.update(raw_bytes(tensors[name]))
    return digest.hexdigest()


def raw_bytes(tensor: Tensor) -> memoryview:
    """A tensor's values, little-endian and contiguous, without a copy where it already is."""
    return _bytes_of(tensor.detach().cpu().contiguous())


def _bytes_of(tensor: Tensor) -> memoryview:
    flat = tensor.reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy().data) if flat.numel() else memoryview(b"")


def is_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite. The extremes tell it thirty times as fast as a test of each."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    values = tensor.float() if tensor.element_size() == 1 else tensor  # torch can't compare eight-bit floats
    lowest, highest = torch.aminmax(values.detach())
    return math.isfinite(lowest) and math.isfinite(highest)
