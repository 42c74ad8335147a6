"""What `generate` can be told."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from aid.core.artifact import Inputs, Settings


class Plan(BaseModel):
    """Shots for an evaluation: so many a style, their content drawn by chance from the dataset's tags."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    shots_per_style: int = Field(default=8, ge=1)
    """Pictures of each style; each style draws its own content. Seeds count up through the whole plan,
    so that no two of its pictures share one."""
    styles: tuple[str, ...] = ()
    """Only these styles of the dataset; empty means all."""
    without: tuple[str, ...] = ()
    """Pictures with any of these tags are not drawn from, such as `low quality`."""
    groups: dict[str, tuple[str, ...]] = Field(default={})
    """Name -> tags of which a picture shows at most one (`hair` -> `black hair`, ...). Each shot has one
    tag of each group, or none where the style's pictures can go without. Empty: the tags of one of the
    style's own pictures."""
    combinations: Literal["seen", "any", "unseen"] = "seen"
    """Tags that occur with the style; that occur at all; or, wherever there are any, only those that
    occur but never with the style (for composition)."""


class GenerateSettings(Settings):
    """Pictures to draw. Defaults are the card's: Euler a, 32 steps, clip skip 1."""

    prompt: str = ""
    """A1111 syntax: `(weight:1.2)`, `[less]`, BREAK. With a plan, it follows each shot's tags."""
    negative_prompt: str = ""
    """A1111 syntax; an embedding is named by its file's stem."""
    styles: tuple[str, ...] = ()
    """Names of styles, together in every picture: `by a, by b`."""
    template: bool = False
    """Whether the card's formats are put around the prompts; off, as only models trained on their words
    gain from them."""
    prompt_template: str = ""
    """`{trigger}` stands for the styles, `{tags}` for the prompt; empty is AID's card's."""
    negative_template: str = ""
    """`{embedding}` stands for all embeddings given, `{tags}` for the negative prompt; empty: the card's."""
    plan: Plan | None = None
    """Shots for an evaluation, in place of one prompt."""
    count: int = Field(default=1, ge=1, le=100_000)
    """Pictures of the prompt."""
    seed: int = Field(default=0, ge=0, lt=2**62)
    """Of the first picture; the next ones count up."""
    steps: int = Field(default=32, ge=1, le=1000)
    """Sampler steps; the card's 32 (its other language says 40, which also works)."""
    cfg_scale: float = Field(default=7.0, ge=0, le=100)
    """Classifier-free guidance; 7 is A1111's, as the card names none. 1 leaves the negative prompt out."""
    width: int | None = Field(default=None, ge=8, le=8192, multiple_of=8)
    """Pixels; None is the size that the model was trained at."""
    height: int | None = Field(default=None, ge=8, le=8192, multiple_of=8)
    """Pixels; None is the size that the model was trained at."""
    sampler: str = "Euler a"
    """The A1111 name; the card's."""
    clip_skip: int = Field(default=1, ge=1, le=12)
    """1 is the last layer of the text encoder; the card's."""
    batch_size: int = Field(default=8, ge=1, le=256)
    """Pictures drawn together; more need more memory, and pictures change by rounding at most."""
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Of the weights while drawing; fp16 halves the memory on a GPU."""


class GenerateInputs(Inputs):
    """What is drawn with."""

    checkpoint: Path
    """An SD1 checkpoint file, or a folder that holds `model.safetensors`."""
    vae: Path | None = None
    """A VAE in place of the checkpoint's own."""
    embeddings: tuple[Path, ...] = ()
    """Files, embedding artifacts, or folders of embeddings such as a release's."""
    shots: Path | None = None
    """Shots already written down: a `shots.jsonl` or a folder with one; the settings' prompt, size and
    sampling then say nothing."""
    dataset: Path | None = None
    """The Dataset whose styles and tags a plan draws from."""

    def paths(self) -> dict[str, Path]:
        """An embedding's name is what calls it, so it counts as much as its content."""
        named = {name: path for name, path in super().paths().items() if not name.startswith("embeddings.")}
        for index, path in enumerate(self.embeddings):
            named[f"embeddings.{f'{index}/' if path.is_dir() else path.stem}"] = path
        return named
