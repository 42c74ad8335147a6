"""Tables inside the settings of training: captions, sample sheets, timesteps."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from aid.core.artifact import Settings

ALL_STYLES = "*"
MEASUREMENTS = 20  # of a run, if the settings don't say


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
    weighted: bool = False
    """Whether a tag written as `(tag:1.3)` weighs so much, by A1111's rule; all other brackets are words."""
    windows: int = Field(default=1, ge=1, le=3)
    """Windows of 75 tokens; a longer caption is cut."""


class BalanceSettings(Settings):
    """How often each style comes up, what is measured of it, and when it has learnt enough. Regularisation
    pictures stand beside all this, with their share of a batch."""

    rule: Literal["by_count", "equal", "repeats", "author", "measured"] = "by_count"
    """`by_count`: each picture once an epoch. `equal`: each style alike. `repeats`: a picture of a folder
    `10_NAME` ten times as often as one of `1_NAME`, as kohya's scripts have it. `author`: pictures of rare
    artists and characters, and good ones, up to 10 times, those of low quality never, as the author's scripts
    have it. `measured`: styles that are behind, by their held-out pictures, come up more often than those
    ahead. An epoch has as many places as there are pictures, whatever the rule."""
    by: Literal["judge", "word", "loss"] = "judge"
    """What tells `measured` who is behind. `judge`: how surely the judge that is given tells the `pictures`
    drawn of a style, as `samples` says, from those of others. `word`: the loss of held-out pictures over that
    without the style's word in the caption. `loss`: the loss over that of the start model, which hangs on
    what it knew. The losses cost less, and on a lopsided world they didn't tell who was behind: see the
    experiments."""
    measure: bool = False
    """Measure every style even where nothing hangs on it, for the charts."""
    every: int = Field(default=0, ge=0)
    """Steps between two measurements; 0 makes 20 of them in a run."""
    pictures: int = Field(default=4, ge=1)
    """Held-out pictures of a style that are measured, as many of those trained on, and, by the judge, as many
    drawn."""
    timesteps: int = Field(default=4, ge=1, le=100)
    """Noise levels at which each is measured, spread evenly over the law's probability."""
    strength: float = Field(default=2.0, ge=0)
    """How strongly weights follow: a style with twice as much left as the mean comes up 2^`strength` times
    as often. GradNorm's alpha."""
    bound: float = Field(default=4.0, ge=1)
    """No style comes up more often than this times its usual share, nor less often than one part in it, but
    for what the others' weights do to the sum."""
    smoothing: float = Field(default=0.0, ge=0, lt=1)
    """How much of a weight stays from one measurement to the next. In the experiments more was lost by being
    late than gained by being steady."""
    stop_at: Literal["never", "slightly overfit"] = "never"
    """When a style has learnt enough: never, or when its trained pictures' loss has fallen further than that
    of held-out ones by `overfit_gap`, and the latter falls no more. It then waits with weight `rest`; the run
    ends when all styles wait, and saves the newest weights at which few are beyond their point."""
    overfit_gap: float = Field(default=0.1, gt=0)
    """How much further the trained loss has fallen, as a logarithm: 0.1 is about 10 %."""
    overfit_rise: float = Field(default=0.02, ge=0)
    """A style is beyond its point when its held-out loss is this share above its lowest."""
    beyond_share: float = Field(default=0.1, ge=0, le=1)
    """Share of the styles that may be beyond their point in the weights that are saved."""
    rest: float = Field(default=0.1, ge=0, le=1)
    """Weight of a style at its point, so that it isn't forgotten; 0 leaves it out."""

    @property
    def measures(self) -> bool:
        """Whether anything is measured."""
        return self.measure or self.live

    def interval(self, steps: int) -> int:
        """Steps between the measurements of a run; 0 if there are none."""
        return (self.every or -(-steps // MEASUREMENTS)) if self.measures else 0

    @property
    def by_word(self) -> bool:
        """Whether held-out pictures are also measured without their style's word."""
        return self.rule == "measured" and self.by == "word"

    @property
    def by_judge(self) -> bool:
        """Whether pictures are drawn of every style, and judged."""
        return self.rule == "measured" and self.by == "judge"

    @property
    def live(self) -> bool:
        """Whether the order hangs on what is measured."""
        return self.rule == "measured" or self.stop_at != "never"


class SampleSettings(Settings):
    """Sheets drawn while training, with fixed seeds, so that progress can be seen."""

    every: int = Field(default=0, ge=0)
    """Steps between sheets; 0 draws none."""
    prompts: tuple[str, ...] = ()
    """One picture each."""
    styles: tuple[str, ...] = ()
    """Styles drawn after the prompts, by captions of their own pictures, held-out ones first; `*` is all."""
    per_style: int = Field(default=2, ge=1)
    """Pictures of each of these styles."""
    near_copies: bool = False
    """Whether each sheet is compared with every trained picture; a style at least half of whose pictures are
    near copies is slightly overfit. A picture is one if its layout is nearer to a trained picture than that
    of 99 % of the held-out ones."""
    negative_prompt: str = ""
    """The same for every picture; empty shows what the prompts alone give."""
    steps: int = Field(default=20, ge=1)
    """Sampler steps: fewer than for a release, to cost little."""
    cfg_scale: float = Field(default=5.0, ge=0)
    """Classifier-free guidance."""
    width: int | None = Field(default=None, ge=8, multiple_of=8)
    """Pixels; left out, the size that the model was trained at."""
    height: int | None = Field(default=None, ge=8, multiple_of=8)
    """Pixels; left out, the size that the model was trained at."""

    def size(self, native_edge_px: int) -> tuple[int, int]:
        """Width and height, pixels."""
        return self.width or native_edge_px, self.height or native_edge_px


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
