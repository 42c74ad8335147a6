"""What a merge is told."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from aid.core.artifact import Inputs, Settings


class MergeSettings(Settings):
    """Merge Block Weighted of any number of models, in one pass."""

    preset: str = ""
    """A named recipe, such as `aid-v1`; `weights` given beside it override it model by model."""
    primary: str = ""
    """The model that supplies whatever the others don't take; empty means the preset's, or `base`."""
    weights: dict[str, dict[str, float | list[float]]] = Field(default_factory=dict)
    """For each model but the primary: block or range (`BASE`, `IN00-05`, `OUT`) -> share, 0 to 1.
    A list gives a range one share a block. Blocks not named are 0, so nothing changes unasked."""
    steps: tuple[str, ...] = ()
    """Empty, weights are shares of the result. Else they are those of successive merges of two models
    (result so far, then the model named), as the Merge Block Weighted extension is used, in this order."""
    precision: Literal["keep", "fp16", "bf16", "fp32"] = "keep"
    """Of the floating tensors written; `keep` is each tensor's own precision in the primary."""


class MergeInputs(Inputs):
    """The parents."""

    models: dict[str, Path]
    """Name -> checkpoint artifact or file. The names are those used in `weights` and `primary`."""
    vae: Path | None = None
    """A VAE file, or a checkpoint that holds one, to put in place of the merged VAE."""
