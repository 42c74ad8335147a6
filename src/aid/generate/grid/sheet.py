"""Labelled sheets: a grid as PNGs that can be passed on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from aid.core.file_name import file_names
from aid.core.files import replacing
from aid.core.picture import open_small
from aid.generate.grid.layout import Grid
from aid.generate.grid.lettering import Lettering

SMALLEST_CELL_PX = 128  # a sheet's cells are made no smaller; smaller pictures stay as they are
GAP_PX = 6
MARGIN_PX = 420  # at most, for heading and labels
LARGEST_LETTER_PX = 32
LONGEST_ROW = 12  # pictures of a palette that stand in one row
BAND_ROWS = 1.5  # a band takes as much room as so many rows, for the labels in it


@dataclass(frozen=True)
class Cut:
    """What of the sheet `z` is on one page: rows, and columns side by side. A grid without rows to name, such
    as a palette, goes on in further bands of columns below."""

    z: int
    rows: range
    bands: tuple[range, ...]


def save_sheets(plan: Grid, folder: Path, edge_px: int) -> list[Path]:
    """Write every sheet, none of whose sides is longer than `edge_px`; returns the files."""
    columns, rows, _ = (len(axis.labels) for axis in plan.axes)
    abreast = columns if plan.axes[1].kind else columns_abreast(columns)
    bands = math.ceil(columns / abreast)
    high = rows if bands == 1 else math.ceil(bands * BAND_ROWS)
    cell = cell_size(_largest(plan), abreast, high, edge_px)
    across, down = (max(1, (edge_px - MARGIN_PX) // (side + GAP_PX)) for side in cell)
    cuts = list(_cuts(plan, min(across, abreast), down))
    files = [folder / name for name in _file_names(plan, cuts)]
    for cut, file in zip(cuts, files, strict=True):
        with replacing(file) as stream:
            draw_sheet(plan, folder, cut, cell).save(stream, "png")
    return files


def columns_abreast(columns: int) -> int:
    """How many of a palette's pictures stand side by side: all of a few, or half as many again as below."""
    return columns if columns <= LONGEST_ROW else math.ceil(math.sqrt(1.5 * columns))


def cell_size(picture: tuple[int, int], columns: int, rows: int, edge_px: int) -> tuple[int, int]:
    """How large a picture is shown, so that the grid fits on a sheet or is as small as it may be."""
    room = edge_px - MARGIN_PX
    scale = min(1.0, (room / columns - GAP_PX) / picture[0], (room / rows - GAP_PX) / picture[1])
    scale = max(scale, min(1.0, SMALLEST_CELL_PX / max(picture)))
    return max(1, round(picture[0] * scale)), max(1, round(picture[1] * scale))


def draw_sheet(plan: Grid, folder: Path, cut: Cut, cell: tuple[int, int]) -> Image.Image:
    """One sheet: a heading, labels above and at the left, and the pictures in the middle of their cells."""
    x, y, _ = plan.axes
    letters = Lettering(max(12, min(LARGEST_LETTER_PX, cell[0] // 11)))
    half = letters.size_px // 2
    side = _side_width(letters, [y.labels[row] for row in cut.rows]) if y.kind else 0
    left = letters.size_px + side
    width = left + max(map(len, cut.bands)) * (cell[0] + GAP_PX) + letters.size_px
    title = letters.lines(_heading(plan, cut.z), width - 2 * letters.size_px, 2)
    heads = [
        [letters.lines(x.labels[column], cell[0], 4) if x.kind else [] for column in band]
        for band in cut.bands
    ]
    tops = [letters.size_px + letters.height(title) + half]
    for words in heads:
        tops.append(
            tops[-1] + max(map(letters.height, words)) + len(cut.rows) * (cell[1] + GAP_PX) + 2 * half
        )
    page = Image.new("RGB", (width, tops[-1]), "white")
    letters.write(page, title, (letters.size_px, letters.size_px, width - letters.size_px, tops[0] - half))
    pen = _Pen(plan, folder, page, letters, cell, left)
    for band, words, top in zip(cut.bands, heads, tops, strict=False):
        first = top + max(map(letters.height, words)) + half
        pen.write_heads(words, top, first)
        pen.draw_rows(cut, band, first)
    return page


@dataclass(frozen=True)
class _Pen:
    """Writes labels and pictures on a page whose cells begin at `left`."""

    plan: Grid
    folder: Path
    page: Image.Image
    letters: Lettering
    cell: tuple[int, int]
    left: int

    def write_heads(self, heads: Sequence[list[str]], top: int, first: int) -> None:
        for number, lines in enumerate(heads):
            at = self.left + number * (self.cell[0] + GAP_PX)
            place = at, top, at + self.cell[0], first - self.letters.size_px // 2
            self.letters.write(self.page, lines, place)

    def draw_rows(self, cut: Cut, band: range, first: int) -> None:
        letters, y = self.letters, self.plan.axes[1]
        for down, row in enumerate(cut.rows):
            at = first + down * (self.cell[1] + GAP_PX)
            if y.kind:
                right = self.left - letters.size_px // 2
                words = letters.lines(y.labels[row], right - letters.size_px, _most_lines(letters, self.cell))
                letters.write(self.page, words, (letters.size_px, at, right, at + self.cell[1]))
            for across, column in enumerate(band):
                name = self.plan.names[self.plan.sheets()[cut.z][row][column]]
                self.paste(name, self.left + across * (self.cell[0] + GAP_PX), at)

    def paste(self, name: str, left: int, top: int) -> None:
        """A picture in the middle of its cell."""
        picture = _shown(self.folder / name, self.cell)
        aside = (self.cell[0] - picture.width) // 2, (self.cell[1] - picture.height) // 2
        self.page.paste(picture, (left + aside[0], top + aside[1]))


def _heading(plan: Grid, z: int) -> str:
    """What the axes are, such as `CFG scale → across, steps ↓ down`, and the sheet's own value."""
    x, y, along = plan.axes
    parts = [f"{along.title}: {along.labels[z]}"] if along.kind else []
    parts += [f"{x.title} across" if y.kind else x.title] if x.kind else []
    parts += [f"{y.title} down"] if y.kind else []
    return ", ".join(parts)


def _side_width(letters: Lettering, labels: Sequence[str]) -> int:
    """Wide enough for the longest label, or ten letters as wide as they are high."""
    longest = max(map(letters.width, labels))
    return int(min(longest, 10 * letters.size_px)) + letters.size_px


def _most_lines(letters: Lettering, cell: tuple[int, int]) -> int:
    return max(1, cell[1] // letters.line_px)


def _shown(file: Path, cell: tuple[int, int]) -> Image.Image:
    picture = open_small(file, max(cell))
    picture.thumbnail(cell, Image.Resampling.LANCZOS)
    return picture


def _largest(plan: Grid) -> tuple[int, int]:
    drawn = [cell.shot.drawn_size for cell in plan.pictures]
    return max(width for width, _ in drawn), max(height for _, height in drawn)


def _cuts(plan: Grid, across: int, down: int) -> Iterator[Cut]:
    columns, rows, sheets = (len(axis.labels) for axis in plan.axes)
    strips = [range(left, min(left + across, columns)) for left in range(0, columns, across)]
    many = 1 if plan.axes[1].kind else max(1, int(down / BAND_ROWS))
    pages = [tuple(strips[first : first + many]) for first in range(0, len(strips), many)]
    for z in range(sheets):
        for top in range(0, rows, down):
            for bands in pages:
                yield Cut(z, range(top, min(top + down, rows)), bands)


def _file_names(plan: Grid, cuts: Sequence[Cut]) -> list[str]:
    along = plan.axes[2]
    names = [f"-{name}" for name in file_names(list(along.labels))] if along.kind else [""]
    made = [f"grid{names[cut.z]}" for cut in cuts]
    parts = [f"{name}{_part(made, index)}" for index, name in enumerate(made)]
    return [f"{name}.png" for name in file_names(parts)]


def _part(made: Sequence[str], index: int) -> str:
    """-2, -3, ... for what is not the first of one name."""
    before = made[:index].count(made[index])
    return f"-{before + 1}" if before else ""
