"""Labelled sheets: a grid as PNGs that can be passed on."""

from __future__ import annotations

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


@dataclass(frozen=True)
class Cut:
    """Rows and columns of one sheet, of the sheet `z`."""

    z: int
    rows: range
    columns: range


def save_sheets(plan: Grid, folder: Path, edge_px: int) -> list[Path]:
    """Write every sheet, none of whose sides is longer than `edge_px`; returns the files."""
    columns, rows, _ = (len(axis.labels) for axis in plan.axes)
    cell = cell_size(_largest(plan), columns, rows, edge_px)
    across, down = (max(1, (edge_px - MARGIN_PX) // (side + GAP_PX)) for side in cell)
    cuts = list(_cuts(plan, across, down))
    files = [folder / name for name in _file_names(plan, cuts)]
    for cut, file in zip(cuts, files, strict=True):
        with replacing(file) as stream:
            draw_sheet(plan, folder, cut, cell).save(stream, "png")
    return files


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
    step = cell[0] + GAP_PX, cell[1] + GAP_PX
    heads = [letters.lines(x.labels[column], cell[0], 4) for column in cut.columns] if x.kind else [[]]
    side = _side_width(letters, [y.labels[row] for row in cut.rows]) if y.kind else 0
    width = side + len(cut.columns) * step[0] + 2 * letters.size_px
    title = letters.lines(_heading(plan, cut.z), width - 2 * letters.size_px, 2)
    top = letters.size_px + letters.height(title) + letters.size_px // 2
    first = top + max(map(letters.height, heads)) + letters.size_px // 2
    left = letters.size_px + side
    page = Image.new("RGB", (width, first + len(cut.rows) * step[1] + letters.size_px // 2), "white")
    letters.write(
        page, title, (letters.size_px, letters.size_px, width - letters.size_px, top - letters.size_px // 2)
    )
    for number, lines in enumerate(heads):
        at = left + number * step[0]
        letters.write(page, lines, (at, top, at + cell[0], first - letters.size_px // 2))
    sheets = plan.sheets()
    for down, row in enumerate(cut.rows):
        at = first + down * step[1]
        if y.kind:
            words = letters.lines(y.labels[row], side - letters.size_px // 2, _most_lines(letters, cell))
            letters.write(page, words, (letters.size_px, at, left - letters.size_px // 2, at + cell[1]))
        for across, column in enumerate(cut.columns):
            picture = _shown(folder / plan.names[sheets[cut.z][row][column]], cell)
            place = (
                left + across * step[0] + (cell[0] - picture.width) // 2,
                at + (cell[1] - picture.height) // 2,
            )
            page.paste(picture, place)
    return page


def _heading(plan: Grid, z: int) -> str:
    """What the axes are, such as `CFG scale → across, steps ↓ down`, and the sheet's own value."""
    x, y, along = plan.axes
    parts = [f"{along.title}: {along.labels[z]}"] if along.kind else []
    parts += [f"{x.title} across"] if x.kind else []
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
    for z in range(sheets):
        for top in range(0, rows, down):
            for left in range(0, columns, across):
                yield Cut(z, range(top, min(top + down, rows)), range(left, min(left + across, columns)))


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
