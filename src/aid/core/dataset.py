"""The Dataset noun: prepared pictures, their records, and their cached latents on disk.

records.jsonl              one Record a line, in a fixed order
pictures/...               cropped and resized pictures, lossless WebP, as the model sees them
latents-WxH.npy            float16 [n, 2, 4, H/8, W/8]: mean and standard deviation of each latent, by `row`
latents-WxH.keys           for each row a sha256 of all that its latent depends on
latents-WxH-mirrored.npy   the same of the pictures mirrored left to right (and .keys), if asked for
masks-WxH.npy              uint8 [n, H/8, W/8]: how much each cell counts, 255 wholly; if a picture has a mask
report.json                counts, quarantined files, duplicates
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from aid.errors import ArtifactError

RECORDS_FILE, REPORT_FILE, PICTURE_FOLDER = "records.jsonl", "report.json", "pictures"
LATENT_SCALE = "latent_scale"  # in the report: what the VAE's family multiplies latents by; null: not known
Split = Literal["train", "held"]
Latents = np.ndarray[Any, np.dtype[np.float16]]
Masks = np.ndarray[Any, np.dtype[np.uint8]]
SIDE = re.compile(r"(?<![a-z])(left|right)(?![a-z])", re.IGNORECASE)
FREQUENT_PICTURES = 100  # the author's: a tag on more pictures than that is sometimes left out


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
    fixed: int = 0
    """How many of the first tags keep their place in a shuffle: characters, and those before `|||`."""
    description: str = ""
    """What the picture shows, in sentences, where somebody wrote it; a caption is this or the tags."""
    split: Split
    """`held` pictures are never trained on."""
    regularisation: bool = False
    """A picture of what must not be forgotten (replay), with a share and a weight of its own."""
    licence: str = ""
    credit: str = ""
    width: int
    """Of the bucket, pixels."""
    height: int
    """Of the bucket, pixels."""
    row: int
    """In latents-{width}x{height}.npy, and in the masks."""
    score: float | None = None
    """How good a picture somebody thinks it is, 0 to 10."""
    repeats: int = 1
    """How often it is to come up among the others, by its folder's name (kohya's `10_by fuzichoco`)."""

    @property
    def trigger(self) -> str:
        return f"by {self.style}" if self.style else ""

    @property
    def caption(self) -> str:
        """Trigger first, then the tags."""
        return ", ".join(filter(None, (self.trigger, *self.tags)))

    @property
    def mirrored(self) -> Record:
        """What its words are when the picture is mirrored: left and right exchanged."""
        return self.model_copy(
            update={
                "tags": tuple(map(exchange_sides, self.tags)),
                "description": exchange_sides(self.description),
            }
        )


def exchange_sides(text: str) -> str:
    """`left` for `right` and `right` for `left`, both at once, as words of their own: not in `bright`."""
    return SIDE.sub(_other_side, text)


def _other_side(found: re.Match[str]) -> str:
    word = found[0]
    other = "right" if word.lower() == "left" else "left"
    if word.isupper():
        return other.upper()
    return other.capitalize() if word[0].isupper() else other


def count_tags(records: Iterable[Record]) -> dict[str, int]:
    """On how many records each trigger and each tag is, sorted; what `drop_chance` is asked with."""
    counts = Counter(
        tag for record in records for tag in dict.fromkeys(filter(None, (record.trigger, *record.tags)))
    )
    return dict(sorted(counts.items()))


def drop_chance(count: int, frequent: int = FREQUENT_PICTURES) -> float:
    """The chance with which a tag on `count` pictures is left out of a caption: 1 - frequent / count.

    So a frequent tag is trained on about `frequent` times an epoch. The author's rule for artists
    (Eugeoter's training scripts, 1 - 100 / count above 100).
    """
    return max(0.0, 1.0 - frequent / count) if count > 0 else 0.0


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
            raise _foreign(path, "records", error) from error

    @cached_property
    def report(self) -> dict[str, Any]:
        path = self.folder / REPORT_FILE
        try:
            report: dict[str, Any] = json.loads(path.read_bytes())
            if not isinstance(report, dict):
                raise ValueError("not an object")
        except (OSError, ValueError, RecursionError) as error:
            raise _foreign(path, "report", error) from error
        return report

    def styles(self) -> list[str]:
        """The names of the styles present, sorted."""
        return sorted({record.style for record in self.records if record.style})

    def split(self, name: Split) -> list[Record]:
        return [record for record in self.records if record.split == name]

    def sizes(self) -> list[tuple[int, int]]:
        """The buckets present, (width, height), sorted."""
        return sorted({(record.width, record.height) for record in self.records})

    def latents(self, width: int, height: int, mirrored: bool = False) -> Latents:
        """float16 [n, 2, 4, height/8, width/8]: mean and standard deviation, unscaled; memory-mapped once.

        Raises ArtifactError if they are not there, are cut short or of another shape.
        """
        name = latent_file(width, height, mirrored)
        if name not in self._maps:
            self._maps[name] = self._map(name, (2, 4, height // 8, width // 8))
        return self._maps[name]

    @property
    def latent_scale(self) -> float | None:
        """What its VAE's family multiplies latents by; None where it isn't known."""
        return self.report.get(LATENT_SCALE) if (self.folder / REPORT_FILE).is_file() else None

    def require_latents(self) -> None:
        """Raises ArtifactError unless every bucket's latents are there, before anything is begun."""
        for width, height in self.sizes():
            self.latents(width, height)

    @cached_property
    def has_mirrored(self) -> bool:
        """Whether every picture's mirrored latent is cached too."""
        return all((self.folder / latent_file(*size, mirrored=True)).is_file() for size in self.sizes())

    def fetch(self, records: Sequence[Record], mirrored: bool = False) -> Latents:
        """float16 [b, 2, 4, height/8, width/8]: a copy of the latents of records of one size."""
        stored = self.latents(records[0].width, records[0].height, mirrored)
        rows = np.empty((len(records), *stored.shape[1:]), dtype=np.float16)
        for index, record in enumerate(records):
            rows[index] = stored[record.row]
        return rows

    def mask(self, record: Record, mirrored: bool = False) -> Masks | None:
        """uint8 [height/8, width/8], 255 where the picture counts wholly; None if all of it does."""
        name = mask_file(record.width, record.height)
        if not (self.folder / name).is_file():
            return None
        if name not in self._masks:
            self._masks[name] = self._map(name, (record.height // 8, record.width // 8))
        mask: Masks = self._masks[name][record.row]
        if mask.min() == 255:
            return None
        return mask[:, ::-1] if mirrored else mask

    @cached_property
    def _maps(self) -> dict[str, Latents]:
        return {}

    @cached_property
    def _masks(self) -> dict[str, Masks]:
        return {}

    def __getstate__(self) -> dict[str, Any]:
        """Only where it is: another process maps its own."""
        return {"folder": self.folder}

    def _map(self, name: str, row_shape: tuple[int, ...]) -> Any:
        path = self.folder / name
        if not path.exists():
            raise ArtifactError(f"{self.folder} has no {name}", "cached latents", "Prepare it with --vae.")
        try:
            # A plain array over the map: an index of numpy.memmap itself takes ten times as long.
            array = np.load(path, mmap_mode="r").view(np.ndarray)
            if array.shape[1:] != row_shape:
                raise ValueError(f"its rows are {list(array.shape[1:])} and not {list(row_shape)}")
        except (OSError, ValueError, EOFError) as error:
            raise ArtifactError(
                f"{path} could not be mapped ({error})", "whole cached latents", "Run `aid prepare` again."
            ) from error
        return array


def _foreign(path: Path, what: str, error: Exception) -> ArtifactError:
    return ArtifactError(
        f"{path} is not a dataset's {what} ({type(error).__name__})",
        "a folder made by `aid prepare`",
        "Run `aid prepare` again.",
    )


def latent_file(width: int, height: int, mirrored: bool = False) -> str:
    return f"latents-{width}x{height}{'-mirrored' if mirrored else ''}.npy"


def mask_file(width: int, height: int) -> str:
    return f"masks-{width}x{height}.npy"


def count_styles(records: Iterable[Record]) -> dict[str, int]:
    """Pictures per style, sorted by name."""
    counts: dict[str, int] = {}
    for record in records:
        counts[record.style] = counts.get(record.style, 0) + 1
    return dict(sorted(counts.items()))
