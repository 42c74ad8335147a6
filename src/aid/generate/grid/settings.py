"""What `grid` can be told."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from aid.generate.grid.value import written
from aid.generate.settings import DrawingInputs, DrawingSettings


class GridSettings(DrawingSettings):
    """One shot, as `generate` makes it, and what varies along each axis."""

    x: str = ""
    """What varies from column to column: `steps=10-30(+10)`, `style` for every style of the model,
    `replace=cat,dog` for other words in place of one; in TOML also `x = { steps = [10, 20] }`. `aid grid
    --axes` lists all."""
    y: str = ""
    """What varies from row to row."""
    z: str = ""
    """What varies from sheet to sheet."""
    sheet_edge_px: int = Field(default=6000, ge=1000, le=16_000)
    """Longest side of a labelled sheet, pixels: cells are made smaller down to 128 pixels, and after that
    the grid goes on on another sheet."""

    @field_validator("x", "y", "z", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        """A table of one kind and its values, as the text that means the same."""
        if not isinstance(value, Mapping):
            return value
        if len(value) != 1:
            raise ValueError(f"{len(value)} kinds on one axis; one is expected: {{ steps = [10, 20] }}")
        [(kind, values)] = value.items()
        if isinstance(values, str):
            return f"{kind}={values}"
        many = values if isinstance(values, (list, tuple)) else [values]
        if not all(isinstance(one, (str, int, float)) for one in many):
            raise ValueError(f"the values of {kind} are no texts and numbers")
        return f"{kind}={written(many)}"


class GridInputs(DrawingInputs):
    """What is drawn with, and what the axes `checkpoint` and `vae` choose from."""

    checkpoints: dict[str, Path] = Field(default={})
    """Name -> checkpoint: more for the axis `checkpoint`, which knows the first by its file's name."""
    vaes: dict[str, Path] = Field(default={})
    """Name -> VAE: more for the axis `vae`, which knows the checkpoint's own as `own`."""
