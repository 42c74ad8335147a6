"""VAE latents on disk: one memory-mappable array a bucket.

A bucket is encoded in parts of a few batches, each written whole or not at all into the scratch. When
all are there they are joined to the bucket's shard, likewise whole or not at all. So a run that was
interrupted goes on with the shards and parts that it finds; the pictures in a batch, and with them every
bit, are the same as in one go.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from aid.core.artifact import SCRATCH
from aid.core.dataset import Record, latent_file
from aid.core.files import replacing
from aid.core.picture import open_picture
from aid.core.workbench import Ticker, Workbench
from aid.dataset.bucket import Size
from aid.errors import ModelError

CHANNELS, SHRINK = 4, 8  # of SD1's VAE
PART_BATCHES = 8  # batches of a part: the most that an interruption costs
Latents = NDArray[np.float16]


@dataclass(frozen=True)
class Shard:
    """The latents of one bucket: its file, its records in the order of their rows, rows of a part."""

    file: Path
    records: Sequence[Record]
    part_rows: int

    @cached_property
    def row_shape(self) -> tuple[int, ...]:
        """[2, 4, H/8, W/8]."""
        first = self.records[0]
        return 2, CHANNELS, first.height // SHRINK, first.width // SHRINK

    @cached_property
    def parts(self) -> dict[Path, Sequence[Record]]:
        """The file of each part, and what is in it."""
        scratch, count = self.file.parent / SCRATCH, len(self.records)
        starts = range(0, count, self.part_rows)
        return {
            scratch / f"{self.file.stem}-{start // self.part_rows:06d}.npy": self.records[
                start : start + self.part_rows
            ]
            for start in starts
        }

    def is_whole(self) -> bool:
        return holds(self.file, (len(self.records), *self.row_shape))

    def rows_done(self) -> int:
        if self.is_whole():
            return len(self.records)
        return sum(len(rows) for file, rows in self.parts.items() if self.holds_part(file))

    def holds_part(self, file: Path) -> bool:
        return holds(file, (len(self.parts[file]), *self.row_shape))

    def join(self) -> None:
        """Write the shard from its parts, and free them."""
        parts = (np.load(file, mmap_mode="r") for file in self.parts)
        write_array(self.file, parts, (len(self.records), *self.row_shape))
        for file in self.parts:
            file.unlink()


def cache_latents(records: Sequence[Record], folder: Path, vae: Any, batch: int, bench: Workbench) -> None:
    """Encode every picture of the dataset in `folder` that isn't yet; writes its latents-WxH.npy, rows as
    recorded. `vae` is that of `load_vae`.

    Raises ModelError if the VAE gives anything but finite f=8 latents of 4 channels.
    """
    shards = [
        Shard(folder / latent_file(*size), rows, PART_BATCHES * batch)
        for size, rows in by_size(records).items()
    ]
    done = sum(shard.rows_done() for shard in shards)
    with bench.progress.task("encode", len(records), "pictures", done) as tick:
        for shard in shards:
            if shard.is_whole():
                continue
            for file, part in shard.parts.items():
                if not shard.holds_part(file):
                    batches = [part[start : start + batch] for start in range(0, len(part), batch)]
                    latents = (encode(vae, folder, some, shard.row_shape, tick) for some in batches)
                    write_array(file, latents, (len(part), *shard.row_shape))
            shard.join()


def by_size(records: Sequence[Record]) -> dict[Size, list[Record]]:
    """The records of each bucket, (width, height), in the order of their rows."""
    sizes: dict[Size, list[Record]] = {}
    for record in sorted(records, key=lambda record: (record.width, record.height, record.row)):
        sizes.setdefault((record.width, record.height), []).append(record)
    return sizes


def read_pixels(paths: Sequence[Path]) -> torch.Tensor:
    """float32 [b, 3, H, W] in -1..1 of prepared pictures of one size."""
    pictures = [np.asarray(open_picture(path), dtype=np.float32) for path in paths]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous() * (2 / 255) - 1


@torch.inference_mode()
def encode(
    vae: Any, folder: Path, records: Sequence[Record], shape: tuple[int, ...], tick: Ticker
) -> Latents:
    """float16 [b, 2, 4, H/8, W/8]: mean and standard deviation of the posterior, unscaled."""
    pixels = read_pixels([folder / record.file for record in records]).to(vae.device)
    posterior = vae.encode(pixels).latent_dist
    latents: Latents = torch.stack([posterior.mean, posterior.std], dim=1).cpu().numpy().astype("<f2")
    if latents.shape[1:] != shape:
        raise ModelError(f"the VAE gave latents of {list(latents.shape[1:])}", f"{list(shape)}")
    if not np.isfinite(latents).all():
        raise ModelError("the VAE gave latents that are not finite", "those of a sound SD1 VAE")
    tick(len(records))
    return latents


def write_array(path: Path, pieces: Iterable[Latents], shape: tuple[int, ...]) -> None:
    """A .npy of little-endian float16 from pieces of its rows, whole or not at all.

    Written rather than memory-mapped: a full disk is then an error and not a killed process.
    """
    with replacing(path) as stream:
        header = {"descr": "<f2", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)
        for piece in pieces:
            stream.write(np.ascontiguousarray(piece).data)


def holds(path: Path, shape: tuple[int, ...]) -> bool:
    """Whether an array of float16 of that shape lies there, by its header and its size."""
    try:
        found = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return False
    return bool(found.shape == shape and found.dtype == np.dtype("<f2"))
