"""Masks of a dataset: how much each cell of a latent counts, in the buckets where any picture has one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aid.core.dataset import mask_file
from aid.core.files import replacing
from aid.dataset.cutting.cut import SHRINK
from aid.dataset.cutting.fitting import Size

WHOLE = 255


class MaskSheet:
    """The masks seen so far, by bucket and row; what has none counts wholly."""

    def __init__(self) -> None:
        self._rows: dict[Size, dict[int, NDArray[np.uint8]]] = {}

    def add(self, size: Size, row: int, mask: NDArray[np.uint8] | None) -> None:
        if mask is not None:
            self._rows.setdefault(size, {})[row] = mask

    def write(self, folder: Path, counts: Mapping[Size, int]) -> None:
        """masks-WxH.npy, uint8 [n, H/8, W/8], of each bucket with a mask; `counts` are the buckets' n."""
        for size, rows in sorted(self._rows.items()):
            width, height = size
            sheet = np.full((counts[size], height // SHRINK, width // SHRINK), WHOLE, dtype=np.uint8)
            for row, mask in rows.items():
                sheet[row] = mask
            with replacing(folder / mask_file(width, height)) as stream:
                np.save(stream, sheet, allow_pickle=False)
