"""A picture file as the judge sees it: 64 x 64, and its texture at full size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aid.core.picture import open_picture
from aid.core.workbench import Workbench
from aid.errors import PictureError
from aid.judging.network import EDGE_PX
from aid.judging.texture import SIZE, texture
from aid.sd.picture.layout import thumbnail

LEAST_EDGE_PX = 16


@dataclass(frozen=True)
class Views:
    """`thumbnails` uint8 [n, 3, 64, 64]; `textures` float32 [n, SIZE]."""

    thumbnails: Tensor
    textures: Tensor


def read_views(paths: Sequence[Path], bench: Workbench, label: str) -> Views:
    """Read and measure every picture, once. Raises PictureError naming the first that can't be read."""
    thumbnails = torch.empty(len(paths), 3, EDGE_PX, EDGE_PX, dtype=torch.uint8)
    textures = torch.empty(len(paths), SIZE)
    with bench.progress.task(label, total=len(paths), unit="picture") as tick:
        for row, path in enumerate(paths):
            pixels = read_pixels(path)
            thumbnails[row] = torch.from_numpy(thumbnail(pixels))
            textures[row] = torch.from_numpy(texture(pixels))
            tick()
    return Views(thumbnails, textures)


def read_pixels(path: Path) -> NDArray[np.uint8]:
    """uint8 [h, w, 3]; transparent parts on white."""
    pixels = np.asarray(open_picture(path))
    if min(pixels.shape[:2]) < LEAST_EDGE_PX:
        raise PictureError(f"{path} is {pixels.shape[1]}x{pixels.shape[0]}", f"at least {LEAST_EDGE_PX} px")
    return pixels
