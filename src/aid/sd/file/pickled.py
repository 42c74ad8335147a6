"""Pickled weights (`.ckpt`, `.pt`, `.bin`), opened only by torch's weights-only loader.

That loader runs no code, but takes what a file claims for granted: it is kept from claiming too much.
"""

from __future__ import annotations

import io
import pickle
import re
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from pickletools import genops
from typing import IO, Any

import torch
from torch.serialization import safe_globals

from aid.core.files import Bounded
from aid.errors import FileError

MOST_UNPACKED = 10  # times a packed archive's size
PICKLES = 5  # one after another in a file from before torch 1.6
ARCHIVE = b"PK\x03\x04"  # by this torch tells one from a bare pickle
LONG_WORD = re.compile(r"\S{10000}")


class Callback:
    """Stands for the training callbacks that old checkpoints name, and does nothing."""


CALLBACKS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (Callback, f"{package}.callbacks.model_checkpoint.ModelCheckpoint")
    for package in ("pytorch_lightning", "lightning.pytorch")
]


def read_pickle(path: Path, mapped: bool = False) -> Any:
    """Unpickle weights and plain containers, nothing that could run code; `mapped` leaves the weights on disk
    until they are used, where the file is an archive that allows it."""
    _refuse_bomb(path)
    _refuse_long_words(path)
    try:
        with safe_globals(CALLBACKS), Bounded(path) as stream, warnings.catch_warnings(action="ignore"):
            if mapped and _is_mappable(path):
                return torch.load(str(path), map_location="cpu", weights_only=True, mmap=True)
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


def _refuse_bomb(path: Path) -> None:
    """Raises FileError for an archive that would fill the memory; torch itself packs nothing."""
    try:
        with Bounded(path) as stream, zipfile.ZipFile(stream) as archive:
            unpacked = sum(record.file_size for record in archive.infolist())
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return  # a bare pickle, or nothing that torch will open
    if unpacked > MOST_UNPACKED * path.stat().st_size + (64 << 20):
        raise FileError(f"{path} would unpack to {unpacked >> 20} MB", "weights as torch stores them")


def _is_mappable(path: Path) -> bool:
    """Whether all records are stored as they are. Given a path, torch goes by its extension, so not for a
    pickle that calls itself safetensors."""
    if path.suffix.lower() == ".safetensors" or not zipfile.is_zipfile(path):
        return False
    with Bounded(path) as stream, zipfile.ZipFile(stream) as archive:
        return all(record.compress_type == zipfile.ZIP_STORED for record in archive.infolist())


def _refuse_long_words(path: Path) -> None:
    """Raises FileError for a pickle with an endless name: torch searches its own message about such a one for
    a time that grows with the square of its length, hours for a file of a few kB."""
    try:
        with warnings.catch_warnings(action="ignore"):
            for argument in (argument for stream in _pickles(path) for _, argument, _ in genops(stream)):
                if isinstance(argument, str) and LONG_WORD.search(argument):
                    raise FileError(f"{path} holds a word of {len(argument)} letters", "a weights file")
    except (ValueError, EOFError, RuntimeError, OSError, zipfile.BadZipFile, zlib.error) as error:
        reason = str(error)[:120]
        raise FileError(f"{path} is truncated or damaged ({reason})", "a whole weights file") from error


def _pickles(path: Path) -> Iterator[IO[bytes]]:
    """Each pickle that torch will read, from its beginning."""
    with Bounded(path) as stream:
        packed = stream.read(len(ARCHIVE)) == ARCHIVE
    if packed:
        with Bounded(path) as stream, zipfile.ZipFile(stream) as archive:
            for record in archive.infolist():
                if record.filename.rpartition("/")[2] == "data.pkl":
                    yield io.BytesIO(archive.read(record))
        return
    with Bounded(path) as stream:
        for _ in range(PICKLES):
            if stream.peek(1):
                yield stream
