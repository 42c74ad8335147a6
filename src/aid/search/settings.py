"""What a search is told."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from aid.core.artifact import Inputs, Settings
from aid.generate.settings import DrawingSettings, GenerateSettings, Plan
from aid.merge.settings import MergeSettings


class Knob(BaseModel):
    """Weights that the search may turn. Blocks that no knob names are frozen at the merge's own weights."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    model: str
    """Whose weights: any of the merge's models but the primary; in a chain, the step whose alpha it is."""
    blocks: tuple[str, ...] = Field(min_length=1)
    """Blocks or ranges: `IN00-05`, `M00`, `OUT`."""
    low: float = Field(default=0.0, ge=0, le=1)
    """The least weight."""
    high: float = Field(default=1.0, ge=0, le=1)
    """The greatest."""
    together: bool = False
    """Whether all of these blocks have one weight; else each has its own."""

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if not self.low < self.high:
            raise ValueError("low must be below high; what isn't to be turned is left out")
        return self


class SearchSettings(Settings):
    """Block weights by what is measured: every style as its artists draw it, the content asked for, and no
    artefacts. How pretty a picture is isn't asked."""

    merge: MergeSettings = MergeSettings()
    """Where the search begins, and what stays as it is: primary, steps or chain, convention."""
    knobs: tuple[Knob, ...] = Field(min_length=1)
    """What is turned."""
    drawing: GenerateSettings = GenerateSettings(plan=Plan(shots_per_style=4))
    """How each trial's pictures are drawn; its plan says which."""
    trials: int = Field(default=40, ge=2)
    """Merges tried, the given one first."""
    floor: float = Field(default=0.9, ge=0, le=1)
    """Of each style's score in the primary alone, the share that a merge must keep in every style."""
    content: float = Field(default=0.5, ge=0)
    """What the share of content that is shown counts beside the style score."""
    artefact: float = Field(default=0.1, ge=0)
    """What the artefact measure, in spreads of real pictures, takes off."""
    held_per_style: int = Field(default=8, ge=1)
    """Pictures of each style, with prompts and seeds that no trial saw, by which the result is compared with
    its parents."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Of the optimiser."""

    def course(self) -> dict[str, Any]:
        """All but how many trials: an unfinished search may go on to more."""
        return {name: value for name, value in super().course().items() if name != "trials"}


class SearchInputs(Inputs):
    """Parents, and who judges."""

    models: dict[str, Path] = Field(min_length=1)
    """Name -> checkpoint, as `merge` takes them."""
    dataset: Path
    """The Dataset whose styles and tags the plan draws."""
    judge: Path
    """A Judge artifact."""
    embeddings: tuple[Path, ...] = ()
    """Those that the drawing's prompts name."""
    vae: Path | None = None
    """A VAE in place of the merged one."""


class SheetSettings(Settings):
    """What each block's weight does to one picture."""

    merge: MergeSettings = MergeSettings()
    """The merge of which one weight at a time is turned."""
    model: str
    """Whose weights: any of the merge's models but the primary; in a chain, the step whose alpha it is."""
    blocks: tuple[str, ...] = ()
    """Blocks or ranges; empty means all."""
    weights: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(default=(0.0, 0.5, 1.0), min_length=1)
    """A column each."""
    drawing: DrawingSettings = DrawingSettings()
    """The prompt, seed and sampling of the picture."""


class SheetInputs(Inputs):
    """Parents."""

    models: dict[str, Path] = Field(min_length=1)
    """Name -> checkpoint, as `merge` takes them."""
    embeddings: tuple[Path, ...] = ()
    """Those that the drawing's prompts name."""
    vae: Path | None = None
    """A VAE in place of the merged one."""
