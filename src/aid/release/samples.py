"""Contact sheets from a gallery's pictures: one a style, and one page of all styles."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from aid.core.gallery import read_gallery
from aid.core.picture import open_small
from aid.core.release import OVERVIEW, SAMPLE_FOLDER
from aid.core.shot import Shot
from aid.sd.picture.sheet import captioned, sheet

GAP_PX = 4
COLUMNS = 4  # of a style's sheet
AGAIN = "Run `aid generate` again."


@dataclass(frozen=True)
class Sample:
    """One picture of a gallery."""

    file: Path
    shot: Shot


@dataclass(frozen=True)
class Sheets:
    """What was drawn, as paths inside the release: `overview` is empty if nothing was."""

    overview: str = ""
    by_style: Mapping[str, str] = field(default_factory=dict)


def read_samples(gallery: Path) -> list[Sample]:
    """The pictures of a Gallery, in its own order. Raises ArtifactError if it is malformed."""
    return [Sample(gallery / frame.file, frame.shot) for frame in read_gallery(gallery)]


def group_samples(samples: Iterable[Sample], triggers: Mapping[str, str]) -> dict[str, list[Sample]]:
    """Samples of each style in `triggers` (style -> trigger word), in that order; styles without any are
    left out. A shot that names no style belongs to the one style whose trigger stands in its prompt."""
    groups: dict[str, list[Sample]] = {style: [] for style in triggers}
    for sample in samples:
        style = sample.shot.style or _style_of(sample.shot.prompt, triggers)
        if style in groups:
            groups[style].append(sample)
    return {style: chosen for style, chosen in groups.items() if chosen}


def draw_sheets(
    groups: Mapping[str, Sequence[Sample]], files: Mapping[str, str], out: Path, per_style: int, edge_px: int
) -> Sheets:
    """Write each style's sheet where `files` says, and `samples/all.png` with the first picture of each.

    Raises PictureError for a picture that can't be read.
    """
    if not groups:
        return Sheets()
    folder = out / SAMPLE_FOLDER
    folder.mkdir()
    covers: dict[str, Image.Image] = {}
    for style, samples in groups.items():
        pictures = [open_small(sample.file, edge_px, AGAIN) for sample in samples[:per_style]]
        covers[style] = pictures[0]
        sheet(pictures, min(COLUMNS, len(pictures)), GAP_PX).save(out / files[style], optimize=True)
    columns = math.ceil(math.sqrt(len(covers)))
    overview = sheet([captioned(picture, style) for style, picture in covers.items()], columns, GAP_PX)
    overview.save(folder / f"{OVERVIEW}.png", optimize=True)
    return Sheets(f"{SAMPLE_FOLDER}/{OVERVIEW}.png", {style: files[style] for style in groups})


def _style_of(prompt: str, triggers: Mapping[str, str]) -> str:
    words = {part.strip(" ()[]\n").split(":")[0].casefold() for part in prompt.split(",")}
    named = [style for style, trigger in triggers.items() if trigger.casefold() in words]
    return named[0] if len(named) == 1 else ""
