"""What a merge is told."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AllowInfNan, BaseModel, ConfigDict, Field

from aid.core.artifact import Inputs, Settings
from aid.core.lineage import LINEAGE_FILE
from aid.sd.model.location import ARTIFACT_FILE

Number = Annotated[float, AllowInfNan()]  # which is told to be none together with its model and block
Weight = Number | str | list[Number] | dict[str, Number | list[Number]]


class MergeStep(BaseModel):
    """One step of a chain: a mode, the models that it takes, and its weights."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str = ""
    """By which later steps take the result; the last step's is the merge."""
    mode: str = "weighted_sum"
    """How the models are put together: see docs/how-it-works.md for the list."""
    models: tuple[str, ...] = Field(min_length=1)
    """A, B and, where the mode takes one, C: names of models or of earlier steps."""
    alpha: Weight = 0.5
    """One number for all blocks; or block or range (`BASE`, `IN00-05`, `OUT`) -> number, blocks not named
    being 0; or a number for each block, as in `weights`; or the name of a curve that the community knows,
    such as `GRAD_V`."""
    beta: Weight = 0.0
    """The mode's second weight, if it has one: C's share, a kept fraction, a probability."""
    gamma: Weight = 1.0
    """The mode's third, if it has one."""
    elements: tuple[str, ...] = ()
    """Rules `BLOCKS:ELEMENTS:alpha` for what alpha alone can't say, as supermerger has them:
    `IN00-IN11:attn2 ff:0.3`. Words are parts of tensors' names; `NOT` before them turns them round; empty
    means all. Of several rules that fit the last counts."""
    freeze: tuple[str, ...] = ()
    """Blocks or ranges that stay as in A."""
    seed: int = 0
    """Of what a mode draws by chance (DARE)."""


class MergeSettings(Settings):
    """Any number of models put together block by block, in one pass."""

    preset: str = ""
    """A named recipe, such as `aid-v1`; `weights` given beside it override it model by model."""
    primary: str = ""
    """The model that supplies whatever the others don't take; empty means the preset's, or `base`."""
    weights: dict[str, Weight] = Field(default_factory=dict)
    """For each model but the primary: block or range (`BASE`, `IN00-05`, `OUT`) -> share, 0 to 1.
    A list gives a range one share a block. Blocks not named are 0, so nothing changes unasked. Or all shares
    in the community's order, as a list or as text with commas: BASE (the base alpha), IN00-11, M00, OUT00-11,
    which are 26 numbers; for SDXL BASE, IN00-08, M00, OUT00-08, which are 20. Or what else a step's `alpha`
    may be."""
    steps: tuple[str, ...] = ()
    """Empty, weights are shares of the result. Else they are those of successive merges of two models
    (result so far, then the model named), as the Merge Block Weighted extension is used, in this order."""
    chain: tuple[MergeStep, ...] = ()
    """In place of all that: steps of any mode. However many there are, each value is computed once."""
    convention: Literal["mbw", "supermerger", "mecha"] = "mbw"
    """Whose blocks the weights mean: tools differ about the tensors between the blocks. The card's weights
    are those of Merge Block Weighted."""
    precision: Literal["keep", "fp16", "bf16", "fp32"] = "keep"
    """Of the floating tensors written; `keep` is each tensor's own precision in the primary."""
    lora_weights: dict[str, Weight] = Field(default_factory=dict)
    """Adapter -> weight, written as a step's alpha is; 1 for those not named. Negative takes away."""
    prune: bool = False
    """Leave out what no picture needs: averages (EMA), schedules, the state of a training."""
    broken: Literal["error", "keep"] = "error"
    """What becomes of tensors with NaN or infinity: an error that names the first, or they are written as
    they come out, and `broken.json` names them all. So too of a tensor that a model lacks of a block that it
    gives: an error, or it is what the other models make of it."""


class MergeInputs(Inputs):
    """The parents."""

    models: dict[str, Path] = Field(min_length=1)
    """Name -> checkpoint artifact or file. The names are those used in `weights` and `primary`."""
    loras: dict[str, Path] = Field(default_factory=dict)
    """Name -> adapter to bake into the result: a file, or an artifact that holds one."""
    vae: Path | None = None
    """A VAE file, or a checkpoint that holds one, to put in place of the merged VAE."""

    def known_by(self, path: Path) -> Path:
        return file_of(path)


def file_of(path: Path) -> Path:
    """An artifact's model, which is the same parent wherever it lies; anything else as it is."""
    file = path / ARTIFACT_FILE
    return file if (path / LINEAGE_FILE).is_file() and file.is_file() else path


class ExtractSettings(Settings):
    """What one checkpoint has learned beyond another, as a LoRA."""

    name: str = Field(default="extracted", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """File stem, and so the word that calls it: `<lora:extracted:1>`."""
    rank: int = Field(default=32, ge=1, le=1280)
    """Of linear layers and 1x1 convolutions. The more, the nearer and larger; `kept.json` tells how near."""
    conv_rank: int = Field(default=0, ge=0, le=1280)
    """Of the 3x3 convolutions; 0 leaves them out, as most LoRA do."""
    text_encoder: bool = True
    """Whether the text encoders' differences are taken too."""
    precision: Literal["fp16", "bf16", "fp32"] = "fp16"
    """Of the tensors written."""


class ExtractInputs(Inputs):
    """Two checkpoints of one architecture."""

    tuned: Path
    """The one that has learned something: an artifact, a file or a diffusers folder."""
    origin: Path
    """The one that it was trained from."""


class DistanceSettings(Settings):
    """How far models are from each other, block by block."""

    convention: Literal["mbw", "supermerger", "mecha"] = "mbw"
    """Whose blocks they are, as in `merge`."""


class DistanceInputs(Inputs):
    """Two models or more, of one architecture."""

    models: dict[str, Path] = Field(min_length=1)
    """Name -> checkpoint artifact or file."""
