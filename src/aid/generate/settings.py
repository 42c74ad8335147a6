"""What `generate` can be told."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from aid.core.artifact import Inputs, Settings
from aid.core.shot import (
    DrawingPrecision,
    Emphasis,
    Hires,
    MaskArea,
    MaskedContent,
    MaskMode,
    NoiseSource,
    ResizeMode,
    Seed,
)


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


class DrawingSettings(Settings):
    """One shot, and how it is drawn. Defaults are the card's: Euler a, 32 steps, clip skip 1."""

    prompt: str = ""
    """A1111 syntax: `(weight:1.2)`, `[less]`, BREAK, AND, `[from:to:0.5]`, `<lora:name:0.8>`; and
    `{by a:0.6 | by b:0.4}` and `__wildcards__`."""
    negative_prompt: str = ""
    """A1111 syntax; an embedding is named by its file's stem."""
    comments: bool = True
    """Whether `#` and what follows it on its line is left out of the prompts, as A1111 does."""
    styles: tuple[str, ...] = ()
    """Names of styles, together in every picture: `by a, by b`."""
    template: bool = False
    """Whether the card's formats are put around the prompts; off, as only models trained on their words
    gain from them."""
    prompt_template: str = ""
    """`{trigger}` stands for the styles, `{tags}` for the prompt; empty is AID's card's."""
    negative_template: str = ""
    """`{embedding}` stands for all embeddings given, `{tags}` for the negative prompt; empty: the card's."""
    seed: Seed = Field(default=0, ge=0, lt=2**62)
    """Of the first picture; the next ones count up."""
    steps: int = Field(default=32, ge=1, le=1000)
    """Sampler steps; the card's 32 (its other language says 40, which also works)."""
    cfg_scale: float = Field(default=7.0, ge=0, le=100)
    """Classifier-free guidance; 7 is A1111's, as the card names none. 1 leaves the negative prompt out."""
    width: int | None = Field(default=None, ge=8, le=8192, multiple_of=8)
    """Pixels; left out, the size that the model was trained at."""
    height: int | None = Field(default=None, ge=8, le=8192, multiple_of=8)
    """Pixels; left out, the size that the model was trained at."""
    sampler: str = "Euler a"
    """The A1111 name; the card's."""
    schedule: str = "Automatic"
    """The A1111 name: Karras, Exponential, SGM Uniform, ...; "Automatic" is the sampler's own."""
    eta: float | None = Field(default=None, ge=0, le=10)
    """Share of fresh noise in each step of a sampler that adds any; left out, the sampler's own."""
    clip_skip: int = Field(default=1, ge=1, le=12)
    """1 is the last layer of the text encoder; the card's."""
    clip_l_skip: bool = False
    """Whether clip skip counts for SDXL too, for its first text encoder: A1111's "Clip skip SDXL", off there
    as well. SD2 never minds clip skip."""
    emphasis: Emphasis = "Original"
    """What `(word:1.2)` does: as A1111, without its mean restored, nothing, literally, or as ComfyUI."""
    old_editing: bool = False
    """Whether `[a:b:x]` is read as before A1111 1.6."""
    noise_source: NoiseSource = "CPU"
    """CPU draws the same picture everywhere. GPU is A1111's default; NV is its noise without that GPU."""
    variation_seed: Seed = Field(default=0, ge=0, lt=2**62)
    """The seed of the first picture's variation; the next ones count up, and all share `seed`."""
    variation_strength: float = Field(default=0.0, ge=0, le=1)
    """How far the first noise is turned towards the variation's; 0 draws no variations."""
    seed_delta: int = Field(default=0, gt=-(2**62), lt=2**62)
    """A1111's ENSD; 31337 is NovelAI's."""
    downcast_alphas: bool = False
    """The noise levels of A1111 before 1.8 with half-precision models."""
    cfg_rescale: float = Field(default=0.0, ge=0, le=1)
    """Against the overexposure of strong guidance; 0.7 is its paper's, 0 is off."""
    cfg_sigmas: tuple[float, float] | None = None
    """Guidance only where low < σ <= high, of which 1000 is above any; left out, everywhere."""
    denoising_strength: float = Field(default=0.75, ge=0, le=1)
    """With --init: how far that picture is redrawn; 0.75 is A1111's."""
    mask_blur_px: int = Field(default=4, ge=0, le=64)
    """With --mask: standard deviation by which its border is softened; 4 is A1111's."""
    masked_content: MaskedContent = "original"
    """With --mask: what drawing starts from under it."""
    mask_mode: MaskMode = "Inpaint masked"
    """With --mask: whether its white parts are drawn anew, or all but them."""
    mask_area: MaskArea = "Whole picture"
    """With --mask: "Only masked" draws the part around it at the full size, and puts it back."""
    mask_padding_px: int = Field(default=32, ge=0, le=256)
    """With "Only masked": how much around the mask is drawn too, in the picture's pixels; 32 is A1111's."""
    mask_weight: float = Field(default=1.0, ge=0, le=1)
    """With an inpainting model: how little it is shown of what lies under the mask; 1 is nothing."""
    resize: ResizeMode = "Just resize"
    """With --init: how a picture of other proportions is made to fit."""
    hires: Hires | None = None
    """A second, larger pass: `--set hires.scale=2`, and its steps, denoising_strength, upscaler, ..."""
    format: Literal["png", "jpeg", "webp"] = "png"
    """Of the files; all carry A1111's text and their lineage."""
    quality: int = Field(default=90, ge=1, le=100)
    """Of JPEG and WebP; 100 makes WebP lossless."""
    batch_size: int = Field(default=8, ge=1, le=256)
    """Pictures drawn together; more need more memory. Each is the same in any batch: to the bit on a CPU in
    fp32, but for rounding elsewhere."""
    precision: DrawingPrecision = "auto"
    """Of the weights while drawing: `auto` is fp16 on a GPU, where it is quicker and takes half the memory,
    and fp32 on a CPU."""


class GenerateSettings(DrawingSettings):
    """Pictures to draw: of one prompt, or of a plan."""

    plan: Plan | None = None
    """Shots for an evaluation, in place of one prompt; the settings' prompt follows each shot's tags."""
    count: int = Field(default=1, ge=1, le=100_000)
    """Pictures of the prompt."""


class DrawingInputs(Inputs):
    """What is drawn with."""

    checkpoint: Path
    """An SD1, SD2 or SDXL checkpoint file, an artifact that holds one, or a diffusers folder."""
    vae: Path | None = None
    """A VAE in place of the checkpoint's own."""
    embeddings: tuple[Path, ...] = ()
    """Files, embedding artifacts, or folders of embeddings such as a release's."""
    loras: tuple[Path, ...] = ()
    """Files, or folders of LoRAs, LoHas, LoKrs and DoRAs; a file's stem is what `<lora:NAME:1>` calls. All
    of a folder counts for a gallery: name files where it holds many."""
    wildcards: Path | None = None
    """A folder of .txt files: `__hair__` is a line of hair.txt, by the picture's seed."""
    init: Path | None = None
    """A picture to draw from, in place of noise alone (img2img)."""
    mask: Path | None = None
    """White where the picture to draw from is drawn anew (inpainting). Where it has transparent parts, what
    is opaque counts as white."""

    def paths(self) -> dict[str, Path]:
        """An embedding's or adapter's name is what calls it, so it counts as much as its content."""
        called = {"embeddings": self.embeddings, "loras": self.loras}
        given = super().paths().items()
        named = {name: path for name, path in given if name.partition(".")[0] not in called}
        for field, paths in called.items():
            for index, path in enumerate(paths):
                named[f"{field}.{f'{index}/' if path.is_dir() else path.stem}"] = path
        return named


class GenerateInputs(DrawingInputs):
    """What is drawn with, and where the shots come from if not from a prompt."""

    shots: Path | None = None
    """Shots already written down: a `shots.jsonl` or a folder with one; the settings' prompt, size and
    sampling then say nothing."""
    dataset: Path | None = None
    """The Dataset whose styles and tags a plan draws from."""
