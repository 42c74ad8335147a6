"""A file's tensors as bytes, without torch where it isn't needed."""

from __future__ import annotations

import struct
from functools import partial
from pathlib import Path

from aid.errors import FileError
from aid.sd.file.header import is_pickle, malformed, read_layout
from aid.sd.file.raw import Raw

CODES = {"F64": "d", "F32": "f", "F16": "e", "I64": "q", "I32": "i", "I16": "h", "I8": "b", "U8": "B"}


def open_raw(path: Path) -> tuple[dict[str, Raw], dict[str, str]]:
    """A file's tensors where they lie, and its metadata. Pickles need torch.

    Raises FileError for a file that is truncated, malformed, or would run code when unpickled."""
    if is_pickle(path):
        from aid.sd.file.tensorfile import open_tensors, raw_of

        return {name: raw_of(stored) for name, stored in open_tensors(path)[0].items()}, {}
    layout = read_layout(path)
    source = partial(_read, path)
    tensors = {name: Raw(entry.format, source, entry.start) for name, entry in layout.entries.items()}
    return tensors, layout.metadata


def _read(path: Path, at: int, size: int) -> memoryview:
    values = memoryview(bytearray(size))
    try:
        with open(path, "rb") as stream:
            stream.seek(at)
            done = stream.readinto(values)
    except OSError as error:
        raise FileError(f"{path} could not be read ({error.strerror or error})") from error
    if done != len(values):
        raise malformed(path, f"it ends at byte {at + done}, inside a tensor")
    return values


def number_of(raw: Raw) -> float:
    """The only one that it holds."""
    values = raw.read()
    if raw.format.name == "BF16":
        return float(struct.unpack("<f", bytes(2) + values)[0])
    if (code := CODES.get(raw.format.name)) is not None:
        return float(struct.unpack(f"<{code}", values)[0])
    from aid.sd.file.tensorfile import tensor_of  # formats that Python doesn't know

    return float(tensor_of(raw))
