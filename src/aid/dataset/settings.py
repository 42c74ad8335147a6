"""What `prepare` can be told."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, StringConstraints, model_validator

from aid.core.artifact import Inputs, Settings

InputName = Annotated[str, StringConstraints(pattern=r"^[\w-][\w.-]*$", max_length=64)]


class PrepareInputs(Inputs):
    """Where the pictures are. A name stands first in the `source` of its pictures' records."""

    pictures: dict[InputName, Path] = Field(min_length=1)
    """Name -> folder: one folder a style with pictures and `.txt`/`.caption` tags, or a `manifest.jsonl`."""
    regularisation: dict[InputName, Path] = Field(default={})
    """The same, for pictures of what must not be forgotten (replay); none by default."""
    vae: Path | None = None
    """A checkpoint whose VAE encodes the latents; None leaves them out, which suffices for a judge."""

    @model_validator(mode="after")
    def _distinct_names(self) -> Self:
        if both := sorted(self.pictures.keys() & self.regularisation.keys()):
            raise ValueError(f"pictures and regularisation both have an input named {', '.join(both)}")
        return self


class PrepareSettings(Settings):
    """How pictures become a Dataset."""

    resolution_px: int = Field(default=512, ge=8, le=4096, multiple_of=8)
    """Edge of the square whose area every bucket keeps to, pixels; 512 is what SD1 was trained at."""
    buckets: bool = True
    """Whether sizes follow the picture's aspect; off, every picture becomes a square."""
    bucket_step_px: int = Field(default=64, ge=8, le=1024, multiple_of=8)
    """Bucket edges are multiples of this, pixels; 64 is the coarsest cell of SD1's U-Net."""
    bucket_min_px: int | None = Field(default=None, ge=8)
    """Shortest bucket edge, pixels; None means half the resolution (kohya's 256 of 512)."""
    bucket_max_px: int | None = Field(default=None, le=8192)
    """Longest bucket edge, pixels; None means twice the resolution (kohya's 1024 of 512)."""
    aspect_limit: float = Field(default=4.0, ge=1.0, le=16.0)
    """Longest long/short ratio: of buckets, and of pictures (a strip of panels is set aside, not cropped)."""
    upscale: bool = False
    """Whether a small picture is enlarged to full area; off, it goes to the largest bucket it fills."""
    minimum_edge_px: int = Field(default=64, ge=8)
    """Pictures with a shorter edge are set aside, pixels; below 64 nothing of a style is left."""
    maximum_megapixels: float = Field(default=40.0, gt=0, le=170.0)
    """Larger pictures are set aside unread, 10^6 pixels; 40 covers print scans and costs 160 MB each."""
    held_fraction: float = Field(default=0.1, ge=0.0, le=0.5)
    """Share of pictures never trained on; each one's sha256 decides, so new pictures move no old ones."""
    held_minimum: int = Field(default=2, ge=0)
    """Fewest held pictures of a style, pictures; but never more than half of a small style."""
    near_duplicate_bits: int = Field(default=6, ge=0, le=16)
    """Most differing bits of 64 (dHash); re-encoding and rescaling change at most 7, mostly under 3."""
    near_duplicate_levels: float = Field(default=4.0, ge=0.0, le=64.0)
    """Most mean colour difference of two 8x8 thumbnails, levels of 255; re-encoding stays under 2."""
    undesired_tags: tuple[str, ...] = ()
    """Tags to drop, in any spelling that normalises to the same."""
    tag_replacements: dict[str, str] = Field(default={})
    """Tag -> what stands for it: one tag, several with commas, or nothing."""
    known_tags: tuple[str, ...] = ()
    """The vocabulary meant; tags outside are counted in the report. Empty means any tag is known."""
    rare_tag_pictures: int = Field(default=5, ge=0)
    """Tags on fewer pictures are counted as rare, pictures; a handful rarely teaches a tag."""
    latent_batch: int = Field(default=4, ge=1, le=256)
    """Pictures the VAE encodes at once; each activation of SD1's encoder is 134 MB a picture at 512 px."""

    @property
    def shortest_px(self) -> int:
        return self.bucket_min_px or self.resolution_px // 2

    @property
    def longest_px(self) -> int:
        return self.bucket_max_px or self.resolution_px * 2

    @model_validator(mode="after")
    def _edges_agree(self) -> Self:
        if self.resolution_px % self.bucket_step_px:
            raise ValueError(
                f"resolution_px {self.resolution_px} is not a multiple of "
                f"bucket_step_px {self.bucket_step_px}"
            )
        if not self.shortest_px <= self.resolution_px <= self.longest_px:
            raise ValueError(
                f"resolution_px {self.resolution_px} is not between bucket_min_px {self.shortest_px} "
                f"and bucket_max_px {self.longest_px}"
            )
        return self
