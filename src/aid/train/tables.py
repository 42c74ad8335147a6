"""Tables inside the settings of training: captions, sample sheets, timesteps."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from aid.core.artifact import Settings


class CaptionSettings(Settings):
    """How a record becomes the text of one training step. Rules apply in the order in which they stand."""

    prefix: str = ""
    """Put before every caption, ahead of the trigger; kept like it."""
    suffix: str = ""
    """Put behind every caption; never shuffled nor dropped."""
    dropout: float = Field(default=0.1, ge=0, le=1)
    """Chance that the whole caption is empty: what classifier-free guidance needs (Ho & Salimans 2022)."""
    description_share: float = Field(default=0.5, ge=0, le=1)
    """Chance that a picture with a description in sentences is captioned by that, and not by its tags; the
    author's AIDXL used one half."""
    dropout_every: int = Field(default=0, ge=0)
    """Every so many epochs all captions are empty for one epoch; 0 is never."""
    wildcards: bool = False
    """Whether `{a|b}` in a caption is one of its alternatives, drawn at every use."""
    keep: int = Field(default=1, ge=0)
    """Leading tags that stay in front, are never shuffled nor dropped; 1 keeps the style trigger. Those that
    the dataset fixes, as `|||` in a caption does, stay anyway."""
    warmup_tags: int = Field(default=1, ge=1)
    """Tags behind the kept ones that are used at the first step."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps until all tags are used; 0 uses them from the start."""
    shuffle: bool = True
    """Shuffle the tags behind the kept ones at every use: the order should not be learned."""
    tag_dropout: float = Field(default=0.0, ge=0, le=1)
    """Chance that a tag behind the kept ones is left out."""
    frequent_count: int = Field(default=0, ge=0)
    """A tag behind the kept ones that more trained pictures have than this is left out with probability
    1 - frequent_count / their count; the author's AIDXL used 100, for triggers too (`keep` = 0). 0 is off."""
    secondary_separator: str = ""
    """Tags joined by it, such as ";;;", are shuffled and dropped as one, and then parted; empty is none."""
    windows: int = Field(default=1, ge=1, le=3)
    """Windows of 75 tokens; a longer caption is cut."""


class BalanceSettings(Settings):
    """How often each style comes up. Regularisation pictures stand beside it, with their share of a batch."""

    rule: Literal["by_count", "equal", "author", "measured"] = "by_count"
    """`by_count`: each picture once an epoch. `equal`: each style alike. `author`: pictures of rare artists
    and characters, and good ones, up to 10 times, those of low quality never, as the author's scripts have
    it. `measured`: styles that are behind, by their held-out pictures, come up more often than those ahead.
    An epoch has as many places as there are pictures, whatever the rule."""


class SampleSettings(Settings):
    """Sheets drawn while training, with fixed seeds, so that progress can be seen."""

    every: int = Field(default=0, ge=0)
    """Steps between sheets; 0 draws none."""
    prompts: tuple[str, ...] = ()
    """One picture each."""
    negative_prompt: str = ""
    """The same for every picture; empty shows what the prompts alone give."""
    steps: int = Field(default=20, ge=1)
    """Sampler steps: fewer than for a release, to cost little."""
    cfg_scale: float = Field(default=5.0, ge=0)
    """Classifier-free guidance."""
    width: int = Field(default=512, ge=8, multiple_of=8)
    """Pixels."""
    height: int = Field(default=512, ge=8, multiple_of=8)
    """Pixels."""


class TimestepSettings(Settings):
    """Which noise levels are trained on. A picture's draws are spread evenly over the law's probability."""

    law: Literal["uniform", "logit_normal"] = "uniform"
    """`logit_normal` prefers the middle: the sigmoid of a normal variable (Esser et al. 2024)."""
    mean: float = 0.0
    """Of the logit-normal law's normal; above 0 prefers noisier levels."""
    spread: float = Field(default=1.0, gt=0)
    """Its standard deviation."""
    lowest: int = Field(default=0, ge=0, le=999)
    """First timestep of the range; 0 is almost clean."""
    highest: int = Field(default=1000, ge=1, le=1000)
    """End of the range, itself left out."""

    @model_validator(mode="after")
    def _some_timestep(self) -> TimestepSettings:
        if self.lowest >= self.highest:
            raise ValueError("`lowest` must be below `highest`")
        return self
