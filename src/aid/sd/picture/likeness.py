"""How much a picture is like another, in a sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from aid.core.picture import open_picture


def likeness(one: Path, other: Path) -> str:
    """Whether two pictures show the same pixels, and by how much they differ if not."""
    first, second = open_picture(one), open_picture(other)
    if first.size != second.size:
        sizes = [f"{picture.width}x{picture.height}" for picture in (first, second)]
        return f"Of another size: {sizes[1]}, and {one} is {sizes[0]}."
    levels = np.abs(np.asarray(first).astype(int) - np.asarray(second).astype(int))
    if not levels.any():
        return "The same, to the last bit."
    return f"Not quite the same: by {levels.mean():.2g} of 255 levels on average, by {levels.max()} at most."
