"""A drawn picture as a file that carries its text: PNG, JPEG or WebP.

Source: A1111 modules/images.py: PNG text chunks; EXIF's UserComment, UTF-16 with its name, elsewhere.
"""

from __future__ import annotations

import io
from typing import Literal

from PIL import ExifTags, Image

from aid.core.lineage import XMP_NAME
from aid.core.xmp import LONGEST, xmp_packet
from aid.errors import SettingsError
from aid.sd.picture.infotext import png_bytes

Format = Literal["png", "jpeg", "webp"]
SUFFIX: dict[Format, str] = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
UNICODE = b"UNICODE\x00"
LARGEST_EXIF = 65_500  # bytes that a JPEG's segment holds


def picture_bytes(
    picture: Image.Image, parameters: str, lineage: str = "", format: Format = "png", quality: int = 90
) -> bytes:
    """The file's bytes. `quality` is 1 to 100, of JPEG and WebP; 100 makes WebP lossless. The lineage lies in
    a PNG's text, else in an XMP packet. Raises SettingsError for texts that a JPEG has no room for."""
    if format == "png":
        return png_bytes(picture, parameters, lineage)
    require_room(format, parameters, lineage)
    told = _segments(parameters, lineage)
    stream = io.BytesIO()
    if format == "webp":
        picture.save(stream, "webp", quality=quality, lossless=quality == 100, **told)
        return stream.getvalue()
    picture.save(stream, "jpeg", quality=quality, subsampling=0, **told)
    return stream.getvalue()


def require_room(format: Format, parameters: str, lineage: str) -> None:
    """Raises SettingsError for texts that a JPEG has no room for; other formats have any."""
    if format != "jpeg":
        return
    told = _segments(parameters, lineage)
    if len(told["exif"]) > LARGEST_EXIF or len(told["xmp"]) > LONGEST:
        raise SettingsError("the prompts are too long for a JPEG", "about 32,000 characters", "Choose png.")


def _segments(parameters: str, lineage: str) -> dict[str, bytes]:
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = UNICODE + parameters.encode(
        "utf-16-be", "surrogatepass"
    )
    return {"exif": exif.tobytes(), "xmp": xmp_packet(XMP_NAME, lineage) if lineage else b""}
