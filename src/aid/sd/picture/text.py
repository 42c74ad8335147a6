"""The text that a picture carries, read without decoding its pixels.

Source: A1111 modules/images.py: PNG text chunks, EXIF's UserComment in JPEG, WebP and AVIF, GIF's comment,
and what NovelAI writes, told as A1111's.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

from PIL import ExifTags, Image

from aid.core.lineage import METADATA_KEY as LINEAGE_KEY
from aid.core.lineage import lineage_text
from aid.core.picture import formats
from aid.errors import PictureError
from aid.sd.picture.infotext import KEY
from aid.sd.picture.novelai import novelai_infotext

HEADS = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\x00", b"MM\x00*")
UNICODE, OTHER = b"UNICODE\x00", (b"ASCII\x00\x00\x00", bytes(8))
MARKS = (b"\xfe\xff", b"\xff\xfe")  # of UTF-16's byte order
TOLD = "Steps: "  # by which a comment of A1111's is known from any other


@dataclass(frozen=True)
class PictureText:
    """`parameters` is A1111's infotext, `texts` all others by name; `size` is width and height."""

    format: str
    size: tuple[int, int]
    parameters: str
    texts: dict[str, str]

    @property
    def summary(self) -> str:
        """Such as `PNG, 512x768`."""
        return f"{self.format}, {self.size[0]}x{self.size[1]}"


def is_picture(path: Path) -> bool:
    """Told by the first bytes."""
    with open(path, "rb") as stream:
        head = stream.read(12)
    riff = head[:4] == b"RIFF" and head[8:] == b"WEBP"
    return head.startswith(HEADS) or riff or head[4:12] in (b"ftypavif", b"ftypavis")


def picture_text(path: Path) -> PictureText:
    """Raises PictureError for a picture that can't be opened."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=formats()) as picture:
            texts = {
                key: value
                for key, value in picture.info.items()
                if isinstance(key, str) and isinstance(value, str)
            }
            if lineage := lineage_text(picture.info):
                texts[LINEAGE_KEY] = lineage
            format, size = str(picture.format), picture.size
            comment = None if KEY in texts else _comment(picture)
    except Exception as error:  # a reader fed with hostile bytes may fail in any way
        raise PictureError(f"{path} is not a readable picture ({error})", "a whole picture") from error
    own = texts.pop(KEY, "") or _decoded(comment)
    return PictureText(format, size, novelai_infotext(texts, size) or own, texts)


def _comment(picture: Image.Image) -> object:
    if picture.format == "PNG" and "exif" not in picture.info:
        return None  # Pillow would decode the pixels to look behind them
    comment = picture.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment)
    other = picture.info.get("comment")  # GIF's, and JPEG's
    return other if not comment and TOLD in _decoded(other) else comment


def _decoded(comment: object) -> str:
    """EXIF's UserComment, which starts with the name of its encoding."""
    if not isinstance(comment, bytes):
        return comment if isinstance(comment, str) else ""
    if comment.startswith(UNICODE):
        return _unicode(comment[len(UNICODE) :])
    named = next((name for name in OTHER if comment.startswith(name)), b"")
    return comment.removeprefix(named).decode("utf-8", "replace")


def _unicode(text: bytes) -> str:
    """UTF-16 of either byte order, as tools don't agree on one, or UTF-8, as some write: letters of ASCII,
    which are in every text of fields, have their zeros first, last or nowhere."""
    first, last = text[::2].count(0), text[1::2].count(0)
    if text.startswith(MARKS):
        return text.decode("utf-16", "replace")
    if TOLD.encode() in text:
        return text.decode("utf-8", "replace")
    return text.decode("utf-16-le" if last > first else "utf-16-be", "replace")
