"""A gallery on disk: numbered pictures, the list of their shots, and grids to look at.

00000-SEED.png ...     with A1111's `parameters` and `aid.lineage` in their text (or .jpg, .webp)
shots.jsonl            {"file": ..., "shot": ...} a line
grid.png               the first pictures, or of a plan one row a style
grid-STYLE.png         of a plan, each style's pictures
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from aid.core.file_name import file_names
from aid.core.files import write_lines
from aid.core.gallery import SHOTS_FILE, Frame
from aid.core.picture import open_small
from aid.core.shot import Shot
from aid.sd.picture.sheet import captioned, sheet

GRID_PICTURES = 64  # of one grid
GRID_ROW = 8  # of a style in the grid of all
GRID_EDGE_PX = 4096


def picture_name(index: int, shot: Shot, suffix: str = ".png") -> str:
    return f"{index:05d}-{shot.seed}{suffix}"


def write_gallery(folder: Path, shots: Sequence[Shot], suffix: str = ".png") -> None:
    """List the shots and draw the grids; every picture lies in the folder already."""
    files = [folder / picture_name(index, shot, suffix) for index, shot in enumerate(shots)]
    frames = [Frame(file=file.name, shot=shot) for file, shot in zip(files, shots, strict=True)]
    write_lines(folder / SHOTS_FILE, [frame.model_dump(mode="json") for frame in frames])
    styles: dict[str, list[Path]] = {}
    for file, shot in zip(files, shots, strict=True):
        styles.setdefault(shot.style, []).append(file)
    if len(styles) < 2 or "" in styles:
        grid(files[:GRID_PICTURES]).save(folder / "grid.png")
        return
    columns = min(GRID_ROW, min(map(len, styles.values())))
    rows = [(file, style) for style, of_style in styles.items() for file in of_style[:columns]]
    grid([file for file, _ in rows], columns, [style for _, style in rows]).save(folder / "grid.png")
    for name, of_style in zip(file_names(list(styles)), styles.values(), strict=True):
        grid(of_style[:GRID_PICTURES]).save(folder / f"grid-{name}.png")


def grid(files: Sequence[Path], columns: int = 0, captions: Sequence[str] = ()) -> Image.Image:
    """Pictures on one sheet of about 4096 pixels an edge at most, made smaller where they must be; each with
    its caption below, if there are captions."""
    columns = columns or math.ceil(math.sqrt(len(files)))
    edge = max(1, GRID_EDGE_PX // max(columns, math.ceil(len(files) / columns)))
    pictures = [open_small(file, edge) for file in files]
    return sheet([*map(captioned, pictures, captions)] if captions else pictures, columns)
