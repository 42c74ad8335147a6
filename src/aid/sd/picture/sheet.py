"""Several pictures on one sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image


def sheet(pictures: Sequence[Image.Image], columns: int = 0, gap_px: int = 2) -> Image.Image:
    """Pictures in rows, left to right, on white; as square as may be unless `columns` says otherwise."""
    columns = columns or math.ceil(math.sqrt(len(pictures)))
    rows = -(-len(pictures) // columns)
    width, height = max(p.width for p in pictures), max(p.height for p in pictures)
    page = Image.new("RGB", (columns * (width + gap_px) - gap_px, rows * (height + gap_px) - gap_px), "white")
    for index, picture in enumerate(pictures):
        row, column = divmod(index, columns)
        page.paste(picture, (column * (width + gap_px), row * (height + gap_px)))
    return page
