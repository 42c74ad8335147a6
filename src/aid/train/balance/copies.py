"""Whether the pictures of a sample sheet repeat trained ones, by where their colours are."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from aid.core.dataset import Dataset, Record
from aid.core.files import write_json
from aid.core.picture import open_picture
from aid.core.shot import Shot
from aid.errors import SettingsError
from aid.sd.picture.layout import copy_distance, layout, nearest, thumbnail

COPIED_SHARE = 0.5  # of a style's pictures on a sheet


class Copies:
    """All trained pictures by their layout, read once, and how near held-out ones come to them."""

    def __init__(self, dataset: Dataset) -> None:
        held, self.trained = require_held(dataset), dataset.split("train")
        self.layouts = read_layouts(dataset.folder, self.trained)
        self.limit = copy_distance(self.layouts, read_layouts(dataset.folder, held))

    def sources(self, pictures: Sequence[Image.Image]) -> list[str]:
        """For each picture the trained one that it nearly copies, or nothing."""
        near, rows = nearest(self.layouts, layouts_of(pictures))
        pairs = zip(near.tolist(), rows.tolist(), strict=True)
        return [self.trained[row].source if distance < self.limit else "" for distance, row in pairs]


def require_held(dataset: Dataset) -> list[Record]:
    """The held-out pictures. Raises SettingsError if there are none."""
    if held := dataset.split("held"):
        return held
    raise none_held("near copies are told")


def none_held(what: str) -> SettingsError:
    """`what` needs held-out pictures: `balance goes`."""
    return SettingsError(
        f"{what} by held-out pictures, and there are none",
        "a dataset prepared with some: its held_fraction or held_minimum above 0",
    )


def read_layouts(folder: Path, records: Sequence[Record]) -> Tensor:
    """[n, 192]."""
    return torch.cat([layouts_of([open_picture(folder / record.file)]) for record in records])


def layouts_of(pictures: Sequence[Image.Image]) -> Tensor:
    """[n, 192]."""
    views = [thumbnail(np.asarray(picture.convert("RGB"))) for picture in pictures]
    return layout(torch.from_numpy(np.stack(views)))


def sheet_file(folder: Path, step: int) -> Path:
    return folder / f"step-{step:06d}.json"


def write_copies(folder: Path, step: int, shots: Sequence[Shot], sources: Sequence[str]) -> None:
    """What is known of a sheet, beside it."""
    rows = [{"style": shot.style, "copy_of": source} for shot, source in zip(shots, sources, strict=True)]
    write_json(sheet_file(folder, step), rows)


def read_copies(folder: Path, step: int) -> list[dict[str, Any]]:
    """The rows of a sheet; none if it wasn't looked at."""
    path = sheet_file(folder, step)
    rows: list[dict[str, Any]] = json.loads(path.read_bytes()) if path.is_file() else []
    return rows


def copied_styles(folder: Path, before: int) -> tuple[str, ...]:
    """The styles of which at least half of the pictures on the newest sheet before a step are near copies."""
    steps = [int(path.stem.removeprefix("step-")) for path in folder.glob("step-*.json")]
    rows = read_copies(folder, max((step for step in steps if step < before), default=-1))
    drawn = Counter(row["style"] for row in rows)
    copied = Counter(row["style"] for row in rows if row["copy_of"])
    return tuple(style for style in sorted(drawn) if style and copied[style] >= COPIED_SHARE * drawn[style])
