"""Several pictures on one sheet."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont


def sheet(pictures: Sequence[Image.Image], columns: int = 0, gap_px: int = 2) -> Image.Image:
    """Pictures in rows, left to right, on white; as square as may be unless `columns` says otherwise."""
    columns = columns or math.ceil(math.sqrt(len(pictures)))
    rows = -(-len(pictures) // columns)
    width, height = max(p.width for p in pictures), max(p.height for p in pictures)
    page = Image.new("RGB", (columns * (width + gap_px) - gap_px, rows * (height + gap_px) - gap_px), "white")
    for index, picture in enumerate(pictures):
        row, column = divmod(index, columns)
        page.paste(picture, (column * (width + gap_px), row * (height + gap_px)))
    return page


def captioned(picture: Image.Image, text: str) -> Image.Image:
    """The picture with a text below in one line, cut to the picture's width."""
    size_px = max(10, picture.width // 12)
    font = ImageFont.load_default(size_px)
    line = " ".join(text.split())[: picture.width]  # a prompt may be long; no letter is narrower than a pixel
    ends = range(1, len(line) + 1)
    text = line[: bisect_right(ends, picture.width, key=lambda end: math.ceil(font.getlength(line[:end])))]
    card = Image.new("RGB", (picture.width, picture.height + size_px + 4), "white")
    card.paste(picture)
    place = ((picture.width - font.getlength(text)) // 2, picture.height)
    ImageDraw.Draw(card).text(place, text, fill="black", font=font)
    return card
