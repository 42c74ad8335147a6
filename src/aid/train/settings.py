"""What can be chosen about training. Defaults are for SD1.5 at 512 px; the starter's recipe has its own."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from aid.core.artifact import Inputs, Settings


class CaptionSettings(Settings):
    """How a record becomes the text of one training step."""

    shuffle: bool = True
    """Shuffle the tags behind the kept ones at every use: the order should not be learned."""
    keep: int = Field(default=1, ge=0)
    """Leading tags that stay in front, are never shuffled nor dropped; 1 keeps the style trigger."""
    dropout: float = Field(default=0.1, ge=0, le=1)
    """Chance that the whole caption is empty: what classifier-free guidance needs (Ho & Salimans 2022)."""
    tag_dropout: float = Field(default=0.0, ge=0, le=1)
    """Chance that a tag behind the kept ones is left out."""
    windows: int = Field(default=1, ge=1, le=3)
    """Windows of 75 tokens; a longer caption is cut."""


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


class FinetuneSettings(Settings):
    """Full fine-tuning of U-Net and text encoder, DreamBooth style (Ruiz et al. 2022)."""

    epochs: float = Field(default=0.0, ge=0)
    """Times every trained picture is seen; give this or `steps`. The card's AID v1 used 100."""
    steps: int = Field(default=0, ge=0)
    """Optimiser steps; give this or `epochs`."""
    batch_size: int = Field(default=4, ge=1)
    """Pictures a step, regularisation pictures included."""
    part_size: int = Field(default=0, ge=0)
    """Pictures computed at once: a step's gradients are summed over such parts, with less memory and the
    same result but for rounding. 0 computes the whole batch at once."""
    noise_draws: int = Field(default=1, ge=1)
    """Timesteps and noises drawn for each picture of a step: the text encoder runs once for all of them."""
    regularisation_share: float = Field(default=0.0, ge=0, lt=1)
    """Share of each batch taken from the regularisation pictures (prior preservation, replay)."""
    regularisation_weight: float = Field(default=1.0, ge=0)
    """Their weight in the loss."""
    unet_rate: float = Field(default=5e-6, ge=0)
    """Learning rate of the U-Net; 0 freezes it."""
    text_rate: float = Field(default=2e-6, ge=0)
    """Learning rate of the text encoder; 0 freezes it."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """What the rates do after the warm-up."""
    warmup: int = Field(default=100, ge=0)
    """Steps over which the rates rise from 0."""
    weight_decay: float = Field(default=1e-2, ge=0)
    """AdamW's decoupled decay (Loshchilov & Hutter 2017)."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's moments."""
    gradient_norm: float = Field(default=1.0, ge=0)
    """Gradients are clipped to this norm; 0 leaves them."""
    weighting: Literal["uniform", "min_snr"] = "min_snr"
    """How timesteps count in the loss."""
    snr_gamma: float = Field(default=5.0, gt=0)
    """Min-SNR's gamma (Hang et al. 2023)."""
    noise_offset: float = Field(default=0.0, ge=0)
    """Strength of a constant added to each channel's noise; 0 is none."""
    clip_skip: int = Field(default=1, ge=1, le=12)
    """1 trains on the text encoder's last layer, as the card's later versions do."""
    ema: float = Field(default=0.999, ge=0, lt=1)
    """Decay of the averaged weights that are saved; it warms up as (1+n)/(10+n). 0 saves the last weights."""
    caption: CaptionSettings = CaptionSettings()
    samples: SampleSettings = SampleSettings()
    save_every: int = Field(default=500, ge=1)
    """Steps between saved states; an interrupted run loses at most these."""
    keep_states: int = Field(default=2, ge=1)
    """Saved states kept while training."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Type of the forward and backward pass; weights and optimiser stay fp32."""
    checkpointing: bool = True
    """Recompute activations in the backward pass: less memory, about a quarter more time."""
    output: Literal["fp16", "fp32"] = "fp16"
    """Type of the saved checkpoint."""
    seed: int = 0
    """Decides order, captions, timesteps and noise."""

    @model_validator(mode="after")
    def _one_length(self) -> FinetuneSettings:
        if (self.epochs > 0) == (self.steps > 0):
            raise ValueError("give either `epochs` or `steps`, greater than 0")
        if self.unet_rate == self.text_rate == 0:
            raise ValueError("nothing would be trained: raise `unet_rate` or `text_rate`")
        return self


class FinetuneInputs(Inputs):
    """What fine-tuning starts from."""

    checkpoint: Path
    """The model to start from: a checkpoint file or artifact."""
    dataset: Path
    """A Dataset with cached latents."""


class EmbeddingSettings(Settings):
    """Textual inversion (Gal et al. 2022): only the new vectors are trained. By default a negative
    embedding, trained on bad pictures that the model itself drew."""

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
    batch_size: int = Field(default=4, ge=1)
    """Pictures a step."""
    noise_draws: int = Field(default=1, ge=1)
    """Timesteps and noises drawn for each picture of a step."""
    rate: float = Field(default=5e-3, gt=0)
    """Learning rate, falling as a cosine."""
    weighting: Literal["uniform", "min_snr"] = "uniform"
    """How timesteps count in the loss."""
    snr_gamma: float = Field(default=5.0, gt=0)
    """Min-SNR's gamma."""
    norm_limit: float = Field(default=3.0, ge=0)
    """Vectors are kept within this many times the vocabulary's median norm; 0 leaves them free."""
    clip_skip: int = Field(default=1, ge=1, le=12)
    """As the model was trained."""
    negative: bool = True
    """Marked as a negative embedding in the metadata."""
    save_every: int = Field(default=100, ge=1)
    """Steps between saved states."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Type of the forward and backward pass; the vectors and their optimiser stay fp32."""
    checkpointing: bool = True
    """Recompute activations in the backward pass: less memory, about a half more time."""
    seed: int = 0
    """Decides order, captions, timesteps and noise."""

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
    """A Dataset with cached latents: here the bad pictures."""
