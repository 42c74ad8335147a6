"""Text on a sheet: Pillow's own font, broken into lines that fit, so that no system font is needed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from PIL import Image, ImageDraw, ImageFont

MOST_LETTERS = 200  # of one line
LINES = 6  # of one label; the rest is cut off with an ellipsis


@dataclass(frozen=True)
class Lettering:
    """Black text of one size in pixels."""

    size_px: int

    @cached_property
    def font(self) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
        return ImageFont.load_default(self.size_px)

    @property
    def line_px(self) -> int:
        return self.size_px * 13 // 10

    def width(self, text: str) -> float:
        return self.font.getlength(text)

    def lines(self, text: str, width_px: int, most: int = LINES) -> list[str]:
        """`text` in lines of at most `width_px`, broken between words, or within one that is too long."""
        lines: list[str] = []
        for paragraph in text.split("\n"):
            line = ""
            for word in paragraph.split():
                for piece in self._pieces(word, width_px):
                    longer = f"{line} {piece}".strip()
                    if line and self.width(longer) > width_px:
                        lines.append(line)
                        line = piece
                    else:
                        line = longer
            lines.append(line)
        if len(lines) > most:
            lines = [*lines[: most - 1], self._cut(f"{lines[most - 1]} …", width_px)]
        return lines

    def height(self, lines: list[str]) -> int:
        return self.line_px * len(lines)

    def write(self, page: Image.Image, lines: list[str], box: tuple[int, int, int, int]) -> None:
        """Centred in a box (left, top, right, bottom)."""
        left, top, right, bottom = box
        pen = ImageDraw.Draw(page)
        y = top + (bottom - top - self.height(lines)) // 2
        for line in lines:
            pen.text((left + (right - left - self.width(line)) / 2, y), line, "black", self.font)
            y += self.line_px

    def _pieces(self, word: str, width_px: int) -> list[str]:
        """A word in parts that fit, broken behind a mark such as a hyphen where there is one."""
        pieces = []
        while self.width(word) > width_px and len(word) > 1:
            ends = range(2, min(len(word), MOST_LETTERS))
            fitting = max((end for end in ends if self.width(word[:end]) <= width_px), default=1)
            marked = max(word.rfind(mark, 0, fitting) + 1 for mark in "-_/,.")
            end = marked if marked > 1 else fitting
            pieces.append(word[:end])
            word = word[end:]
        return [*pieces, word]

    def _cut(self, line: str, width_px: int) -> str:
        while self.width(line) > width_px and len(line) > 2:
            line = f"{line[:-2].rstrip()}…"
        return line
