"""A grid before it is drawn: its axes, its cells, and which of them are one picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path

from aid.core.release import MODEL_FILE, Release
from aid.core.shot import Shot
from aid.errors import SettingsError
from aid.generate.gallery import picture_name
from aid.generate.grid.axis import Axis, Known, kinds, listed, read_axis, require_apart
from aid.generate.grid.cell import PLACE, Cell
from aid.generate.grid.settings import GridInputs, GridSettings
from aid.generate.grid.value import MOST
from aid.generate.material import source_of
from aid.generate.plan import shot_of_prompt
from aid.generate.run import drawn_from
from aid.sd.adapter.folder import AdapterFolder
from aid.sd.embedding.folder import embedding_files, load_embeddings
from aid.sd.model.architecture import Architecture
from aid.sd.model.weights import open_weights
from aid.sd.picture.file import SUFFIX
from aid.sd.prompt.palette import STYLE

OWN = "own"
WEIGHTS = (".safetensors", ".ckpt", ".pt", ".bin")


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
    suffix: str = ".png"

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
        return tuple(
            picture_name(number, cell.shot, self.suffix) for number, cell in enumerate(self.pictures)
        )

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
    """Everything but the pictures; headers are read and no weights. Raises SettingsError for axes that
    can't be meant, before anything is drawn."""
    sources = sources_of(inputs)
    architecture = open_weights(inputs.checkpoint, vae_given=inputs.vae is not None).architecture
    embeddings = embedding_names(inputs.embeddings, architecture)
    release = Release.at(inputs.checkpoint)
    known = Known(
        tuple(sources.checkpoints),
        tuple(sources.vaes),
        embeddings,
        tuple(sorted(AdapterFolder(*inputs.loras).paths)) if inputs.loras else (),
        release.catalogue if release else None,
    )
    texts = (settings.x, settings.y, settings.z)
    if not any(text.strip() for text in texts):
        raise SettingsError("a grid without an axis", listed(kinds(known)), "Give --x NAME=VALUES.")
    x, y, z = (read_axis(text, known) for text in texts)
    require_apart((x, y, z))
    if (count := math.prod(len(axis.labels) for axis in (x, y, z))) > MOST:
        raise SettingsError(f"{count:,} cells", f"at most {MOST:,}", "Leave values out.")
    with_style = any(axis.kind == "style" for axis in (x, y, z))
    shot = base_shot(settings, embeddings, architecture.native_edge_px, with_style)
    [shot] = drawn_from([shot], source_of(settings, inputs))
    base = Cell(shot, next(iter(sources.checkpoints)), next(iter(sources.vaes)))
    return Grid((x, y, z), tuple(cells_of(base, (x, y, z))), SUFFIX[settings.format])


def sources_of(inputs: GridInputs) -> Sources:
    """Raises SettingsError for two checkpoints or VAEs of one name."""
    vaes: dict[str, Path | None] = {**_named("VAE", inputs.vae, inputs.vaes)}
    if OWN in vaes:
        raise SettingsError(f"a VAE is called {OWN}, which is the checkpoint's", "another name", "NAME=PATH")
    own: dict[str, Path | None] = {OWN: None}
    checkpoints = _named("checkpoint", inputs.checkpoint, inputs.checkpoints)
    return Sources(checkpoints, {**vaes, **own} if inputs.vae else {**own, **vaes})


def embedding_names(paths: Sequence[Path], architecture: Architecture) -> tuple[str, ...]:
    """What calls the embeddings that fit the model."""
    widths = architecture.text_width, architecture.text_2_width or None
    names: list[str] = []
    for path in paths:
        known = load_embeddings(embedding_files(path), *widths).embeddings if path.is_dir() else [path.stem]
        names += known
    return tuple(names)


def base_shot(settings: GridSettings, embeddings: Sequence[str], edge_px: int, with_style: bool) -> Shot:
    """The shot that `generate` would draw, with a place for a style's trigger words if an axis has them."""
    if with_style and STYLE not in settings.prompt:
        settings = settings.model_copy(update={"styles": (*settings.styles, PLACE)})
    shot = shot_of_prompt(settings, embeddings, edge_px)
    prompt = shot.prompt.replace(f"by {PLACE}", PLACE)
    return shot.model_copy(update={"prompt": prompt, "style": shot.style.replace(PLACE, "")})


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


def _named(what: str, first: Path | None, more: Mapping[str, Path]) -> dict[str, Path]:
    """Names and paths, `first` in front, by its file's name or by the one it is given among the others."""
    given = [(Path(name).stem if Path(name).suffix in WEIGHTS else name, path) for name, path in more.items()]
    if first is not None:
        own = next((name for name, path in given if path == first), _name(first))
        given = [(own, first), *((name, path) for name, path in given if path != first)]
    names = [name for name, _ in given]
    if twice := [name for name in names if names.count(name) > 1]:
        raise SettingsError(f"two {what}s are called {twice[0]}", "names of their own", "Write NAME=PATH.")
    return dict(given)


def _name(path: Path) -> str:
    """A file by its stem, and an artifact's by its folder's name."""
    found = path.absolute()
    return found.parent.name if found.name == MODEL_FILE else found.name if found.is_dir() else found.stem
