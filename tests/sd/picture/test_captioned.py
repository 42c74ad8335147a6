"""Pictures on a sheet, with what they show below."""

from __future__ import annotations

import time

from PIL import Image, ImageChops

from aid.sd.picture.sheet import captioned

WHITE = Image.new("RGB", (128, 128), "white")


def written(text: str) -> tuple[int, int]:
    """The first and last column of what stands below a picture."""
    card = captioned(WHITE, text)
    left, top, right, bottom = ImageChops.invert(card.convert("L")).getbbox() or (0, 0, 0, 0)
    assert top >= WHITE.height and bottom <= card.height and card.width == WHITE.width
    return left, right


def test_a_caption_is_a_line_as_wide_as_its_picture_at_most() -> None:
    left, right = written("by a")
    assert abs(left - (WHITE.width - right)) <= 2
    left, right = written("a girl with a red umbrella, city, night")
    assert left < 12 and right > WHITE.width - 12
    assert captioned(WHITE, "one\n  two") == captioned(WHITE, "one two") != captioned(WHITE, "one")


def test_a_prompt_of_any_length_is_cut_at_once() -> None:
    begin = time.perf_counter()
    captioned(WHITE, "x" * 2_000_000)
    assert time.perf_counter() - begin < 1
