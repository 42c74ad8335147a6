"""Draws a grid's pictures with what `generate` draws with, one checkpoint after the other."""

from __future__ import annotations

from pathlib import Path

from aid.core.workbench import Workbench
from aid.generate.grid.layout import Grid, sources_of
from aid.generate.grid.settings import GridInputs, GridSettings
from aid.generate.material import load_material, with_vae
from aid.generate.run import draw_missing
from aid.generate.settings import DrawingInputs


def draw_grid(
    plan: Grid, settings: GridSettings, inputs: GridInputs, out: Path, lineage: str, bench: Workbench
) -> None:
    """Write each picture as soon as it is drawn. A checkpoint is loaded once, and not at all if none of its
    pictures is missing; only its VAE is changed between those that share it."""
    sources = sources_of(inputs)
    loaded, material = "", None
    for (checkpoint, vae), numbers in plan.by_weights.items():
        files = [out / plan.names[number] for number in numbers]
        if all(file.is_file() for file in files):
            continue
        path = sources.vaes[vae]
        if material is None or loaded != checkpoint:
            material = None  # room for the next
            told = _drawing_inputs(inputs, sources.checkpoints[checkpoint], path)
            loaded, material = checkpoint, load_material(settings, told, bench)
        else:
            material = with_vae(material, path)
        shots = [plan.pictures[number].shot for number in numbers]
        draw_missing(material, shots, files, settings, lineage, bench)


def _drawing_inputs(inputs: GridInputs, checkpoint: Path, vae: Path | None) -> DrawingInputs:
    shared = {name: getattr(inputs, name) for name in DrawingInputs.model_fields}
    return DrawingInputs.model_validate({**shared, "checkpoint": checkpoint, "vae": vae})
