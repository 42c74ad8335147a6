"""What a judge and an evaluation are told."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from aid.core.artifact import Inputs, Settings


class JudgeSettings(Settings):
    """A small network that names style and tags of a picture, taught on the dataset's own pictures."""

    groups: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Name -> tags of which a picture shows at most one (`hair` -> `black hair`, `red hair`, ...). With
    `groups` and `tags` both empty they are derived from the dataset: see `panel.derive`."""
    tags: tuple[str, ...] = ()
    """Single tags, each present or absent (`glasses`)."""
    tag_share_min: float = Field(default=0.02, ge=0, le=0.5)
    """Derived single tags occur in this share of the pictures at least, and lack in as many: a rarer
    one has too few held-out pictures for a ceiling."""
    option_share_min: float = Field(default=0.005, ge=0, le=0.5)
    """Derived groups leave out tags rarer than this share of the pictures."""
    tag_limit: int = Field(default=32, ge=0)
    """The most frequent single tags that are derived, at most; more slow nothing but the reading."""
    epochs: int = Field(default=0, ge=0)
    """Passes over the training pictures; 0 chooses as many as show `pictures_seen`, at least 4."""
    pictures_seen: int = Field(default=30_000, ge=1)
    """The training budget while `epochs` is 0: about a minute of one CPU core."""
    batch_size: int = Field(default=48, ge=1)
    """Pictures a step. Small, as small datasets need many steps."""
    learning_rate: float = Field(default=4e-3, gt=0)
    """AdamW's peak, after a warm-up of 5 % of the steps; falls to 0 along a cosine."""
    weight_decay: float = Field(default=0.05, ge=0)
    """AdamW's, on the convolutions and heads."""
    width: int = Field(default=16, ge=4)
    """Channels of the first stage; the later ones have 2, 4 and 8 times as many."""
    flip: bool = True
    """Mirror half of the pictures seen; turn off where a tag or style tells left from right."""
    spoil: float = Field(default=1.0, ge=0, le=1)
    """How far pictures seen are blurred, blocked and made noisy (1: twice down and up, noise 0.06 of
    the range); keeps a VAE's softness from fooling the judge."""
    save_every: int = Field(default=4, ge=1)
    """Epochs between two states saved; an interrupted run continues from the last."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Of the first weights, the order and the augmentation."""


class JudgeInputs(Inputs):
    """Real pictures."""

    dataset: Path
    """A Dataset artifact. Its `train` pictures teach; its `held` ones set the ceilings."""
    extra: dict[str, Path] = Field(default_factory=dict)
    """More Datasets to teach and test it with, such as cells that the model must not see."""


class EvaluateSettings(Settings):
    """A gallery, judged."""

    title: str = "Gallery"
    """The report's heading."""
    cells: tuple[tuple[str, str], ...] = ()
    """(style, tag) pairs that the model was never taught together; shots that ask for one make the
    score `withheld`."""


class EvaluateInputs(Inputs):
    """A gallery and who judges it."""

    gallery: Path
    """A Gallery: pictures, and `shots.jsonl` with what each was to show."""
    judge: Path
    """A Judge artifact."""
    baseline: Path | None = None
    """A second Gallery, drawn from the same shots with one thing changed, such as the negative prompt;
    compared picture by picture in `paired.json`."""
