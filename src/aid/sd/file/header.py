"""What stands before the tensors of a safetensors file: names, formats, shapes and places, checked. No torch.

Format: u64 little-endian header length, JSON header padded with spaces to 8 bytes, then the tensors
one after another (huggingface/safetensors).
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from operator import attrgetter, lt
from pathlib import Path
from typing import Any, NamedTuple

from aid.errors import FileError

MAX_TENSOR_BYTES = 1 << 62  # beyond it no product of sizes is computed
MAX_DIMENSIONS = 16  # weights have up to five; torch takes seconds over some operations on hundreds
MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit
ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "I16": 2, "I32": 4, "I64": 8, "F16": 2, "BF16": 2, "F32": 4, "F64": 8,
    "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip
WORDS = {
    "I16": "int16", "I32": "int32", "I64": "int64",
    "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
}  # fmt: skip
FLOATING = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")


class Format(NamedTuple):
    """What a header says of a tensor that is to be written."""

    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """In bytes."""
        return math.prod(self.shape) * ITEM_BYTES[self.name]

    @property
    def word(self) -> str:
        """As it is called in a sentence: `float16`."""
        return WORDS.get(self.name, self.name)


@lru_cache(maxsize=4096)
def format_of(name: str, shape: tuple[int, ...]) -> Format:
    """One object for the tensors of all files, of which many may be open."""
    return Format(name, shape)


class Entry(NamedTuple):
    """One tensor: `start` and `end` are byte offsets in the file."""

    format: Format
    start: int

    @property
    def end(self) -> int:
        return self.start + self.format.size


@dataclass(frozen=True)
class Layout:
    """A file's tensors in file order, back to back, inside the file."""

    path: Path
    entries: dict[str, Entry]
    metadata: dict[str, str]
    data_start: int


def read_layout(path: Path) -> Layout:
    """The header alone, in milliseconds whatever the file's size. Raises FileError if it is malformed."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as stream:
            prefix = stream.read(8)
            if len(prefix) < 8:
                raise malformed(path, f"it has only {size} bytes")
            length = struct.unpack("<Q", prefix)[0]
            if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
                raise malformed(path, f"its header claims {length} bytes of a {size}-byte file")
            entries = _parsed(stream.read(length))
    except OSError as error:
        raise FileError(
            f"{path} could not be read ({error.strerror or error})", "a safetensors file"
        ) from error
    except (ValueError, RecursionError) as error:
        raise malformed(path, "its header is not JSON") from error
    if not isinstance(entries, dict):
        raise malformed(path, "its header is not a JSON object")
    metadata = _checked_metadata(path, entries.pop("__metadata__", {}))
    tensors = {name: _checked_entry(path, name, entry, 8 + length) for name, entry in entries.items()}
    ordered = _in_file_order(tensors)
    _check_layout(path, ordered, 8 + length, size)
    return Layout(path, ordered, metadata, 8 + length)


def _parsed(header: bytes) -> Any:
    """Raises ValueError for what is no JSON in UTF-8, or holds half a character, which can't be written."""
    text = header.decode()
    entries = json.loads(text)
    if "\\u" in text:
        json.dumps(entries, ensure_ascii=False).encode()
    return entries


def layout_bytes(tensors: Mapping[str, Format], metadata: Mapping[str, str], always: bool = False) -> bytes:
    """All that stands before the tensors: the header's length, and the header, padded. The official writer
    lists even no metadata where it is given none (`always`)."""
    listed = {"__metadata__": dict(sorted(metadata.items()))}
    entries: dict[str, Any] = listed if metadata or always else {}
    offset = 0
    for name in written_order(tensors):
        format, end = tensors[name], offset + tensors[name].size
        entries[name] = {"dtype": format.name, "shape": list(format.shape), "data_offsets": [offset, end]}
        offset = end
    header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header


def written_order(tensors: Mapping[str, Format]) -> list[str]:
    """Names in the order in which a file is to hold them: by item size, largest first, then by name."""
    return sorted(tensors, key=lambda name: (-ITEM_BYTES[tensors[name].name], name))


def is_pickle(path: Path) -> bool:
    """Whether the content is a torch zip archive or a bare pickle, whatever the file is called."""
    try:
        with open(path, "rb") as stream:
            head = stream.read(9)
    except OSError as error:
        raise FileError(f"{path} could not be read ({error.strerror or error})", "a weights file") from error
    return head[:2] == b"PK" or (head[:1] == b"\x80" and head[8:9] != b"{")


def malformed(path: Path, reason: str) -> FileError:
    return FileError(
        f"{path} is not a whole safetensors file: {reason}", next_step="Download it or make it again."
    )


def _in_file_order(tensors: dict[str, Entry]) -> dict[str, Entry]:
    """As most files list them, so that sorting is mostly looking."""
    starts = list(map(attrgetter("start"), tensors.values()))
    if all(map(lt, starts, islice(starts, 1, None))):
        return tensors
    return dict(sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)))


def _checked_metadata(path: Path, metadata: Any) -> dict[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise malformed(path, "its metadata is not text")
    return metadata


def _checked_entry(path: Path, name: str, entry: Any, data_start: int) -> Entry:
    try:
        format, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        sound = type(shape) is list and len(shape) <= MAX_DIMENSIONS
        sound = sound and type(start) is int and type(end) is int and start >= 0
        size, stride = _sizes(shape, ITEM_BYTES[format]) if sound else (0, 0)
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound or end - start != size or stride > MAX_TENSOR_BYTES:
        raise malformed(path, f"the entry of {name[:80]!r} is inconsistent")
    return Entry(format_of(format, tuple(shape)), data_start + start)


def _sizes(shape: list[Any], item_bytes: int) -> tuple[float, float]:
    """Bytes in all, and the longest stride, which of an empty tensor too must be a number that torch holds.

    Both infinite for what is no shape."""
    stride: float = item_bytes
    for number in shape:
        stride *= max(number, 1) if type(number) is int and number >= 0 else math.inf
        if stride > MAX_TENSOR_BYTES:
            return math.inf, math.inf
    return (0 if 0 in shape else stride), stride


def _check_layout(path: Path, ordered: dict[str, Entry], data_start: int, size: int) -> None:
    at = data_start
    for name, entry in ordered.items():
        if entry.start != at:
            raise malformed(path, f"{name[:80]!r} overlaps its neighbour or leaves a gap")
        at = entry.end
    if at != size:
        raise malformed(path, f"its tensors end at byte {at}, the file at {size}")
