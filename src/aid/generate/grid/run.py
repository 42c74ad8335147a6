"""The verb `grid`: a Checkpoint and axes in, a gallery with labelled sheets and a page out.

00000-SEED.png ...     the pictures; cells that are equal are one
shots.jsonl            their shots, for the judge
grid.json              axes with their labels, files, and sheets: [z][y][x] -> number of a file
grid.png               the labelled sheet; grid-LABEL.png for each value of z; -2, -3 ... where one is too
                       large
small/                 the page's pictures, where the real ones are large
index.html             the page
"""

from __future__ import annotations

from pathlib import Path

from aid.core.artifact import under_construction, verb
from aid.core.files import write_json, write_lines, write_text
from aid.core.gallery import SHOTS_FILE, Frame
from aid.core.workbench import Workbench
from aid.generate.grid.drawing import draw_grid
from aid.generate.grid.layout import Grid, plan_grid
from aid.generate.grid.page import PAGE_FILE, page, write_small
from aid.generate.grid.settings import GridInputs, GridSettings
from aid.generate.grid.sheet import save_sheets
from aid.generate.material import tell_styles

GRID_FILE = "grid.json"


@verb("grid", resumable=True)
def grid(settings: GridSettings, inputs: GridInputs, out: Path, bench: Workbench) -> None:
    """Plan all cells, draw what isn't drawn yet, then lay it out on sheets and on a page."""
    plan = plan_grid(settings, inputs)
    tell_styles(settings.styles, inputs.checkpoint, bench)
    draw_grid(plan, settings, inputs, out, under_construction(out).embedded(ancestors=False), bench)
    write_list(plan, out)
    save_sheets(plan, out, settings.sheet_edge_px)
    small = write_small(plan, out)
    write_text(out / PAGE_FILE, page(plan, out, small))


def write_list(plan: Grid, out: Path) -> None:
    """The pictures' shots, and where in the grid each is."""
    frames = [Frame(file=name, shot=cell.shot) for name, cell in zip(plan.names, plan.pictures, strict=True)]
    write_lines(out / SHOTS_FILE, [frame.model_dump(mode="json") for frame in frames])
    axes = [{"kind": axis.kind, "labels": list(axis.labels)} for axis in plan.axes]
    write_json(out / GRID_FILE, {"axes": axes, "files": list(plan.names), "sheets": plan.sheets()})
