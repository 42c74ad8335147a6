"""The hashes by which tools and sites know a model file, all in one reading of it.

Source: A1111 modules/sd_models.py (old and new hash), civitai's AutoV1-3, kohya-ss/sd-scripts'
`sshs_model_hash` and `sshs_legacy_hash`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from aid.core.files import CHUNK_BYTES
from aid.errors import FileError
from aid.sd.file.tensorfile import Header, file_order, header_bytes, is_pickle, raw_bytes, read_header

WINDOW_START, WINDOW_BYTES = 0x100000, 0x10000  # what the old hash looks at
SS = "ss_"


@dataclass(frozen=True)
class Hashes:
    """Hexadecimal; the last two only of safetensors files."""

    sha256: str
    autov1: str
    """A1111's first hash: of 64 kB, a megabyte into the file."""
    sshs_model_hash: str = ""
    """Of the tensors alone, so that editing the metadata keeps it."""
    sshs_legacy_hash: str = ""
    """AutoV1 as if the file's metadata were only what kohya's scripts wrote."""

    @property
    def autov2(self) -> str:
        """A1111's model hash."""
        return self.sha256[:10]

    @property
    def autov3(self) -> str:
        return self.sshs_model_hash[:12]

    def named(self) -> dict[str, str]:
        """Name -> hash, those that the file has."""
        found = {
            "sha256": self.sha256,
            "AutoV1": self.autov1,
            "AutoV2": self.autov2,
            "AutoV3": self.autov3,
            "sshs_model_hash": self.sshs_model_hash,
            "sshs_legacy_hash": self.sshs_legacy_hash,
        }
        return {name: value for name, value in found.items() if value}


def hash_file(path: Path) -> Hashes:
    """Every hash of a file of weights. Raises FileError for one that is unreadable or malformed."""
    header = None if is_pickle(path) else read_header(path)
    whole, tensors = _read_once(path, header.data_start if header else None)
    first = _window(path, WINDOW_START)
    if header is None:
        return Hashes(whole, first)
    if list(header.tensors) != file_order(header.stored()):
        tensors = _in_official_order(header)
    return Hashes(whole, first, tensors, _legacy(path, header))


def _read_once(path: Path, data_start: int | None) -> tuple[str, str]:
    """sha256 of the file, and of what follows `data_start`."""
    whole, tensors, at = hashlib.sha256(), hashlib.sha256(), 0
    try:
        with open(path, "rb", buffering=0) as stream:
            buffer = memoryview(bytearray(CHUNK_BYTES))
            while count := stream.readinto(buffer):
                whole.update(buffer[:count])
                if data_start is not None and at + count > data_start:
                    tensors.update(buffer[max(0, data_start - at) : count])
                at += count
    except OSError as error:
        raise FileError(f"{path} could not be read ({error.strerror or error})") from error
    return whole.hexdigest(), tensors.hexdigest()


def _in_official_order(header: Header) -> str:
    """The tensors' hash where a file doesn't hold them as the official writer would."""
    digest = hashlib.sha256()
    for name in file_order(header.stored()):
        digest.update(raw_bytes(header.read(name)))
    return digest.hexdigest()


def _window(path: Path, start: int, before: bytes = b"") -> str:
    with open(path, "rb") as stream:
        stream.seek(start)
        return hashlib.sha256(before + stream.read(WINDOW_BYTES - len(before))).hexdigest()[:8]


def _legacy(path: Path, header: Header) -> str:
    """The window's place, counted in a file of the same tensors whose header keeps only `ss_*`."""
    kept = {key: value for key, value in header.metadata.items() if key.startswith(SS)}
    head = header_bytes(header.stored(), kept, always=True)
    inside = head[WINDOW_START : WINDOW_START + WINDOW_BYTES]
    return _window(path, header.data_start + max(0, WINDOW_START - len(head)), inside)
