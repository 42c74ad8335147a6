"""The picture that another is made from, and the mask of what is drawn anew, ready for the U-Net.

Source: A1111 processing.py (StableDiffusionProcessingImg2Img), images.py (resize_image), masking.py (crop
region, fill; create_binary_mask).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor

from aid.core.files import sha256_file
from aid.core.picture import open_layers, open_picture
from aid.core.shot import ResizeMode, Source
from aid.errors import PictureError, SettingsError
from aid.sd.drawing.decoding import FACTOR, encode, to_pixels
from aid.sd.model.checkpoint import StableDiffusion
from aid.sd.sampling.random import PictureNoise

ANOTHER = "Name another picture."
HALF = 128  # of a mask's opacity, as A1111's masking rounds it
FILL_RADII = ((256, 1), (64, 1), (16, 2), (4, 4), (2, 2), (0, 1))  # (blur in pixels, times)

Size = tuple[int, int]
Box = tuple[int, int, int, int]
"""Left, top, right, bottom."""


@dataclass(frozen=True)
class InitPicture:
    """What is drawn from: a picture and a mask of the size that is drawn. Without a mask everything is drawn
    anew; with a `box`, they are that part of `whole`, the picture that the result is put back into."""

    source: Source
    picture: Image.Image
    whole: Image.Image
    mask: Image.Image | None = None
    cover: Image.Image | None = None
    """How much of what is drawn shows in `whole`, 0 to 255."""
    box: Box | None = None

    def over(self, drawn: Image.Image) -> Image.Image:
        """The drawn picture, with the own pixels outside of the mask."""
        if self.cover is None:
            return drawn
        if self.box:
            left, top, right, bottom = self.box
            drawn, patch = self.whole.copy(), _resize(drawn, (right - left, bottom - top), "Crop and resize")
            drawn.paste(patch, (left, top))
        return Image.composite(drawn, self.whole, self.cover)


def open_init(source: Source, size: Size, known: Mapping[str, Path] | None = None) -> InitPicture:
    """The source's pictures at (width, height). They are looked for in `known` (sha256 -> path) first.

    Raises PictureError for one that can't be read or isn't the one meant, SettingsError where none is named.
    """
    if not source.picture and not source.sha256:
        raise SettingsError("the picture that this one was made from is not named", "a source.picture")
    picture = open_picture(_find(source.picture, source.sha256, known or {}), ANOTHER)
    if not (source.mask or source.mask_sha256):
        fitted = _resize(picture, size, source.resize)
        return InitPicture(source, fitted, fitted)
    mask = _open_mask(source, known or {})
    area = _only_masked if source.mask_area == "Only masked" else _whole_picture
    return area(source, picture, mask, size)


def _open_mask(source: Source, known: Mapping[str, Path]) -> Image.Image:
    """Softened, white where the picture is to be drawn anew. Where a mask has transparent parts, as brushes
    leave them, its opaque ones are white, whatever their colour."""
    picture, opacity = open_layers(_find(source.mask, source.mask_sha256, known), ANOTHER)
    mask = opacity.point(lambda level: 255 * (level > HALF)) if opacity else picture.convert("L")
    inverted = source.mask_mode == "Inpaint not masked"
    if inverted:
        mask = ImageOps.invert(mask)
    if not mask.getbbox():
        found, expected = ("white", "black") if inverted else ("black", "white")
        raise SettingsError(
            f"the mask {source.mask} is {found}", f"{expected} where the picture is to be drawn anew"
        )
    return Image.fromarray(_softened(np.asarray(mask), source.mask_blur_px)) if source.mask_blur_px else mask


def _whole_picture(source: Source, picture: Image.Image, mask: Image.Image, size: Size) -> InitPicture:
    """Its cover is doubled, so that a soft border lies outside of what is drawn anew."""
    picture, mask = (_resize(one, size, source.resize) for one in (picture, mask))
    cover = mask.point(lambda value: min(255, 2 * value))
    return InitPicture(source, _filled(source, picture, mask), picture, mask, cover)


def _only_masked(source: Source, picture: Image.Image, mask: Image.Image, size: Size) -> InitPicture:
    """The masked part alone, drawn at the full size."""
    cover = _resize(mask, picture.size, "Just resize")
    inner = cover.getbbox()
    assert inner is not None  # a mask that is not black
    box = crop_box(inner, source.mask_padding_px, size, picture.size)
    part, mask = (_resize(one.crop(box), size, "Resize and fill") for one in (picture, cover))
    return InitPicture(source, _filled(source, part, mask), picture, mask, cover, box)


def crop_box(inner: Box, padding_px: int, size: Size, limits: Size) -> Box:
    """The part of a picture of the size `limits` that is drawn at `size`: `inner` with room around it, and
    then more on one axis until it has size's proportions, as far as the picture goes."""
    width, height = limits
    left, top = max(0, inner[0] - padding_px), max(0, inner[1] - padding_px)
    right, bottom = min(width, inner[2] + padding_px), min(height, inner[3] + padding_px)
    wide, high, ratio = right - left, bottom - top, size[0] / size[1]
    if wide / high > ratio:
        top, bottom = _widened(top, bottom, int(wide / ratio - high), height)
    else:
        left, right = _widened(left, right, int(high * ratio - wide), width)
    return left, top, right, bottom


def _widened(start: int, end: int, more: int, limit: int) -> tuple[int, int]:
    """A span made longer on both sides, or on one where the other has no room."""
    start, end = start - more // 2, end + more - more // 2
    beyond = max(0, end - limit)
    start, end = start - beyond, end - beyond
    return (0, min(limit, end - start)) if start < 0 else (start, end)


def encode_init(model: StableDiffusion, init: InitPicture) -> tuple[Tensor, Tensor | None]:
    """The scaled latent [4, h/8, w/8], and the mask [1, h/8, w/8]: 1 where it is drawn anew."""
    latent = encode(model, to_pixels([init.picture]))[0]
    if init.mask is None:
        return latent, None
    size = init.mask.width // FACTOR, init.mask.height // FACTOR
    small = init.mask.resize(size, Image.Resampling.BICUBIC)
    return latent, _levels(small).round().to(latent.device)


def inpainting_channels(model: StableDiffusion, size: Size, init: InitPicture | None = None) -> Tensor | None:
    """What an inpainting model's U-Net is shown beside the noisy latent: [1, 5, h/8, w/8], the mask and the
    latent of the picture that is grey where it is masked. None for other models.

    All is masked where nothing is drawn from, or there is no mask.
    """
    if not model.architecture.inpaints:
        return None
    pixels = to_pixels([init.picture]) if init else torch.zeros((1, 3, size[1], size[0]))
    mask = _levels(init.mask).round()[None] if init and init.mask else torch.ones_like(pixels[:, :1])
    strength = init.source.mask_weight if init else 1.0
    latent = encode(model, torch.lerp(pixels, pixels * (1 - mask), strength))
    return torch.cat([F.interpolate(mask, latent.shape[-2:]).to(latent.device), latent], 1)


def _levels(mask: Image.Image) -> Tensor:
    """[1, h, w], 0 to 1."""
    return torch.from_numpy(np.asarray(mask).astype(np.float32) / 255).unsqueeze(0)


def start_under(latent: Tensor, mask: Tensor, content: str, noise: PictureNoise) -> Tensor:
    """What lies under the mask when drawing starts: [b, 4, h, w] by [b, 1, h, w]."""
    if content == "latent noise":
        return latent * (1 - mask) + noise() * mask
    return latent * (1 - mask) if content == "latent nothing" else latent


def _find(path: str, sha256: str, known: Mapping[str, Path]) -> Path:
    file = known.get(sha256) or Path(path)
    if not file.is_file():
        raise PictureError(f"{path or sha256[:12]} does not exist", "the picture that this one is made from")
    if sha256 and sha256_file(file) != sha256:
        raise PictureError(f"{file} is not the picture that is meant", f"one of sha256 {sha256[:12]}...")
    return file


def _resize(picture: Image.Image, size: Size, mode: ResizeMode) -> Image.Image:
    """Lanczos; "Crop and resize" covers the size, "Resize and fill" fits into it and repeats its edges."""
    width, height = size
    if picture.size == size:
        return picture
    flatter = width * picture.height - picture.width * height  # than the picture, if above 0
    if mode == "Just resize" or flatter == 0:
        return picture.resize(size, Image.Resampling.LANCZOS)
    if (flatter > 0) == (mode == "Crop and resize"):
        wide, high = width, max(1, picture.height * width // picture.width)
    else:
        wide, high = max(1, picture.width * height // picture.height), height
    small = picture.resize((wide, high), Image.Resampling.LANCZOS)
    left, top = width // 2 - wide // 2, height // 2 - high // 2
    if mode == "Crop and resize":
        return small.crop((-left, -top, width - left, height - top))
    levels = np.asarray(small)
    pad = ((top, height - high - top), (left, width - wide - left), (0, 0))
    return Image.fromarray(np.pad(levels, pad[: levels.ndim], mode="edge"))


def _softened(levels: np.ndarray, sigma: int) -> np.ndarray:
    """A Gaussian of 2.5 standard deviations, its borders mirrored, as OpenCV blurs 8 bits for A1111."""
    reach = int(2.5 * sigma + 0.5)
    offsets = np.arange(-reach, reach + 1)
    kernel = np.exp(-(offsets**2) / (2 * sigma**2))
    kernel /= kernel.sum()
    for axis in (1, 0):
        pad = [(0, 0), (reach, reach)] if axis else [(reach, reach), (0, 0)]
        rows = np.pad(levels.astype(np.float64), pad, mode="reflect")
        length = levels.shape[axis]
        blurred = sum(
            weight * rows.take(range(start, start + length), axis) for start, weight in enumerate(kernel)
        )
        levels = np.asarray(blurred).round().astype(np.uint8)
    return levels


def _filled(source: Source, picture: Image.Image, mask: Image.Image) -> Image.Image:
    """The colours around the mask, spread into it: the rest of the picture, blurred ever less. Left alone
    where its own content is to be drawn from."""
    if source.masked_content == "original":
        return picture
    rest = Image.composite(Image.new("RGBa", picture.size), picture.convert("RGBA").convert("RGBa"), mask)
    page = Image.new("RGBA", picture.size)
    for radius, times in FILL_RADII:
        layer = rest.filter(ImageFilter.GaussianBlur(radius)).convert("RGBA")
        for _ in range(times):
            page.alpha_composite(layer)
    return page.convert("RGB")
