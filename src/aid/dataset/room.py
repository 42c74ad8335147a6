"""Room on the disk: told before anything is written."""

from __future__ import annotations

import shutil
from pathlib import Path

from aid.errors import FileError

PICTURE_BYTES = 0.1  # a pixel of lossless WebP, of flat drawings: no less is ever needed
LATENT_BYTES = 2 * 4 * 2 / 64  # a pixel's mean and deviation, 4 channels of float16, an 8x8 cell
MEGABYTE = 1e6


def require_room(folder: Path, pixels: int, latents: int) -> None:
    """Raise FileError if the disk can't hold prepared pictures of so many pixels in all, and so many latents
    of each, however well they pack; what lies in the folder already counts."""
    there = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    needed = pixels * (PICTURE_BYTES + LATENT_BYTES * latents) - there
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise FileError(
            f"{folder.parent} has {free / MEGABYTE:,.0f} MB free",
            f"at least {needed / MEGABYTE:,.0f} MB for the pictures and their latents",
            "Free some disk space or choose another folder, then run the same command again.",
        )
