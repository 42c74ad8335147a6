"""VAE latents on disk: one memory-mappable array a bucket, written from front to back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from aid.core.dataset import Record, latent_file
from aid.core.workbench import Workbench
from aid.dataset.bucket import Size
from aid.errors import FileError, ModelError
from aid.sd.checkpoint import load_vae
from aid.sd.device import torch_device

CHANNELS, SHRINK = 4, 8  # of SD1's VAE


def cache_latents(
    records: Sequence[Record], folder: Path, checkpoint: Path, batch: int, bench: Workbench
) -> None:
    """Encode every picture of the dataset in `folder`; writes its latents-WxH.npy, rows as recorded.

    Raises ModelError if the checkpoint's VAE gives anything but finite f=8 latents of 4 channels.
    """
    device = torch_device(bench)
    vae = load_vae(checkpoint, device)
    with bench.progress.task("encode", len(records), "pictures") as tick:
        for size, rows in by_size(records).items():
            shape = latent_shape(size)
            with array_file(folder / latent_file(*size), (len(rows), *shape)) as stream:
                for start in range(0, len(rows), batch):
                    part = rows[start : start + batch]
                    pixels = read_pixels([folder / record.file for record in part]).to(device)
                    stream.write(encode(vae, pixels, shape).tobytes())
                    tick(len(part))


def by_size(records: Sequence[Record]) -> dict[Size, list[Record]]:
    """The records of each bucket, (width, height), in the order of their rows."""
    sizes: dict[Size, list[Record]] = {}
    for record in sorted(records, key=lambda record: (record.width, record.height, record.row)):
        sizes.setdefault((record.width, record.height), []).append(record)
    return sizes


def latent_shape(size: Size) -> tuple[int, ...]:
    """[2, 4, H/8, W/8] of a bucket (W, H)."""
    return 2, CHANNELS, size[1] // SHRINK, size[0] // SHRINK


def read_pixels(paths: Sequence[Path]) -> torch.Tensor:
    """float32 [b, 3, H, W] in -1..1 of prepared pictures of one size."""
    pictures = []
    for path in paths:
        with Image.open(path) as picture:
            pictures.append(np.asarray(picture.convert("RGB"), dtype=np.float32))
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous() * (2 / 255) - 1


@torch.inference_mode()
def encode(vae: Any, pixels: torch.Tensor, shape: tuple[int, ...]) -> NDArray[np.float16]:
    """float16 [b, 2, 4, H/8, W/8]: mean and standard deviation of the posterior, unscaled."""
    posterior = vae.encode(pixels).latent_dist
    latents = torch.stack([posterior.mean, posterior.std], dim=1).cpu().numpy().astype("<f2")
    if latents.shape[1:] != shape:
        raise ModelError(f"the VAE gave latents of {list(latents.shape[1:])}", f"{list(shape)}")
    if not np.isfinite(latents).all():
        raise ModelError("the VAE gave latents that are not finite", "those of a sound SD1 VAE")
    return latents


@contextmanager
def array_file(path: Path, shape: tuple[int, ...]) -> Iterator[IO[bytes]]:
    """A .npy of little-endian float16 whose rows are written in order.

    Written rather than memory-mapped: a full disk is then an error and not a killed process.
    """
    try:
        with open(path, "wb") as stream:
            header = {"descr": "<f2", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(stream, header)
            yield stream
    except OSError as error:
        raise FileError(
            f"{path} could not be written ({error.strerror or error})",
            next_step="Free some disk space or choose another folder, then run the same command again.",
        ) from error
