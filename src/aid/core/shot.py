"""A shot: everything that decides one generated picture except the weights."""

from __future__ import annotations

from math import inf
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

NoiseSource = Literal["CPU", "GPU", "NV"]
DrawingPrecision = Literal["auto", "fp32", "fp16", "bf16"]
Emphasis = Literal["Original", "No norm", "Ignore", "None", "ComfyUI"]
MaskedContent = Literal["fill", "original", "latent noise", "latent nothing"]
MaskArea = Literal["Whole picture", "Only masked"]
MaskMode = Literal["Inpaint masked", "Inpaint not masked"]
ResizeMode = Literal["Just resize", "Crop and resize", "Resize and fill"]
Upscaler = Literal[
    "Latent",
    "Latent (antialiased)",
    "Latent (bicubic)",
    "Latent (bicubic antialiased)",
    "Latent (nearest)",
    "Latent (nearest-exact)",
    "Lanczos",
    "Nearest",
]


RANDOM = -1
"""A1111's seed that stands for a random one."""


def _told(seed: object) -> object:
    if seed in (RANDOM, str(RANDOM)):
        raise PydanticCustomError(
            "random_seed",
            "Input should be 0 or more, as a random seed can't be drawn again; "
            "`aid generate PROMPT --seed -1` chooses and notes one",
        )
    return seed


Seed = Annotated[int, BeforeValidator(_told)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class Source(_Part):
    """The picture that another one is made from (img2img), and what of it may change (inpainting)."""

    picture: str = ""
    """Path of a picture; empty where a picture's text doesn't name it."""
    sha256: str = Field(default="", pattern="^([0-9a-f]{64})?$")
    """Of the picture's file; by it the picture is found wherever it lies, and told from another."""
    denoising_strength: float = Field(default=0.75, ge=0, le=1)
    """0 keeps the picture, 1 keeps next to nothing of it; also the share of the steps that are taken."""
    mask: str = ""
    """Path of a picture whose white parts are drawn anew; empty: everything is."""
    mask_sha256: str = Field(default="", pattern="^([0-9a-f]{64})?$")
    """Of the mask's file."""
    mask_mode: MaskMode = "Inpaint masked"
    """Whether white parts are drawn anew, or all but them."""
    mask_blur_px: int = Field(default=4, ge=0, le=64)
    """Standard deviation by which the mask's border is softened, in the mask's pixels."""
    mask_area: MaskArea = "Whole picture"
    """"Only masked" draws the part around the mask at the full size, and puts it back."""
    mask_padding_px: int = Field(default=32, ge=0, le=256)
    """How much around the mask "Only masked" draws too, in the picture's pixels."""
    mask_weight: float = Field(default=1.0, ge=0, le=1)
    """How little an inpainting model is shown of what lies under the mask; 1 is nothing."""
    masked_content: MaskedContent = "original"
    """What drawing starts from under the mask."""
    resize: ResizeMode = "Just resize"
    """How a picture of other proportions becomes `width` by `height`."""


class Hires(_Part):
    """A second pass over the drawn picture, made larger."""

    scale: float = Field(default=2.0, ge=1, le=8)
    """Times the first pass's width and height, cut to multiples of 8 pixels; unused if a size is given."""
    width: int = Field(default=0, ge=0, le=16384, multiple_of=8)
    """Pixels; 0 is in proportion to `height`. With both, the picture covers them and is cropped."""
    height: int = Field(default=0, ge=0, le=16384, multiple_of=8)
    """Pixels; 0 is in proportion to `width`."""
    steps: int = Field(default=0, ge=0, le=1000)
    """Steps of the second pass; 0 is as many as in the first."""
    denoising_strength: float = Field(default=0.7, ge=0, le=1)
    """How far the enlarged picture is redrawn. Latent upscalers need about 0.5, or it stays blurred."""
    upscaler: Upscaler = "Latent"
    """Enlarges the latent, or the decoded picture (Lanczos, Nearest)."""
    sampler: str = ""
    """The A1111 name; empty is the first pass's."""
    schedule: str = ""
    """The A1111 name; empty is the first pass's."""
    prompt: str = ""
    """Empty is the first pass's."""
    negative_prompt: str = ""
    """Empty is the first pass's."""

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of the second pass, in pixels, after a first one of the given size."""
        if not (self.width or self.height):
            wide, high = int(width * self.scale), int(height * self.scale)
        else:
            wide = self.width or self.height * width // height
            high = self.height or self.width * height // width
        return max(8, wide // 8 * 8), max(8, high // 8 * 8)


class Shot(_Part):
    """One picture to draw. Defaults are the card's: Euler a, 32 steps, clip skip 1."""

    prompt: str
    """A1111 syntax."""
    negative_prompt: str = ""
    """A1111 syntax; an embedding is named by its file's stem."""
    seed: Seed = Field(default=0, ge=0, lt=2**63)
    """One generator a picture."""
    steps: int = Field(default=32, ge=1, le=1000)
    """Sampler steps."""
    cfg_scale: float = Field(default=7.0, ge=0, le=100)
    """Classifier-free guidance; 1 leaves the negative prompt out."""
    width: int = Field(default=512, ge=8, le=8192, multiple_of=8)
    """Pixels."""
    height: int = Field(default=512, ge=8, le=8192, multiple_of=8)
    """Pixels."""
    sampler: str = "Euler a"
    """The A1111 name."""
    schedule: str = "Automatic"
    """The A1111 name; "Automatic" is the sampler's own."""
    eta: float | None = Field(default=None, ge=0, le=10)
    """Share of fresh noise in each step of a sampler that adds any; None is the sampler's own."""
    clip_skip: int = Field(default=1, ge=1, le=12)
    """1 is the last layer."""
    clip_l_skip: bool = False
    """Whether SDXL's first text encoder minds clip skip: A1111's "Clip skip SDXL"."""
    emphasis: Emphasis = "Original"
    """What `(word:1.2)` does."""
    old_editing: bool = False
    """Whether `[a:b:x]` is read as before A1111 1.6, where x below 1 is a share of the steps."""
    noise_source: NoiseSource = "CPU"
    """torch's generator on the CPU; on the CUDA device, A1111's default; or the same noise as that,
    computed on the CPU (NV)."""
    variation_seed: Seed = Field(default=0, ge=0, lt=2**63)
    """The seed towards whose noise the first noise is turned."""
    variation_strength: float = Field(default=0.0, ge=0, le=1)
    """How far; 0 not at all, 1 is the other seed's noise."""
    seed_delta: int = Field(default=0, gt=-(2**62), lt=2**62)
    """A1111's ENSD: after the first noise, the generator begins again at seed + delta, below 0 too."""
    downcast_alphas: bool = False
    """The noise levels of A1111 before 1.8 with half-precision models."""
    cfg_rescale: float = Field(default=0.0, ge=0, le=1)
    """How far guidance is brought back to the prompt's own contrast (Lin et al. 2023); 0.7 is theirs."""
    cfg_sigmas: tuple[float, float] | None = None
    """Guidance only where low < σ <= high (Kynkäänniemi et al. 2024); None is everywhere."""
    source: Source | None = None
    """The picture that this one is made from; None is noise alone."""
    hires: Hires | None = None
    """A second, larger pass."""
    style: str = ""
    """The style it is meant to show, for the judge; empty when unknown."""
    tags: tuple[str, ...] = ()
    """The content it is meant to show, for the judge."""

    @model_validator(mode="after")
    def _can_be_meant(self) -> Self:
        if self.source and self.hires:
            raise ValueError("a picture made from another has no second pass: source or hires, not both")
        low, high = self.cfg_sigmas or (0.0, inf)
        if not 0 <= low < high:
            raise ValueError("cfg_sigmas are the lower and the higher end of a range of σ")
        return self

    @property
    def drawn_size(self) -> tuple[int, int]:
        """Width and height of the finished picture, in pixels."""
        return self.hires.size(self.width, self.height) if self.hires else (self.width, self.height)
