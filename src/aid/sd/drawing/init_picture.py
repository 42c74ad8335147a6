"""The picture that another is made from, and the mask of what is drawn anew, ready for the U-Net.

Source: A1111 processing.py (StableDiffusionProcessingImg2Img), images.py (resize_image), masking.py (fill).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from aid.core.files import sha256_file
from aid.core.picture import open_picture
from aid.core.shot import ResizeMode, Source
from aid.errors import PictureError, SettingsError
from aid.sd.drawing.decoding import FACTOR, encode, to_pixels
from aid.sd.model.checkpoint import StableDiffusion
from aid.sd.sampling.random import PictureNoise

FILL_RADII = ((256, 1), (64, 1), (16, 2), (4, 4), (2, 2), (0, 1))  # (blur in pixels, times)

Size = tuple[int, int]


@dataclass(frozen=True)
class InitPicture:
    """Both pictures at the size that is drawn; without a mask everything is drawn anew."""

    source: Source
    picture: Image.Image
    mask: Image.Image | None = None

    @property
    def cover(self) -> Image.Image | None:
        """How much of the drawn picture shows, 0 to 255: doubled, so that a soft border lies outside."""
        return self.mask and self.mask.point(lambda value: min(255, 2 * value))

    def over(self, drawn: Image.Image) -> Image.Image:
        """The drawn picture, with the own pixels outside of the mask."""
        return drawn if self.cover is None else Image.composite(drawn, self.picture, self.cover)


def open_init(source: Source, size: Size, known: Mapping[str, Path] | None = None) -> InitPicture:
    """The source's pictures at (width, height). They are looked for in `known` (sha256 -> path) first.

    Raises PictureError for one that can't be read or isn't the one meant, SettingsError where none is named.
    """
    if not source.picture and not source.sha256:
        raise SettingsError("the picture that this one was made from is not named", "a source.picture")
    picture = _resize(_open(source.picture, source.sha256, known or {}), size, source.resize)
    if not (source.mask or source.mask_sha256):
        return InitPicture(source, picture)
    mask = _resize(_open(source.mask, source.mask_sha256, known or {}), size, source.resize).convert("L")
    if source.mask_blur_px:
        mask = mask.filter(ImageFilter.GaussianBlur(source.mask_blur_px))
    if not mask.getbbox():
        raise SettingsError(f"the mask {source.mask} is black", "white where the picture is to be drawn anew")
    return InitPicture(source, _filled(picture, mask) if source.masked_content == "fill" else picture, mask)


def encode_init(model: StableDiffusion, init: InitPicture) -> tuple[Tensor, Tensor | None]:
    """The scaled latent [4, h/8, w/8], and the mask [1, h/8, w/8]: 1 where it is drawn anew."""
    latent = encode(model, to_pixels([init.picture]))[0]
    if init.mask is None:
        return latent, None
    size = init.mask.width // FACTOR, init.mask.height // FACTOR
    small = init.mask.resize(size, Image.Resampling.BICUBIC)
    mask = torch.from_numpy(np.asarray(small).astype(np.float32) / 255).round().unsqueeze(0)
    return latent, mask.to(latent.device)


def start_under(latent: Tensor, mask: Tensor, content: str, noise: PictureNoise) -> Tensor:
    """What lies under the mask when drawing starts: [b, 4, h, w] by [b, 1, h, w]."""
    if content == "latent noise":
        return latent * (1 - mask) + noise() * mask
    return latent * (1 - mask) if content == "latent nothing" else latent


def _open(path: str, sha256: str, known: Mapping[str, Path]) -> Image.Image:
    file = known.get(sha256) or Path(path)
    if not file.is_file():
        raise PictureError(f"{path or sha256[:12]} does not exist", "the picture that this one is made from")
    if sha256 and sha256_file(file) != sha256:
        raise PictureError(f"{file} is not the picture that is meant", f"one of sha256 {sha256[:12]}...")
    return open_picture(file, "Name another picture.")


def _resize(picture: Image.Image, size: Size, mode: ResizeMode) -> Image.Image:
    """Lanczos; "Crop and resize" covers the size, "Resize and fill" fits into it and repeats its edges."""
    width, height = size
    if mode == "Just resize" or picture.width * height == picture.height * width:
        return picture if picture.size == size else picture.resize(size, Image.Resampling.LANCZOS)
    shares = (width / picture.width, height / picture.height)
    share = max(shares) if mode == "Crop and resize" else min(shares)
    wide, high = max(1, round(picture.width * share)), max(1, round(picture.height * share))
    small = picture.resize((wide, high), Image.Resampling.LANCZOS)
    left, top = (width - wide) // 2, (height - high) // 2
    if mode == "Crop and resize":
        return small.crop((-left, -top, width - left, height - top))
    levels = np.asarray(small)
    pad = ((top, height - high - top), (left, width - wide - left), (0, 0))
    return Image.fromarray(np.pad(levels, pad, mode="edge"))


def _filled(picture: Image.Image, mask: Image.Image) -> Image.Image:
    """The colours around the mask, spread into it: the rest of the picture, blurred ever less."""
    rest = Image.composite(Image.new("RGBa", picture.size), picture.convert("RGBA").convert("RGBa"), mask)
    page = Image.new("RGBA", picture.size)
    for radius, times in FILL_RADII:
        layer = rest.filter(ImageFilter.GaussianBlur(radius)).convert("RGBA")
        for _ in range(times):
            page.alpha_composite(layer)
    return page.convert("RGB")
