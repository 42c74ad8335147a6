"""What can be chosen about training. Defaults are for SD1.5 at 512 px; the starter's recipe has its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from aid.core.artifact import Inputs, Settings
from aid.core.blocks import block_range
from aid.core.rate import read_rates
from aid.errors import SettingsError
from aid.train.profile import PROFILES, Profile
from aid.train.tables import BalanceSettings, CaptionSettings, SampleSettings, TimestepSettings

__all__ = [
    "BalanceSettings", "CaptionSettings", "CommonSettings", "EmbeddingInputs", "EmbeddingSettings",
    "FinetuneInputs", "FinetuneSettings", "LoraInputs", "LoraSettings", "LossSettings", "SampleSettings",
    "TimestepSettings", "TrainingSettings",
]  # fmt: skip


LEAST_FACTOR = 0.01  # of a rate that is found: below it a rate was meant


class LossSettings(Settings):
    """The denoising loss, alike for whatever is trained."""

    weighting: Literal["uniform", "min_snr", "debiased"] = "min_snr"
    """How timesteps count in the loss. `debiased`: Yu et al. 2023."""
    snr_gamma: float = Field(default=5.0, gt=0)
    """Min-SNR's gamma (Hang et al. 2023)."""
    distance: Literal["l2", "huber", "smooth_l1"] = "l2"
    """Between prediction and target; the last two mind outliers less."""
    huber_c: float = Field(default=0.1, gt=0, lt=1)
    """Where huber and smooth L1 turn from square to straight, at the noisiest level."""
    huber_schedule: Literal["snr", "exponential", "constant"] = "snr"
    """How that place moves from 1 at the clean end to `huber_c`, as kohya has it."""
    noise_offset: float = Field(default=0.0, ge=0)
    """Strength of a constant added to each channel's noise; 0 is none. AIDXL's default config has 0.0357."""
    pyramid_levels: int = Field(default=0, ge=0, le=16)
    """Noises of ever larger grain added to the noise (pyramid, or multi-resolution noise); 0 is none."""
    pyramid_discount: float = Field(default=0.3, gt=0, lt=1)
    """Each level's strength by that of the level before."""
    input_perturbation: float = Field(default=0.0, ge=0)
    """Noise added to what the U-Net sees and not to its target (Ning et al. 2023, who use 0.1); 0 is none."""
    masked: bool = False
    """Weigh the loss by each picture's alpha mask, where the dataset has masks."""
    timesteps: TimestepSettings = TimestepSettings()


class CommonSettings(LossSettings):
    """What every training has."""

    batch_size: int = Field(default=4, ge=1)
    """Pictures a step, regularisation pictures included."""
    part_size: int = Field(default=0, ge=0)
    """Pictures computed at once: a step's gradients are summed over such parts, with less memory and the
    same result but for rounding. 0 computes the whole batch at once."""
    noise_draws: int = Field(default=1, ge=1)
    """Timesteps and noises drawn for each picture of a step: the text encoder runs once for all of them."""
    mirrored_share: float = Field(default=0.0, ge=0, le=1)
    """Chance that a picture is taken mirrored, left and right exchanged in its caption; 0.5 is usual, and the
    dataset must have been prepared for it."""
    gradient_norm: float = Field(default=1.0, ge=0)
    """Gradients are clipped to this norm; 0 leaves them."""
    clip_skip: int = Field(default=1, ge=1, le=12)
    """1 trains on the text encoder's last layer, as the card's later versions do. SD2 and SDXL have none, and
    1 here."""
    samples: SampleSettings = SampleSettings()
    tensorboard: bool = False
    """Write events for TensorBoard, into the folder `tensorboard`; its library must be installed."""
    save_every: int = Field(default=500, ge=1)
    """Steps between saved states; an interrupted run loses at most these."""
    keep_states: int = Field(default=2, ge=1)
    """Saved states kept while training."""
    keep_every: int = Field(default=0, ge=0)
    """Steps between weights that stay as files of their own, in the folder `kept`, with the step in their
    names: to compare how far to train. 0 keeps the last alone."""
    keep_newest: int = Field(default=0, ge=0)
    """How many of these stay, the newest; 0 keeps all."""
    save_behind: bool = True
    """Copy a state in memory and write it while training goes on. Where memory is short training waits."""
    trouble: Literal["stop", "skip", "roll_back"] = "stop"
    """What a step does whose loss or gradient is no finite number, or whose loss is a spike. `stop` ends the
    run before it, `skip` leaves it out, `roll_back` returns to the newest state and goes on behind it.
    The tenth time the run ends whatever this says. The step's pictures are named."""
    spike: float = Field(default=0.0, ge=0)
    """A loss this many times the mean of the last 100 steps' is a spike; 0 sees none."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Type of the forward and backward pass. What is trained, and its optimiser, stays fp32; the model beside
    a LoRA or an embedding takes half the memory in bf16."""
    checkpointing: bool = True
    """Recompute activations in the backward pass: less memory, about a quarter more time."""
    seed: int = 0
    """Decides order, captions, timesteps and noise."""

    def course(self) -> dict[str, Any]:
        """All but how states are saved, and what else may change before an unfinished run goes on."""
        if self.keep_every:  # what is kept tells which settings made it
            return super().course()
        beside = {"keep_states", "save_behind", "tensorboard"}
        if self.trouble != "roll_back":  # which returns to a saved state
            beside.add("save_every")
        return {name: value for name, value in super().course().items() if name not in beside}


class TrainingSettings(CommonSettings):
    """What fine-tuning and LoRA share."""

    epochs: float = Field(default=0.0, ge=0)
    """Times every trained picture is seen; give this or `steps`. The card's AID v1 used 100."""
    steps: int = Field(default=0, ge=0)
    """Optimiser steps; give this or `epochs`."""
    balance: BalanceSettings = BalanceSettings()
    regularisation_share: float = Field(default=0.0, ge=0, lt=1)
    """Share of each batch taken from the regularisation pictures (prior preservation, replay)."""
    regularisation_weight: float = Field(default=1.0, ge=0)
    """Their weight in the loss."""
    unet_rate: float = Field(default=5e-6, ge=0)
    """Learning rate of the U-Net; 0 freezes it."""
    text_rate: float = Field(default=2e-6, ge=0)
    """Learning rate of the text encoder; 0 freezes it."""
    text_2_rate: float | None = Field(default=None, ge=0)
    """Learning rate of SDXL's second text encoder; left out, that of the first. Others have none."""
    unet_stop: int = Field(default=0, ge=0)
    """Step after which the U-Net stands still; 0 is never."""
    text_stop: int = Field(default=0, ge=0)
    """Step after which the text encoder stands still; 0 is never."""
    text_2_stop: int | None = Field(default=None, ge=0)
    """The same of SDXL's second text encoder; left out, that of the first."""
    block_rates: dict[str, float] = Field(default={})
    """Factors on the rates by block: BASE (text encoders), IN00-IN11, M00, OUT00-OUT11, or ranges such as
    `IN00-05`; 0 freezes a block, and those not named have 1."""
    optimiser: Literal[
        "adamw", "adamw_8bit", "adamw_bf16", "adafactor", "adafactor_absolute", "lion", "prodigy",
        "schedule_free",
    ] = "adamw"  # fmt: skip
    """AdamW (fused) and Adafactor come with torch. `adamw_bf16` keeps weights, moments and averages in
    bfloat16, rounded at random so that small steps are not lost: 8 bytes a weight instead of 16.
    `adamw_8bit` is bitsandbytes'; the others are those of pytorch-optimizer, `adafactor_absolute` with the
    rate as given, as AIDXL's config has it. `prodigy` finds one rate for all, and wants 1 for those here."""
    fused_backward: bool = False
    """Change each weight within the backward pass and free its gradient at once. Needs `gradient_norm` = 0
    and `part_size` = 0, and no `spike` or `skip`: no gradient is whole before the weights change."""
    optimiser_options: dict[str, float] = Field(default={})
    """More arguments of the optimiser, by its library's names, such as `d_coef` of Prodigy."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """What the rates do after the warm-up."""
    warmup: int = Field(default=100, ge=0)
    """Steps over which the rates rise from 0."""
    weight_decay: float = Field(default=1e-2, ge=0)
    """Decoupled decay of the weights (Loshchilov & Hutter 2017)."""
    betas: tuple[float, float] | None = None
    """Decay of the optimiser's moments; left out, its library's own, for AdamW 0.9 and 0.999. `adafactor` has
    none, `adafactor_absolute` a first one, momentum, only where it is given."""
    ema: float = Field(default=0.999, ge=0, lt=1)
    """Decay of the averaged weights that are saved; it warms up as (1+n)/(10+n). 0 saves the last weights."""
    caption: CaptionSettings = CaptionSettings()
    output: Literal["fp16", "fp32"] = "fp16"
    """Type of the saved weights."""

    @model_validator(mode="after")
    def _one_length(self) -> TrainingSettings:
        if (self.epochs > 0) == (self.steps > 0):
            raise ValueError("give either `epochs` or `steps`, greater than 0")
        if self.unet_rate == self.text_rate == (self.text_2_rate or 0) == 0:
            raise ValueError("nothing would be trained: raise `unet_rate` or `text_rate`")
        if self.optimiser == "schedule_free" and self.ema:
            raise ValueError("`schedule_free` averages the weights itself: set `ema` to 0")
        return self

    @model_validator(mode="after")
    def _fused_backward_agrees(self) -> TrainingSettings:
        if not self.fused_backward:
            return self
        if self.gradient_norm or self.part_size:
            profile = getattr(self, "memory_profile", None)
            source = f" (which memory_profile {profile} sets)" if profile else ""
            raise ValueError(
                f"`fused_backward`{source} never has the whole gradient: set gradient_norm, part_size to 0"
            )
        if self.spike or self.trouble == "skip":
            raise ValueError("with `fused_backward` a step can't be left out: `trouble` is stop or roll_back")
        if self.optimiser in ("prodigy", "schedule_free", "adafactor_absolute"):
            raise ValueError(f"{self.optimiser} needs all gradients at once: not with `fused_backward`")
        return self

    @model_validator(mode="after")
    def _prodigy_has_one_rate(self) -> TrainingSettings:
        rates = {rate for rate in (self.unet_rate, self.text_rate, self.text_2_rate) if rate}
        factors = {factor for factor in self.block_rates.values() if factor}
        if self.optimiser == "prodigy" and (len(rates) > 1 or factors - {1.0} or min(rates) < LEAST_FACTOR):
            found = ", ".join(f"{one:g}" for one in sorted(rates | (factors - {1.0})))
            raise ValueError(
                f"`prodigy` finds one rate for all that is trained, and {found} are given: set unet_rate and "
                "text_rate to 1, or to 0 where nothing is to be trained, and block_rates to nothing else; "
                "its option d_coef scales it"
            )
        return self

    @field_validator("block_rates")
    @classmethod
    def _known_blocks(cls, rates: dict[str, float]) -> dict[str, float]:
        for name, factor in rates.items():
            try:
                block_range(name)
            except SettingsError as error:
                raise ValueError(str(error)) from error
            if factor < 0:
                raise ValueError(f"{name} has {factor}: a factor is 0 or above")
        return rates


class FinetuneSettings(TrainingSettings):
    """Full fine-tuning of U-Net and text encoders, DreamBooth style (Ruiz et al. 2022)."""

    prediction: Literal["model", "epsilon", "v"] = "model"
    """What the U-Net is to predict: as the model does, or another, which it then learns and is saved with."""
    zero_terminal_snr: bool = False
    """Train the last timestep as pure noise (Lin et al. 2023), and save the model as such; a model that is
    such already stays so. AIDXL was trained with it."""
    memory_profile: Profile | None = None
    """What the training is to fit: SD1 and SD2 at 512 px, or SDXL at 1024 px, on a card of so much memory.
    Sets precision, optimiser, checkpointing, part_size, fused_backward, gradient_norm and ema where they are
    not given."""

    @model_validator(mode="before")
    @classmethod
    def _fill_profile(cls, given: Any) -> Any:
        name = given.get("memory_profile") if isinstance(given, dict) else None
        return {**PROFILES.get(name, {}), **given} if name else given

    @model_validator(mode="after")
    def _small_weights_compute_small(self) -> FinetuneSettings:
        if self.optimiser == "adamw_bf16" and self.precision != "bf16":
            raise ValueError("`adamw_bf16` has bfloat16 weights: set `precision` to bf16")
        return self


class LoraSettings(TrainingSettings):
    """Low-rank adaptation (Hu et al. 2021) of U-Net and text encoders, saved as kohya's scripts save it."""

    name: str = Field(default="style", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """File stem, and so the word that calls it: `<lora:style:1>`."""
    rank: int = Field(default=16, ge=1)
    """Of the change of each linear layer and 1x1 convolution of the transformers."""
    alpha: float = Field(default=8.0, gt=0)
    """The change is scaled by alpha / rank."""
    conv_rank: int = Field(default=0, ge=0)
    """Rank for the U-Net's 3x3 convolutions; the linear layers beside them then have `rank`. 0 leaves both
    alone."""
    conv_alpha: float = Field(default=1.0, gt=0)
    """Their alpha."""
    unet_rate: float = Field(default=1e-4, ge=0)
    """Learning rate of the U-Net's matrices; 0 leaves the U-Net alone."""
    text_rate: float = Field(default=5e-5, ge=0)
    """Learning rate of the text encoder's matrices; 0 leaves it alone."""
    ema: float = Field(default=0.0, ge=0, lt=1)
    """Decay of the averaged matrices that are saved; 0 saves the last, as most LoRA trainers do."""

    @model_validator(mode="after")
    def _matrices_are_exact(self) -> LoraSettings:
        if self.optimiser == "adamw_bf16":
            raise ValueError("`adamw_bf16` is for whole models; a LoRA's matrices are few and exact: `adamw`")
        return self


class FinetuneInputs(Inputs):
    """What fine-tuning starts from."""

    checkpoint: Path
    """The model to start from: a checkpoint file or artifact."""
    dataset: Path
    """A Dataset with cached latents."""
    judge: Path | None = None
    """A judge of the dataset's styles, whom `balance.by` = "judge" asks."""


class LoraInputs(Inputs):
    """What a LoRA is trained with and on."""

    checkpoint: Path
    """The model it is for; frozen."""
    dataset: Path
    """A Dataset with cached latents."""
    judge: Path | None = None
    """A judge of the dataset's styles, whom `balance.by` = "judge" asks."""


class EmbeddingSettings(CommonSettings):
    """Textual inversion (Gal et al. 2022): only the new vectors are trained. By default a negative
    embedding, trained on bad pictures that the model itself drew."""

    weighting: Literal["uniform", "min_snr", "debiased"] = "uniform"
    """How timesteps count in the loss."""
    name: str = Field(default="negative", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """File stem, and so the word that calls it."""
    vectors: int = Field(default=8, ge=1, le=75)
    """Token slots it fills."""
    initial_text: str = "bad"
    """Its vectors start as this text's token embeddings, repeated."""
    templates: tuple[str, ...] = ("{name}", "{name}, {tags}")
    """Captions: `{name}` the embedding, `{tags}` the picture's tags. One is drawn a picture and step."""
    steps: int = Field(default=500, ge=1)
    """Optimiser steps. Overtrained a little on purpose: it is to know this model's own faults."""
    rate: float = Field(default=5e-3, gt=0)
    """Learning rate, falling as a cosine."""
    rates: str = ""
    """Rates in place of that one, as A1111 writes them: `0.005:100, 1e-3` is 0.005 up to step 100, then
    0.001. Its `:-1`, up to the end, may follow the last."""
    shuffle: bool = False
    """Shuffle `{tags}` at every use."""
    tag_dropout: float = Field(default=0.0, ge=0, le=1)
    """Chance that one of them is left out."""
    norm_limit: float = Field(default=3.0, ge=0)
    """Vectors are kept within this many times the vocabulary's median norm; 0 leaves them free."""
    negative: bool = True
    """Marked as a negative embedding in the metadata."""
    save_every: int = Field(default=100, ge=1)
    """Steps between saved states; an interrupted run loses at most these."""
    gradient_norm: float = Field(default=0.0, ge=0)
    """Gradients are clipped to this norm; 0 leaves them."""

    @field_validator("rates")
    @classmethod
    def _are_rates(cls, rates: str) -> str:
        if rates:
            read_rates(rates)
        return rates

    @field_validator("templates")
    @classmethod
    def _name_the_word(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        for template in templates or ("",):
            bare = template.replace("{name}", "").replace("{tags}", "")
            if "{name}" not in template or "{" in bare or "}" in bare:
                raise ValueError(f"{template!r} needs {{name}}, and knows only {{name}} and {{tags}}")
        return templates


class EmbeddingInputs(Inputs):
    """What the embedding is trained with and on."""

    checkpoint: Path
    """The model it is for; frozen."""
    pictures: Path
    """A Dataset with cached latents: here the bad pictures. Those of regularisation are left out."""
