"""What a release is told: what no file can know. Everything else on the card comes from the artifacts."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from aid.core.artifact import Inputs, Settings
from aid.core.catalogue import Comparison, Parameters, Text


class ReleaseSettings(Settings):
    """Names, dates and words of a release. Texts are given in English and Chinese; a missing Chinese
    one shows the English."""

    name: str = Field(default="model", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Short name, as it stands in file names: the card advises `NAME-VERSION.safetensors`."""
    version: str = Field(default="v1.0", pattern=r"^\S(.*\S)?$")
    """This version's name; versions of one model are told apart by it."""
    title: str = Field(default="A multi-style illustration model", min_length=1)
    """The card's heading."""
    author: str = ""
    """Whom the card and the model's metadata name."""
    date: str = ""
    """Day of release, `2026-01-31`; given, not the clock's, so that the same run gives the same bytes."""
    licence: str = ""
    """Of the weights, as an SPDX name (`CC-BY-4.0`) or in words. It can't be guessed from the pictures'."""
    description: Text = Text(en="")
    """The introduction's first paragraph."""
    tags: tuple[str, ...] = ("illustration", "multi-style")
    """Words by which model hubs file it."""
    precision: Literal["fp16", "fp32"] = "fp16"
    """Type of the released weights; fp16 halves the download and draws the same pictures."""
    parameters: Parameters = Parameters()
    """What the card recommends. Sampler, steps and sizes default to AID's own card's; the prompt formats
    are plain, as only models trained on quality words gain from them."""
    notes: tuple[Text, ...] = ()
    """What changed in this version."""
    method_notes: tuple[Text, ...] = ()
    """Said about the making, after what the lineage tells by itself."""
    comparisons: tuple[Comparison, ...] = ()
    """What versions are good at; together with the previous catalogue's, which they replace by name."""
    renames: dict[str, str] = Field(default={})
    """Old style name -> new one, for styles whose name changed in this version."""
    categories: dict[str, tuple[str, ...]] = Field(default={})
    """Category word -> the styles of that manner; a word without styles is only listed."""
    characters: tuple[str, ...] = ()
    """Characters that the model draws by name."""
    declarations: tuple[Text, ...] = ()
    """What users may and may not do."""
    references: tuple[str, ...] = ()
    """Works and pages that the texts refer to."""
    pictures_per_style: int = Field(default=8, ge=1)
    """On a style's contact sheet."""
    sample_edge_px: int = Field(default=256, ge=16, le=2048)
    """Longest side of a picture on a sheet; smaller pictures are not enlarged."""

    @field_validator("date")
    @classmethod
    def _is_day(cls, value: str) -> str:
        if value:
            datetime.date.fromisoformat(value)
        return value


class ReleaseInputs(Inputs):
    """The artifacts that are released together."""

    checkpoint: Path
    """The model: a checkpoint file or artifact."""
    dataset: Path
    """The Dataset it was trained on: its styles, counts, licences and credits."""
    embeddings: list[Path] = Field(default=[])
    """Embedding artifacts or files."""
    report: Path | None = None
    """The Report of a gallery drawn with this model."""
    gallery: Path | None = None
    """A Gallery drawn with this model, for the contact sheets."""
    catalogue: Path | None = None
    """The previous version's catalogue.toml or release: since when each style is known, and old names."""
    previous_reports: dict[str, Path] = Field(default={})
    """Earlier version -> its Report or release, to compare with."""
