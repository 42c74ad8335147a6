"""Latents that are there already, by key, and where: in the artifact that is being replaced, or in what an
interrupted run left.

New ones go, a few batches at a time, into parts in the scratch, each written whole or not at all. At the end
they are brought together in shards, one a bucket, likewise whole or not at all; beside a shard stand the
keys of its rows. A shard of the artifact before is only believed if it is, by its hash, what was made then.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from aid.core.artifact import SCRATCH, replaced
from aid.core.dataset import Latents, latent_file
from aid.core.files import replacing, sha256_file, write_text
from aid.core.lineage import read_lineage
from aid.dataset.cutting.fitting import Size
from aid.errors import AidError

PARTS = "part-*.npz"  # in the scratch
PART_BATCHES = 8  # batches of a part: the most that an interruption costs
KEYS = ".keys"
Place = tuple[Path, str, int]  # file, the array's name in it if it has several, row


class Vault:
    """The latents of the dataset under construction in `folder`; `part_rows` of them make a part."""

    def __init__(self, folder: Path, part_rows: int) -> None:
        self.folder, self.part_rows = folder, part_rows
        self._places: dict[str, Place] = {}
        self._new: dict[Size, dict[str, Latents]] = {}
        self._parts = 0
        self._open = lru_cache(maxsize=4)(open_array)
        self.before = self._adopt(replaced(folder))
        self.continued = self._adopt_parts()

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def put(self, size: Size, latents: Mapping[str, Latents]) -> None:
        """Take new latents of one size, by key."""
        self._new.setdefault(size, {}).update(latents)
        if sum(map(len, self._new.values())) >= self.part_rows:
            self.flush()

    def flush(self) -> None:
        """Write what is new as a part."""
        if not self._new:
            return
        path = self._part(self._parts)
        while path.exists():
            self._parts += 1
            path = self._part(self._parts)
        arrays: dict[str, Any] = {}
        for (width, height), latents in sorted(self._new.items()):
            arrays[f"{width}x{height}"] = np.stack(list(latents.values()))
            arrays[f"{width}x{height}{KEYS}"] = np.array(list(latents), dtype="S64")
        with replacing(path) as stream:
            np.savez(stream, **arrays)
        self._new.clear()
        self._adopt_part(path)

    def write_shard(self, size: Size, mirrored: bool, keys: Sequence[str]) -> None:
        """The rows of one bucket in the order of `keys`, and the keys."""
        path = self.folder / latent_file(*size, mirrored)
        shape = (len(keys), 2, 4, size[1] // 8, size[0] // 8)
        write_array(path, self._rows(keys), shape)
        write_text(path.with_suffix(KEYS), "".join(f"{key}\n" for key in keys))

    def _rows(self, keys: Sequence[str]) -> Iterator[Latents]:
        for key in keys:
            path, name, row = self._places[key]
            yield self._open(path, name)[row]

    def _part(self, number: int) -> Path:
        return self.folder / SCRATCH / f"part-{number:06d}.npz"

    def _adopt(self, artifact: Path | None) -> int:
        """Take in the shards of an artifact made before; how many latents that were."""
        try:
            files = read_lineage(artifact).files if artifact else {}
        except AidError:
            files = {}
        for name in sorted(files):
            if artifact and name.startswith("latents-") and name.endswith(KEYS):
                self._adopt_shard((artifact / name).with_suffix(".npy"), files)
        return len(self._places)

    def _adopt_shard(self, path: Path, hashes: Mapping[str, str]) -> None:
        try:
            for file in (path, path.with_suffix(KEYS)):
                if sha256_file(file) != hashes[file.name]:
                    return
            keys = path.with_suffix(KEYS).read_text("ascii").split()
            if len(self._open(path, "")) == len(keys):
                self._places.update({key: (path, "", row) for row, key in enumerate(keys)})
        except (AidError, OSError, ValueError, KeyError, EOFError):
            return  # encoded again

    def _adopt_parts(self) -> int:
        before = len(self._places)
        for path in sorted((self.folder / SCRATCH).glob(PARTS)):
            try:
                self._adopt_part(path)
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
                path.unlink()  # a disk that failed left less than was written
        return len(self._places) - before

    def _adopt_part(self, path: Path) -> None:
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise ValueError(damaged)
        with np.load(path) as part:
            for name in part.files:
                if name.endswith(KEYS):
                    array = name.removesuffix(KEYS)
                    keys = [key.decode("ascii") for key in part[name]]
                    self._places.update({key: (path, array, row) for row, key in enumerate(keys)})


def open_array(path: Path, name: str) -> Latents:
    """The rows in a file: mapped, or, where it holds several arrays by name, read."""
    if not name:
        mapped: Latents = np.load(path, mmap_mode="r").view(np.ndarray)
        return mapped
    with np.load(path) as part:
        read: Latents = part[name]
    return read


def write_array(path: Path, rows: Iterator[Latents], shape: tuple[int, ...]) -> None:
    """A .npy of little-endian float16 from its rows, whole or not at all.

    Written rather than memory-mapped: a full disk is then an error and not a killed process.
    """
    with replacing(path) as stream:
        header = {"descr": "<f2", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)
        for row in rows:
            stream.write(np.ascontiguousarray(row, dtype="<f2").data)
