"""Reading one picture safely: decoded whole, upright, opaque, sRGB; or a PictureError that says why not."""

from __future__ import annotations

import functools
import io
import re
import warnings
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError

from aid.core.files import Bounded
from aid.errors import PictureError

# No format that runs another program (EPS) or leads to other files (WMF, FPX).
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
STILL = {"MPO"}  # a JPEG with more pictures behind it, as telephones write; the first one is meant
MAXIMUM_MEGAPIXELS = 170.0  # just under what Pillow itself takes for a decompression bomb
FREE_MEGAPIXELS = 16.0  # decoded however few bytes claim them: flat colour packs well, and it takes no second
MOST_PIXELS_PER_BYTE = 2000  # of a larger picture; a white sheet has 340 as a PNG
MOST_SCANS = 50  # of a JPEG; encoders write about ten, and each takes as long as the picture is large
SCAN, END = 0xDA, 0xD9  # of JPEG's markers; those that MARKER passes over have no length
MARKER = re.compile(rb"\xff+[^\x00\x01\xd0-\xd8\xff]")


def open_picture(path: Path, next_step: str = "Make or fetch it again.") -> Image.Image:
    """A picture that must be readable. Raises PictureError naming the file if it is not."""
    return open_layers(path, next_step)[0]


def open_layers(
    path: Path, next_step: str = "Make or fetch it again."
) -> tuple[Image.Image, Image.Image | None]:
    """`open_picture`, and how opaque it is, as `read_layers` tells it."""
    try:
        return read_layers(path)
    except PictureError as error:
        raise PictureError(
            f"{path} could not be read as a picture: it {error.found}",
            error.expected or "a whole picture",
            next_step,
        ) from error


def open_small(path: Path, edge_px: int, next_step: str = "Make or fetch it again.") -> Image.Image:
    """A picture made smaller, if need be, until its longer side is `edge_px`. Raises PictureError."""
    picture = open_picture(path, next_step)
    picture.thumbnail((edge_px, edge_px), Image.Resampling.LANCZOS)
    return picture


def read_picture(path: Path, maximum_megapixels: float = MAXIMUM_MEGAPIXELS) -> Image.Image:
    """An RGB picture, EXIF orientation applied, transparency on white.

    The size is checked in the header, before anything is decoded, and so is whether the file can hold what
    it claims. Raises PictureError for whatever is too large, moving, damaged or no picture; it says what is
    wrong (`has several frames`), not where.
    """
    return read_layers(path, maximum_megapixels)[0]


def read_layers(
    path: Path, maximum_megapixels: float = MAXIMUM_MEGAPIXELS
) -> tuple[Image.Image, Image.Image | None]:
    """`read_picture`, and how opaque it is, 0..255 in mode L; None for a picture that is so everywhere."""
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            Bounded(path) as stream,  # Pillow makes room for as much as a chunk of a PNG says
            Image.open(stream, formats=formats()) as picture,
        ):
            _refuse_by_header(picture, maximum_megapixels)
            _refuse_bomb(picture, path)
            picture.load()
            upright = _upright(_eight_bit(picture))
            return _srgb(_opaque(upright), picture.info.get("icc_profile")), _alpha(upright)
    except PictureError:
        raise
    except UnidentifiedImageError:
        raise PictureError(f"is not a picture in a format that is read ({', '.join(formats())})") from None
    except Image.DecompressionBombError:
        raise PictureError(f"is over {maximum_megapixels:g} megapixels") from None
    except Exception as error:  # a decoder fed with hostile bytes may fail in any way
        raise PictureError(f"can't be decoded ({type(error).__name__}: {error})") from error


def picture_size(path: Path) -> tuple[int, int]:
    """Width and height of the upright picture, by its header alone. Raises PictureError if there is none."""
    try:
        with Image.open(path, formats=formats()) as picture:
            turned = picture.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
            return (picture.height, picture.width) if turned else picture.size
    except Exception as error:  # a decoder fed with hostile bytes may fail in any way
        raise PictureError(f"has no header that can be read ({type(error).__name__})") from error


@functools.cache
def formats() -> tuple[str, ...]:
    """Those of FORMATS that this Pillow was built with."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _refuse_by_header(picture: Image.Image, maximum_megapixels: float) -> None:
    megapixels = picture.width * picture.height / 1e6
    if megapixels > maximum_megapixels:
        raise PictureError(
            f"is {picture.width}x{picture.height}, {megapixels:.0f} megapixels",
            f"{maximum_megapixels:g} at most",
        )
    if getattr(picture, "is_animated", False) and picture.format not in STILL:
        raise PictureError("has several frames", "a still picture")


def _refuse_bomb(picture: Image.Image, path: Path) -> None:
    """Few bytes that would keep the decoder busy."""
    pixels, size = picture.width * picture.height, path.stat().st_size
    if pixels > max(FREE_MEGAPIXELS * 1e6, MOST_PIXELS_PER_BYTE * size):
        raise PictureError(f"claims {pixels / 1e6:.0f} megapixels in {size} bytes", "as many as it can hold")
    if picture.format in ("JPEG", *STILL) and (scans := _scans(path.read_bytes())) > MOST_SCANS:
        raise PictureError(f"is drawn in {scans} scans", f"{MOST_SCANS} at most")


def _scans(content: bytes) -> int:
    """How often a JPEG's decoder will go over its first picture."""
    scans, at = 0, 0
    while (found := MARKER.search(content, at)) and (kind := content[found.end() - 1]) != END:
        scans += kind == SCAN
        at = found.end() + int.from_bytes(content[found.end() : found.end() + 2])
    return scans


def _eight_bit(picture: Image.Image) -> Image.Image:
    """16-bit grey is brought to 8 bits; Pillow would clip it to white."""
    if picture.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(picture).astype(np.uint16) >> 8).astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise PictureError(f"has pixels of type {picture.mode}", "8 or 16 bits a channel")
    return picture


def _upright(picture: Image.Image) -> Image.Image:
    try:
        turned = picture.getexif().get(ExifTags.Base.Orientation, 1) != 1
        return ImageOps.exif_transpose(picture) if turned else picture
    except Exception:  # a broken EXIF block says nothing about the pixels
        return picture


def _opaque(picture: Image.Image) -> Image.Image:
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        page = Image.new("RGB", picture.size, "white")
        page.paste(layer, mask=layer.getchannel("A"))
        return page
    return picture if picture.mode in ("RGB", "L", "CMYK") else picture.convert("RGB")


def _alpha(picture: Image.Image) -> Image.Image | None:
    if not picture.has_transparency_data:
        return None
    alpha = picture.convert("RGBA").getchannel("A")
    return None if alpha.getextrema()[0] == 255 else alpha


def _srgb(picture: Image.Image, profile: bytes | None) -> Image.Image:
    """RGB as a screen shows it: an embedded colour profile is applied, an unusable one ignored."""
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            shown = ImageCms.profileToProfile(picture, source, _srgb_profile(), outputMode="RGB")
            picture = picture if shown is None else shown
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            pass
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _srgb_profile() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
