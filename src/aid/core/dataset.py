"""The Dataset noun: prepared pictures, their records, and their cached latents on disk.

records.jsonl          one Record a line, in a fixed order
pictures/...           cropped and resized pictures, lossless WebP, as the model sees them
latents-WxH.npy        float16 [n, 2, 4, H/8, W/8]: mean and standard deviation of each latent, by `row`
report.json            counts, quarantined files, duplicates
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from aid.errors import ArtifactError

RECORDS_FILE, REPORT_FILE, PICTURE_FOLDER = "records.jsonl", "report.json", "pictures"
Split = Literal["train", "held"]


class Record(BaseModel):
    """One prepared picture."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    sha256: str
    """Of the original file."""
    source: str
    """The original's path inside its input, `input-name/relative/path.png`."""
    file: str
    """The prepared picture, relative to the dataset's folder."""
    style: str
    """The style's name without `by `; empty for a picture of no style."""
    tags: tuple[str, ...]
    """Normalised tags, without the trigger."""
    split: Split
    """`held` pictures are never trained on."""
    regularisation: bool = False
    """A picture of what must not be forgotten (replay); `repeats` and weights are set apart."""
    licence: str = ""
    credit: str = ""
    width: int
    """Of the bucket, pixels."""
    height: int
    """Of the bucket, pixels."""
    row: int
    """In latents-{width}x{height}.npy."""

    @property
    def trigger(self) -> str:
        return f"by {self.style}" if self.style else ""

    @property
    def caption(self) -> str:
        """Trigger first, then the tags."""
        return ", ".join(filter(None, (self.trigger, *self.tags)))


class Dataset:
    """A prepared folder, opened read-only. Latents are memory-mapped: opening costs no memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def records(self) -> tuple[Record, ...]:
        path = self.folder / RECORDS_FILE
        try:
            return tuple(Record.model_validate_json(line) for line in path.read_bytes().splitlines())
        except (OSError, ValidationError) as error:
            raise ArtifactError(
                f"{path} is not a dataset's records ({type(error).__name__})",
                "a folder made by `aid prepare`",
                "Run `aid prepare` again.",
            ) from error

    @cached_property
    def report(self) -> dict[str, Any]:
        report: dict[str, Any] = json.loads((self.folder / REPORT_FILE).read_bytes())
        return report

    def styles(self) -> list[str]:
        """The names of the styles present, sorted."""
        return sorted({record.style for record in self.records if record.style})

    def split(self, name: Split) -> list[Record]:
        return [record for record in self.records if record.split == name]

    def sizes(self) -> list[tuple[int, int]]:
        """The buckets present, (width, height), sorted."""
        return sorted({(record.width, record.height) for record in self.records})

    def latents(self, width: int, height: int) -> np.ndarray[Any, np.dtype[np.float16]]:
        """float16 [n, 2, 4, height/8, width/8]: mean and standard deviation, unscaled; memory-mapped."""
        path = self.folder / latent_file(width, height)
        try:
            latents: np.ndarray[Any, np.dtype[np.float16]] = np.load(path, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise ArtifactError(
                f"{path} could not be mapped ({error})", "cached latents", "Run `aid prepare` again."
            ) from error
        return latents


def latent_file(width: int, height: int) -> str:
    return f"latents-{width}x{height}.npy"


def count_styles(records: Iterable[Record]) -> dict[str, int]:
    """Pictures per style, sorted by name."""
    counts: dict[str, int] = {}
    for record in records:
        counts[record.style] = counts.get(record.style, 0) + 1
    return dict(sorted(counts.items()))
