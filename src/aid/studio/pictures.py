"""Pictures that clients send: read safely, and kept only as long as they are drawn from."""

from __future__ import annotations

import base64
import binascii
from pathlib import Path

from aid.core.picture import read_picture
from aid.errors import PictureError
from aid.sd.picture.text import picture_text

MOST_MEGAPIXELS = 40.0
DATA = "data:"


def received(text: str, folder: Path, name: str) -> Path:
    """A picture in base64, bare or as a data URI, as the file `name` in `folder`, to the byte: by its hash
    the drawn picture's text knows it. Raises PictureError for one that can't be read; an address is never
    fetched."""
    file = folder / name
    file.write_bytes(unpacked(text, name))
    try:
        read_picture(file, MOST_MEGAPIXELS)
    except PictureError as error:
        raise PictureError(f"{name}: it {error.found}", error.expected or "a whole picture") from error
    return file


def text_of(text: str, folder: Path, name: str) -> str:
    """The `parameters` that a picture carries, its pixels unread. Raises PictureError."""
    raw = folder / name
    raw.write_bytes(unpacked(text, name))
    try:
        return picture_text(raw).parameters
    except PictureError as error:  # names the file that it lay in here
        raise PictureError(f"{name} is not a readable picture", "a whole picture") from error


def unpacked(text: str, name: str) -> bytes:
    """What base64 stands for. Raises PictureError."""
    if "://" in text[:16]:
        raise PictureError(f"{name} is an address, which is not fetched", "the picture itself, in base64")
    packed = text.partition(",")[2] if text.startswith(DATA) else text
    try:
        return base64.b64decode("".join(packed.split()), validate=True)  # some break it into lines
    except (binascii.Error, ValueError) as error:
        raise PictureError(f"{name} is not base64 ({error})", "a picture in base64") from error
