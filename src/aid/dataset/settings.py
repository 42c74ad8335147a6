"""What `prepare` can be told."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from aid.core.artifact import Inputs, Settings

LONGEST_NAME = 64
Shape = Annotated[str, StringConstraints(pattern=r"^[1-9]\d{0,4}x[1-9]\d{0,4}$")]
Encoding = Literal["cp932", "gb18030", "big5", "euc_kr", "cp1252"]


def _require_plain(name: str) -> str:
    if not re.fullmatch(r"[\w-]([\w. -]*[\w.-])?", name) or len(name) > LONGEST_NAME:
        raise ValueError(
            f"expected up to {LONGEST_NAME} letters, digits, spaces, dots, hyphens and underscores"
        )
    return name


InputName = Annotated[str, AfterValidator(_require_plain)]


class PrepareInputs(Inputs):
    """Where the pictures are. A name stands first in the `source` of its pictures' records."""

    pictures: dict[InputName, Path] = Field(min_length=1)
    """Name -> folder: one folder a style with pictures and `.txt`/`.caption` tags, or a `manifest.jsonl`. A
    folder of pictures alone is one style, called as the name says."""
    regularisation: dict[InputName, Path] = Field(default={})
    """The same, for pictures of what must not be forgotten (replay); none by default."""
    vae: Path | None = None
    """A checkpoint whose VAE encodes the latents; left out, there are none, which suffices for a judge."""

    @model_validator(mode="after")
    def _distinct_names(self) -> Self:
        if both := sorted(self.pictures.keys() & self.regularisation.keys()):
            raise ValueError(f"pictures and regularisation both have an input named {', '.join(both)}")
        return self


class PrepareSettings(Settings):
    """How pictures become a Dataset."""

    resolution_px: int = Field(default=512, ge=8, le=4096, multiple_of=8)
    """Edge of the square whose area every bucket keeps to, pixels; 512 is what SD1 was trained at."""
    more_resolutions_px: tuple[int, ...] = ()
    """Further resolutions, pixels: each picture is prepared once for each that differs; none by default."""
    buckets: bool = True
    """Whether sizes follow the picture's aspect; off, every picture becomes a square."""
    bucketing: Literal["fitted", "kohya", "nai"] = "fitted"
    """How bucket sizes are found: fitted to the pictures (least is lost), or kohya's or NovelAI's tables."""
    bucket_count: int = Field(default=12, ge=1, le=64)
    """Most fitted buckets a resolution; a dozen lose under 4 % of mixed pictures and keep batches full."""
    shapes: tuple[Shape, ...] = ()
    """Exact buckets, `512x768`, instead of fitted ones: those of a report, so that new pictures move none."""
    bucket_step_px: int = Field(default=64, ge=8, le=1024, multiple_of=8)
    """Bucket edges are multiples of this, pixels; 64 is the coarsest cell of SD1's U-Net."""
    bucket_min_px: int | None = Field(default=None, ge=8)
    """Shortest bucket edge, pixels; left out, half the resolution (kohya's 256 of 512)."""
    bucket_max_px: int | None = Field(default=None, le=8192)
    """Longest bucket edge, pixels; left out, twice the resolution (kohya's 1024 of 512)."""
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
    """Tags to drop, in any spelling that normalises to the same; `*` stands for anything, as in `* logo`."""
    tag_replacements: dict[str, str] = Field(default={})
    """Tag -> what stands for it: one tag, several with commas, or nothing."""
    known_tags: tuple[str, ...] = ()
    """The vocabulary meant; tags outside are counted in the report. Empty means any tag is known."""
    rare_tag_pictures: int = Field(default=5, ge=0)
    """Tags on fewer pictures are counted as rare, pictures; a handful rarely teaches a tag."""
    refused_tags: tuple[str, ...] = ()
    """Pictures with one of these tags are set aside; `*` stands for anything, as in `* comic`."""
    first_tags: tuple[str, ...] = ()
    """Tags that come first and keep their place when shuffled, as characters do; `*` stands for anything."""
    implied_tags: dict[str, str] = Field(default={})
    """Tag -> tags with commas that it says already, so that they are dropped beside it."""
    character_features: tuple[str, ...] = ()
    """Tags such as `* hair` to drop beside a character who mostly has them, so its name alone says them."""
    feature_share: float = Field(default=0.3, gt=0.0, le=1.0)
    """From which share of a character's pictures a feature is its own; waifuset's 0.3."""
    feature_pictures: int = Field(default=50, ge=1)
    """Fewest pictures of a character that tell its features, pictures; waifuset's 50."""
    quality_words: bool = True
    """Whether a score (0-10, in a manifest) becomes words: 9 `amazing quality`, 7.5 `best`, and so on."""
    rating_words: bool = True
    """Whether a rating (g, s, q, e, in a manifest) becomes words: `rating: general`, `safe`, and so on."""
    size_words: bool = False
    """Whether originals of at most 256² pixels are tagged `thumbnail`, and others up to 640² `lowres`."""
    fallback_encodings: tuple[Encoding, ...] = ("cp932", "gb18030")
    """Tried in order for tags that are not Unicode, and reported; empty sets such pictures aside."""
    masks: bool = True
    """Whether transparency, and `NAME-masklabel.png` or `NAME.mask.png` (white counts), is kept as a mask."""
    mirrored: bool = False
    """Whether latents of the pictures mirrored left to right are cached too; twice the time and disk."""
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
        for edge_px in (self.resolution_px, *self.more_resolutions_px):
            if edge_px < self.bucket_step_px or edge_px % self.bucket_step_px:
                raise ValueError(
                    f"resolution_px {edge_px} is not a multiple of bucket_step_px {self.bucket_step_px}"
                )
        for shape in self.shapes:
            if any(int(edge) % 8 for edge in shape.split("x")):
                raise ValueError(f"shape {shape} has an edge that is no multiple of 8")
        if not self.shortest_px <= self.resolution_px <= self.longest_px:
            raise ValueError(
                f"resolution_px {self.resolution_px} is not between bucket_min_px {self.shortest_px} "
                f"and bucket_max_px {self.longest_px}"
            )
        return self
