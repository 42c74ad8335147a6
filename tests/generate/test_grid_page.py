"""What people see of a grid: the labelled sheets, and the page."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from aid.core.script import script_data
from aid.core.shot import Shot
from aid.generate.grid.axis import Axis
from aid.generate.grid.cell import Cell
from aid.generate.grid.layout import Grid
from aid.generate.grid.lettering import Lettering
from aid.generate.grid.page import page, write_small
from aid.generate.grid.sheet import SMALLEST_CELL_PX, save_sheets
from aid.sd.picture.infotext import png_bytes, write_infotext

HOSTILE = "</script><img src=x onerror=alert(1)>\u2028&amp; \"quotes\" 'and' <!-- {{data}} ü 漢字"


def axis(kind: str, labels: list[str]) -> Axis:
    return Axis(kind, tuple(labels), tuple(lambda cell: cell for _ in labels))


def painted(folder: Path, shape: tuple[int, int, int], edge_px: int, word: str = "cat") -> Grid:
    """A grid of plain pictures: red tells the column, green the row, blue the sheet."""
    columns, rows, sheets = shape
    cells, colours = [], []
    for z in range(sheets):
        for y in range(rows):
            for x in range(columns):
                seed = (z * rows + y) * columns + x
                shot = Shot(prompt=word, seed=seed, width=edge_px, height=edge_px)
                cells.append(Cell(shot, "model", "own"))
                colours.append((255 * (x + 1) // (columns + 1), 255 * (y + 1) // (rows + 1), 40 * z))
    labels = [
        [f"{name} {number} {word}" for number in range(count)]
        for name, count in zip("xyz", shape, strict=True)
    ]
    names = ("steps", "cfg_scale", "seed" if sheets > 1 else "")
    plan = Grid(tuple(map(axis, names, labels)), tuple(cells))  # type: ignore[arg-type]
    for name, cell, colour in zip(plan.names, cells, colours, strict=True):
        picture = Image.new("RGB", (edge_px, edge_px), colour)
        (folder / name).write_bytes(png_bytes(picture, write_infotext(cell.shot)))
    return plan


def centre(sheet: np.ndarray, colour: tuple[int, int, int]) -> tuple[int, ...]:
    """The centre of the pixels of one colour, (x, y), and their number."""
    ys, xs = np.nonzero((sheet == colour).all(axis=2))
    return int(xs.mean()), int(ys.mean()), len(xs)


def test_pictures_stand_under_and_beside_their_labels(tmp_path: Path) -> None:
    plan = painted(tmp_path, (3, 2, 2), 64)
    files = save_sheets(plan, tmp_path, 6000)
    assert [file.name for file in files] == ["grid-z-0-cat.png", "grid-z-1-cat.png"]
    for z, file in enumerate(files):
        sheet = np.asarray(Image.open(file))
        places = [
            [centre(sheet, (255 * (x + 1) // 4, 255 * (y + 1) // 3, 40 * z)) for x in range(3)]
            for y in range(2)
        ]
        assert all(count == 64 * 64 for row in places for _, _, count in row)
        for row in places:
            assert row[0][0] < row[1][0] < row[2][0] and len({y for _, y, _ in row}) == 1
        assert places[0][0][1] < places[1][0][1]
        x, y, _ = places[0][0]
        above, beside = sheet[: y - 32, x - 32 : x + 32], sheet[y - 32 : y + 32, : x - 32]
        assert above.min() < 100 and beside.min() < 100  # black letters
        assert (sheet[:4] == 255).all() and (sheet[:, :4] == 255).all() and (sheet[:, -4:] == 255).all()


def test_a_large_grid_is_made_smaller_and_then_split(tmp_path: Path) -> None:
    plan = painted(tmp_path, (6, 2, 1), 256)
    [sheet] = save_sheets(plan, tmp_path, 1500)
    with Image.open(sheet) as small:
        assert max(small.size) <= 1500
    files = save_sheets(plan, tmp_path, 1000)
    assert [file.name for file in files] == ["grid.png", "grid-2.png"]
    seen = 0
    for file in files:
        with Image.open(file) as opened:
            assert max(opened.size) <= 1000
            found = np.asarray(opened)
            for x in range(6):
                colour = (255 * (x + 1) // 7, 255 // 3, 0)
                if (found == colour).all(axis=2).any():
                    seen += 1
                    assert centre(found, colour)[2] == SMALLEST_CELL_PX**2
    assert seen == 6


def test_a_palette_goes_on_in_further_rows(tmp_path: Path) -> None:
    """40 styles are 8 by 5 on one sheet, each under its own label; where that is too much, on the next."""
    plan = painted(tmp_path, (40, 1, 1), 64)
    plan = Grid((plan.axes[0], Axis(), Axis()), plan.cells)
    [sheet] = save_sheets(plan, tmp_path, 2000)
    page = np.asarray(Image.open(sheet))
    places = [centre(page, (255 * (x + 1) // 41, 255 // 2, 0)) for x in range(40)]
    assert len({x for x, _, _ in places}) == 8 and len({y for _, y, _ in places}) == 5
    assert places == sorted(places, key=lambda place: (place[1], place[0]))
    for x, y, count in places:
        assert count == 64 * 64 and page[y - 52 : y - 34, x - 32 : x + 32].min() < 100  # its label
    files = save_sheets(plan, tmp_path, 800)
    assert [file.name for file in files] == ["grid.png", "grid-2.png", "grid-3.png"]
    assert all(max(Image.open(file).size) <= 800 for file in files)


@settings(max_examples=30, deadline=None)
@given(st.text(max_size=200), st.integers(20, 300))
def test_labels_fit_their_place(text: str, width_px: int) -> None:
    letters = Lettering(16)
    lines = letters.lines(text, width_px, 4)
    assert len(lines) <= 4
    assert all(letters.width(line) <= width_px for line in lines if len(line) > 2)


def test_long_words_are_broken_and_nothing_is_lost() -> None:
    lines = Lettering(16).lines("masterpiece " + "x" * 60 + " end", 100, 20)
    assert "".join(lines) == "masterpiece" + "x" * 60 + "end"


class Reader(HTMLParser):
    """Every tag, what it loads, and the page's data."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.data = ""
        self.inside = False

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attributes if name in ("src", "href")]
        self.inside = ("id", "data") in attributes

    def handle_data(self, data: str) -> None:
        self.data += data if self.inside else ""


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    return reader


def test_the_page_holds_all_that_people_wrote_as_data(tmp_path: Path) -> None:
    plain = read(page(plan := painted(tmp_path, (2, 2, 1), 16), tmp_path, write_small(plan, tmp_path)))
    hostile = painted(tmp_path, (2, 2, 1), 16, HOSTILE)
    made = page(hostile, tmp_path, write_small(hostile, tmp_path))
    reader = read(made)
    assert reader.tags == plain.tags and reader.tags.count("script") == 2
    assert set(reader.loads) == {"data:,"} and "://" not in made
    data = json.loads(reader.data)
    assert data["axes"][0]["labels"] == [f"x {number} {HOSTILE}" for number in range(2)]
    assert data["pictures"][3]["text"].startswith(HOSTILE.strip())
    assert data["sheets"] == [[[0, 1], [2, 3]]]
    assert all((tmp_path / one["file"]).is_file() for one in data["pictures"])


@given(st.text())
def test_no_text_ends_the_script(text: str) -> None:
    written = script_data([text])
    assert json.loads(written) == [text]
    assert not set(written) & set("<>&\u2028\u2029")


@pytest.mark.parametrize(("edge_px", "smaller"), [(16, False), (400, True)])
def test_only_large_pictures_get_a_small_one(tmp_path: Path, edge_px: int, smaller: bool) -> None:
    plan = painted(tmp_path, (1, 1, 1), edge_px)
    [shown] = write_small(plan, tmp_path)
    assert (shown != plan.names[0]) is smaller
    with Image.open(tmp_path / shown) as picture:
        assert max(picture.size) == min(edge_px, 384)
