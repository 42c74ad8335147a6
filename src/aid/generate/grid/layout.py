"""A grid before it is drawn: its axes, its cells, and which of them are one picture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path

from aid.core.release import MODEL_FILE, Release
from aid.errors import SettingsError
from aid.generate.gallery import picture_name
from aid.generate.grid.axis import Axis, Known, kinds, read_axis, require_apart
from aid.generate.grid.cell import PLACE, Cell
from aid.generate.grid.settings import GridInputs, GridSettings
from aid.generate.grid.value import MOST
from aid.generate.material import embedding_files
from aid.generate.plan import shots_of_prompt
from aid.sd.palette import STYLE
from aid.sd.weights import open_weights

OWN = "own"


@dataclass(frozen=True)
class Sources:
    """What the names of the weights stand for; the first of each is the one without an axis."""

    checkpoints: Mapping[str, Path]
    vaes: Mapping[str, Path | None]
    """None is the checkpoint's own."""


@dataclass(frozen=True)
class Grid:
    """`axes` are x, y, z; `cells` go from left to right, from top to bottom, from sheet to sheet."""

    axes: tuple[Axis, Axis, Axis]
    cells: tuple[Cell, ...]

    @cached_property
    def pictures(self) -> tuple[Cell, ...]:
        """The cells that differ, in their order: equal ones are drawn once."""
        return tuple(dict.fromkeys(self.cells))

    @cached_property
    def places(self) -> tuple[int, ...]:
        """For each cell the number of its picture."""
        numbers = {cell: number for number, cell in enumerate(self.pictures)}
        return tuple(numbers[cell] for cell in self.cells)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The pictures' files."""
        return tuple(picture_name(number, cell.shot) for number, cell in enumerate(self.pictures))

    @cached_property
    def by_weights(self) -> dict[tuple[str, str], list[int]]:
        """(checkpoint, VAE) -> numbers of pictures, so ordered that each checkpoint is loaded once, on
        whichever axis it is."""
        order: dict[str, dict[str, list[int]]] = {}
        for number, cell in enumerate(self.pictures):
            order.setdefault(cell.checkpoint, {}).setdefault(cell.vae, []).append(number)
        return {
            (checkpoint, vae): found for checkpoint, by_vae in order.items() for vae, found in by_vae.items()
        }

    def sheets(self) -> list[list[list[int]]]:
        """The numbers of pictures as [z][y][x]."""
        columns, rows, sheets = (len(axis.labels) for axis in self.axes)
        numbers = iter(self.places)
        return [[[next(numbers) for _ in range(columns)] for _ in range(rows)] for _ in range(sheets)]


def plan_grid(settings: GridSettings, inputs: GridInputs) -> Grid:
    """Everything but the pictures; headers are read and no weights. Raises SettingsError for axes that can't be
    meant, before anything is drawn."""
    sources = sources_of(inputs)
    embeddings = tuple(file.stem for file in embedding_files(inputs.embeddings))
    release = Release.at(inputs.checkpoint)
    known = Known(
        tuple(sources.checkpoints), tuple(sources.vaes), embeddings, release.catalogue if release else None
    )
    texts = (settings.x, settings.y, settings.z)
    if not any(text.strip() for text in texts):
        raise SettingsError("a grid without an axis", ", ".join(kinds(known)), "Give --x NAME=VALUES.")
    x, y, z = (read_axis(text, known) for text in texts)
    require_apart((x, y, z))
    if (count := math.prod(len(axis.labels) for axis in (x, y, z))) > MOST:
        raise SettingsError(f"{count:,} cells", f"at most {MOST:,}", "Leave values out.")
    with_style = any(axis.kind == "style" for axis in (x, y, z))
    edge_px = open_weights(inputs.checkpoint).architecture.native_edge_px
    base = base_cell(settings, sources, embeddings, edge_px, with_style)
    return Grid((x, y, z), tuple(cells_of(base, (x, y, z))))


def sources_of(inputs: GridInputs) -> Sources:
    """Raises SettingsError for two checkpoints or VAEs of one name."""
    own: dict[str, Path | None] = {OWN: None}
    given = {_name(inputs.vae): inputs.vae} if inputs.vae else {}
    return Sources(
        _joined("checkpoint", {_name(inputs.checkpoint): inputs.checkpoint}, inputs.checkpoints),
        {
            **given,
            **_joined("VAE", own, {name: path for name, path in inputs.vaes.items() if name not in given}),
        },
    )


def base_cell(
    settings: GridSettings, sources: Sources, embeddings: tuple[str, ...], edge_px: int, with_style: bool
) -> Cell:
    """The shot that `generate` would draw, with a place for the trigger words of a style if an axis has them."""
    if with_style and STYLE not in settings.prompt:
        settings = settings.model_copy(update={"styles": (*settings.styles, PLACE)})
    shot = shots_of_prompt(settings, embeddings, edge_px)[0]
    prompt = shot.prompt.replace(f"by {PLACE}", PLACE)
    style = shot.style if shot.style != PLACE else ""
    shot = shot.model_copy(update={"prompt": prompt, "style": style})
    return Cell(shot, next(iter(sources.checkpoints)), next(iter(sources.vaes)))


def cells_of(base: Cell, axes: tuple[Axis, Axis, Axis]) -> list[Cell]:
    """Every combination; a cell's changes are made in the order of their ranks, whatever axes they are on."""
    x, y, z = axes
    cells = []
    for choices in product(*([(axis.rank, change) for change in axis.changes] for axis in (z, y, x))):
        cell = base
        for _, change in sorted(choices, key=lambda choice: choice[0]):
            cell = change(cell)
        cells.append(cell)
    return cells


def _name(path: Path) -> str:
    """A file by its stem, and an artifact's by its folder's name."""
    found = path.absolute()
    return found.parent.name if found.name == MODEL_FILE else found.name if found.is_dir() else found.stem


def _joined(what: str, first: Mapping[str, Path | None], more: Mapping[str, Path]) -> dict[str, Path]:
    if both := sorted(set(first) & set(more)):
        raise SettingsError(
            f"two of the grid's {what}s are called {both[0]}", "names of their own", "NAME=PATH"
        )
    return {**first, **more}  # type: ignore[dict-item]
