"""Text files of tags in the encodings that people's files have."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from aid.dataset.settings import Encoding
from aid.errors import PictureError

MAXIMUM_SIDECAR_BYTES = 65536
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
HALF_WIDTH_KATAKANA = range(0xFF61, 0xFFA0)  # what most Chinese text looks like when read as Shift-JIS


@dataclass(frozen=True)
class Text:
    """What a file says; `guess` names its encoding where nothing in the file tells it."""

    content: str
    guess: str = ""


def read_sidecar(path: Path, fallbacks: Sequence[Encoding] = ()) -> Text:
    """A tag file's text: UTF-8, UTF-16, or the first of the fallbacks that makes sense of it.

    Raises PictureError naming the file for anything else.
    """
    with open(path, "rb") as stream:
        content = stream.read(MAXIMUM_SIDECAR_BYTES + 1)
    name = path.name.encode("utf-8", "backslashreplace").decode()
    if len(content) > MAXIMUM_SIDECAR_BYTES:
        raise PictureError(f"its tags {name} are longer than {MAXIMUM_SIDECAR_BYTES} bytes")
    text = decode(content, fallbacks)
    if text is None:
        raise PictureError(f"its tags {name} are not text in UTF-8" + "".join(f" or {f}" for f in fallbacks))
    return text


def decode(content: bytes, fallbacks: Sequence[Encoding]) -> Text | None:
    """The text, or None if it is in none of the encodings."""
    for mark, encoding in MARKS:
        if content.startswith(mark):
            marked = _decoded(content, encoding)
            return None if marked is None else Text(marked)
    if unmarked := _utf_16_without_mark(content):
        read = _decoded(content, unmarked)
        return None if read is None else Text(read, unmarked)
    plain = _decoded(content, "utf-8")
    if plain is not None:
        return Text(plain)
    for encoding in fallbacks:
        guessed = _decoded(content, encoding)
        if guessed is not None and _plausible(guessed, encoding):
            return Text(guessed, encoding)
    return None


def _decoded(content: bytes, encoding: str) -> str | None:
    try:
        return content.decode(encoding)
    except UnicodeDecodeError:
        return None


def _utf_16_without_mark(content: bytes) -> str:
    """Tags are mostly ASCII: then every other byte is zero, and which tells the order."""
    if len(content) < 4 or len(content) % 2:
        return ""
    high, low = content[0::2].count(0), content[1::2].count(0)
    half = len(content) // 4
    if low > half and low > 4 * high:
        return "utf-16-le"
    return "utf-16-be" if high > half and high > 4 * low else ""


def _plausible(text: str, encoding: str) -> bool:
    """Whether text looks meant: printable but for white space, and not full-width Chinese misread."""
    if any(not letter.isprintable() and not letter.isspace() for letter in text):
        return False
    foreign = [letter for letter in text if ord(letter) > 0x7F]
    narrow = sum(ord(letter) in HALF_WIDTH_KATAKANA for letter in foreign)
    return encoding != "cp932" or narrow * 4 < max(1, len(foreign))
