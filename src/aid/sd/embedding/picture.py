"""Embeddings that A1111 hides in pictures: in a PNG's text, or in the low bits of panels at its sides.

Source: A1111 modules/textual_inversion/image_embedding.py.
"""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aid.core.picture import read_picture
from aid.errors import FileError, ModelError, PictureError
from aid.sd.picture.text import picture_text

PICTURES = (".png", ".webp", ".avif")  # A1111 lists .jxl too, which Pillow doesn't read
TEXT_KEY = "sd-ti-embedding"
MAX_BYTES = 16 << 20  # of unpacked JSON; 75 vectors of SD1 take about 1.3 MB
MAX_MEGAPIXELS = 16.0  # A1111 makes one about 900 pixels wide

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


def read_embedded_picture(path: Path) -> dict[str, Any]:
    """The dictionary that A1111 put into a picture, as its .pt would hold it.

    Raises FileError for an unreadable picture, ModelError for one without an embedding.
    """
    text = picture_text(path).texts.get(TEXT_KEY)
    try:
        packed = b"" if text else _from_panels(np.asarray(read_picture(path, MAX_MEGAPIXELS)))
    except PictureError as error:
        raise FileError(f"{path} is not a readable picture: it {error}", "an embedding's picture") from error
    try:
        content = base64.b64decode(text) if text else zlib.decompressobj().decompress(packed, MAX_BYTES)
        found = json.loads(content, object_hook=_tensor)
    except (binascii.Error, zlib.error, ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise ModelError(f"{path} carries no embedding", "a picture that A1111 made of one") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path} carries no embedding", "a picture that A1111 made of one")
    return found


def _tensor(entry: dict[str, Any]) -> Any:
    if "TORCHTENSOR" not in entry:
        return entry
    return torch.tensor(entry["TORCHTENSOR"], dtype=torch.float32)


def _from_panels(pixels: Pixels) -> bytes:
    """Low and high nibbles from the panels left and right of the first and last black column."""
    rows, columns = np.nonzero((pixels > 0).all(axis=2))
    if not len(rows):
        return b""
    nibbles = pixels[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] & np.uint8(0x0F)
    black = np.flatnonzero(nibbles.sum(axis=(0, 2)) == 0)
    if len(black) < 2:
        return b""
    low, high = nibbles[:, : black[0]], nibbles[:, black[-1] + 1 :]
    if low.shape != high.shape:
        return b""
    return ((_unmask(high) << np.uint8(4)) | _unmask(low)).tobytes()


def _unmask(block: Pixels) -> Pixels:
    mask = np.fromiter(islice(_masks(), block.size), dtype=np.uint8, count=block.size)
    return block ^ mask.reshape(block.shape)


def _masks() -> Iterator[int]:
    """The low nibbles of a linear congruential generator."""
    state = 0
    while True:
        state = (1664525 * state + 1013904223) % 2**32
        yield state % 255 & 0x0F
