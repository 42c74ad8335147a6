"""The verb `merge distance`: how far models are from each other, block by block."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from aid.core.artifact import verb
from aid.core.blocks import BLOCKS
from aid.core.files import replacing, write_json, write_text
from aid.core.workbench import Workbench
from aid.errors import ModelError, SettingsError
from aid.merge.arithmetic.source import Operand
from aid.merge.arithmetic.sums import arithmetic
from aid.merge.settings import DistanceInputs, DistanceSettings
from aid.merge.streaming.parent import Parent, open_parent, require_one_architecture
from aid.merge.streaming.plan import is_model
from aid.sd.file.header import FLOATING, ITEM_BYTES
from aid.sd.model.architecture import Family
from aid.sd.model.blocks import block_of, extra_blocks, is_merged
from aid.sd.model.detection import detect

Row = dict[str, float | None]
Table = dict[tuple[str, str], Row]
"""(from, to) -> block -> distance, relative to the first model's own length."""


@verb("merge distance")
def distance(settings: DistanceSettings, inputs: DistanceInputs, out: Path, bench: Workbench) -> None:
    """Write `distance.json`, the same as a table for people, `distance.md`, and as a picture, `distance.png`.

    A distance is |B - A| / |A| over all numbers of a block. Raises ModelError for models that don't fit, and
    for NaN and infinity.
    """
    if len(inputs.models) < 2:
        raise SettingsError("one model has no distance", "two models or more", "Give --models twice.")
    with ExitStack() as open_files:
        parents = [open_parent(name, path, open_files) for name, path in inputs.models.items()]
        require_one_architecture(parents[0], parents[1:])
        grouped = _grouped(parents, settings)
        for note in _notes(parents, grouped, settings):
            bench.progress.say(note)
        table: Table = {}
        with bench.progress.task("compare", total=len(parents) - 1, unit="model") as tick:
            for number, parent in enumerate(parents[:-1], 1):
                table.update(_rows(parent, parents[number:], grouped))
                tick()
    write_json(out / "distance.json", [{"from": a, "to": b, "blocks": row} for (a, b), row in table.items()])
    write_text(out / "distance.md", markdown(table))
    draw(table, out / "distance.png")


def _grouped(parents: Sequence[Parent], settings: DistanceSettings) -> dict[str, list[str]]:
    """Block -> the tensors that all models have there."""
    first, family = parents[0], _family(parents[0])
    extra = extra_blocks(family, settings.convention)
    grouped: dict[str, list[str]] = {block: [] for block in (*BLOCKS[family], *extra)}
    for key in first.formats:
        if _is_compared(key, parents, settings):
            grouped[block_of(key, family, settings.convention)].append(key)
    return grouped


def _family(parent: Parent) -> Family:
    return detect(parent.shapes(), parent.metadata, str(parent.path)).family


def _notes(
    parents: Sequence[Parent], grouped: Mapping[str, Sequence[str]], settings: DistanceSettings
) -> Iterator[str]:
    """What of the models is not compared, since some lack it or have it as whole numbers."""
    compared, family = {key for keys in grouped.values() for key in keys}, _family(parents[0])
    rest = {
        key: None
        for parent in parents
        for key in parent.formats.keys() - compared
        if parent.is_floating(key) and is_model(key, family) and is_merged(key, settings.convention)
    }
    for parent in parents:
        if missing := [key for key in rest if key not in parent.formats]:
            yield f"{parent.lacks(missing)}: compared without"
        if whole := [key for key in rest if key in parent.formats and not parent.is_floating(key)]:
            yield f"{parent}: {whole[0]} is {parent.formats[whole[0]].word}: compared without"


def _is_compared(key: str, parents: Sequence[Parent], settings: DistanceSettings) -> bool:
    formats = [parent.formats[key].name for parent in parents if key in parent.formats]
    floats = len(formats) == len(parents) and all(format in FLOATING for format in formats)
    return floats and is_merged(key, settings.convention)


def _rows(parent: Parent, others: Sequence[Parent], grouped: Mapping[str, Sequence[str]]) -> Table:
    """All of one model's distances, read once."""
    table: Table = {(parent.name, other.name): {} for other in others}
    for block, keys in grouped.items():
        length, squares = 0.0, [0.0] * len(others)
        for key in keys:
            own, found = _squares(key, parent, others)
            length += own
            squares = [a + b for a, b in zip(squares, found, strict=True)]
        for other, square in zip(others, squares, strict=True):
            there = math.sqrt(square / length) if length else None
            table[parent.name, other.name][block] = None if there is None else float(f"{there:.6g}")
    return table


def _squares(key: str, parent: Parent, others: Sequence[Parent]) -> tuple[float, list[float]]:
    """A tensor's own square and its squared distances."""
    own = _operand(key, parent)
    count = len(own.values) // ITEM_BYTES[own.format]
    squares = []
    for other in others:
        less = _operand(key, other)
        squares.append(arithmetic([own.format, less.format]).square(own, less, count))
    return arithmetic([own.format]).square(own, None, count), squares


def _operand(key: str, parent: Parent) -> Operand:
    format = parent.formats[key].name
    operand = Operand(parent.read(key), format)
    if not arithmetic([format]).is_finite(operand, len(operand.values) // ITEM_BYTES[format]):
        raise ModelError(f"{parent}: {key} holds NaN or infinity", "finite weights")
    return operand


def markdown(table: Table) -> str:
    """Blocks down, pairs across."""
    pairs = list(table)
    lines = [f"| block | {' | '.join(f'{a} - {b}' for a, b in pairs)} |", f"| --- |{' --- |' * len(pairs)}"]
    for block in table[pairs[0]]:
        lines.append(f"| {block} | {' | '.join(_told(table[pair][block]) for pair in pairs)} |")
    return "\n".join(lines) + "\n"


def _told(number: float | None) -> str:
    return "" if number is None else f"{number:.2%}"


def draw(table: Table, path: Path) -> None:
    """A square a block and pair, the darker the farther."""
    from matplotlib.figure import Figure

    blocks, pairs = list(next(iter(table.values()))), list(table)
    shares = [[table[pair][block] or 0.0 for block in blocks] for pair in pairs]
    figure = Figure(figsize=(2.5 + 0.36 * len(blocks), 1.3 + 0.4 * len(pairs)), layout="constrained")
    axes = figure.add_subplot()
    shown = axes.imshow(shares, cmap="magma_r", vmin=0.0, aspect="auto")
    axes.set_xticks(range(len(blocks)), blocks, rotation=90, fontsize=8)
    labels = [f"{a} - {b}" for a, b in pairs]
    axes.set_yticks(range(len(pairs)), labels, fontsize=8, parse_math=False)
    figure.colorbar(shown, ax=axes, label="|B - A| / |A|")
    with replacing(path) as stream:
        figure.savefig(stream, format="png", dpi=110, metadata={"Software": "AID"})
