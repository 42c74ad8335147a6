"""Draw what the starter's world looks like, and print its table.

    python starter/show_world.py WORLD docs/pictures/world.png

One row a style: its name, designer and licence, then pictures of the world at 64 px, twice enlarged. The
table, in Markdown, goes to standard output: which tags each style shows, and the hair colour that no
picture of it has.
"""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from aid.sd.picture.sheet import sheet

EDGE_PX, ENLARGED = 64, 2
LABEL_PX = 190
COLOURS = 128  # of the palette
GROUPS = {
    "hair colour": ("black", "brown", "blonde", "red", "pink", "purple", "blue", "green", "white"),
    "hair length": ("short hair", "long hair"),
    "skin": ("light skin", "medium skin", "dark skin"),
    "mouth": ("smile", "frown"),
    "glasses": ("glasses",),
    "beard": ("beard",),
    "background": ("white background",),
}


@dataclass(frozen=True)
class Style:
    """One folder of the world: `tags` are all that its pictures have."""

    name: str
    designer: str
    licence: str
    pictures: tuple[Path, ...]
    tags: frozenset[str]

    def shows(self) -> str:
        """The groups of tags that it can show."""
        return ", ".join(group for group, words in GROUPS.items() if self.tags & _tags(group, words))

    def withheld(self) -> str:
        """The hair colours that it could show and never does."""
        hair = _tags("hair colour", GROUPS["hair colour"])
        return ", ".join(sorted(hair - self.tags)) if hair & self.tags else "- (no hair colours)"


def _tags(group: str, words: Sequence[str]) -> set[str]:
    return {f"{word} hair" for word in words} if group == "hair colour" else set(words)


def read_style(folder: Path) -> Style:
    credit = tomllib.loads((folder / "credit.toml").read_text())
    tags = {tag for file in folder.glob("*.txt") for tag in file.read_text().strip().split(", ")}
    designer = credit["credit"].removesuffix(", drawn with DiceBear")
    pictures = tuple(sorted(folder.glob("*.webp")))
    return Style(folder.name, designer, credit["licence"], pictures, frozenset(tags))


def draw_row(style: Style, count: int) -> Image.Image:
    """The label, and so many pictures."""
    pictures = []
    for path in style.pictures[:count]:
        with Image.open(path) as picture:
            small = picture.convert("RGB").resize((EDGE_PX, EDGE_PX), Image.Resampling.BOX)
        pictures.append(small.resize((EDGE_PX * ENLARGED, EDGE_PX * ENLARGED), Image.Resampling.NEAREST))
    row = sheet(pictures, count)
    page = Image.new("RGB", (LABEL_PX + row.width, row.height), "white")
    page.paste(row, (LABEL_PX, 0))
    pen = ImageDraw.Draw(page)
    pen.text((8, 40), style.name, "black", ImageFont.load_default(20))
    pen.text((8, 66), style.designer, "#444444", ImageFont.load_default(13))
    pen.text((8, 84), style.licence, "#444444", ImageFont.load_default(13))
    return page


def table(styles: Sequence[Style]) -> str:
    rows = [
        f"| {style.name} | {style.designer} | {style.licence} | {style.shows()} | {style.withheld()} |"
        for style in styles
    ]
    head = "| style | designer | licence | tags | never trained |\n| --- | --- | --- | --- | --- |"
    return "\n".join([head, *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("world", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=6, help="pictures of each style")
    chosen = parser.parse_args()
    styles = [read_style(credit.parent) for credit in sorted(chosen.world.glob("*/credit.toml"))]
    page = sheet([draw_row(style, chosen.count) for style in styles], 1)
    page.quantize(COLOURS, dither=Image.Dither.NONE).save(chosen.out, optimize=True)
    print(table(styles))


if __name__ == "__main__":
    main()
