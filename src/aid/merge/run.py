"""Merge: checkpoints x block weights -> one checkpoint."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from aid.core.artifact import under_construction, verb
from aid.core.files import write_json
from aid.core.lineage import METADATA_KEY
from aid.core.workbench import Workbench
from aid.merge.job import Job, open_job
from aid.merge.note import Notes
from aid.merge.prediction import result, retold
from aid.merge.recipe.recipe import Recipe
from aid.merge.settings import MergeInputs, MergeSettings
from aid.merge.streaming.plan import Plan
from aid.merge.streaming.stream import threads_of, write_stream
from aid.sd.model.architecture import METADATA_KEY as ARCHITECTURE_KEY

FILE = "model.safetensors"
STILL_TRUE = ("sai_model_spec", "architecture", "implementation", "prediction_type", "resolution")


@verb("merge", unhashed=(FILE,))
def merge(settings: MergeSettings, inputs: MergeInputs, out: Path, bench: Workbench) -> None:
    """Put the models together block by block into `model.safetensors`, in one pass, whatever the recipe.

    Whose blocks they are is `settings.convention`'s matter. `blocks.json` tells each block's shares; a
    parent that gives a block nothing isn't read.

    Raises SettingsError for weights that can't be meant and ModelError for parents that don't fit.
    """
    with ExitStack() as open_files:
        job = open_job(settings, inputs, open_files)
        plan = job.planned(settings)
        for note in job.notes(plan):
            bench.progress.say(note)
        threads, outputs = threads_of(bench), plan.outputs(plan.combinations)
        if plan.evaluation is not None:
            with bench.progress.task("measure", total=len(plan.evaluation.calls), unit="tensor") as tick:
                plan.evaluation.measure(threads, tick)
        metadata = _metadata(plan, job, out)
        with bench.progress.task("merge", total=len(outputs), unit="tensor") as tick:
            notes = Notes(settings.broken == "keep", tick)
            write_stream(out / FILE, outputs, metadata, threads, notes)
    write_json(out / "blocks.json", _blocks(plan.recipe))
    if notes.broken:
        write_json(out / "broken.json", notes.broken)


def _metadata(plan: Plan, job: Job, out: Path) -> dict[str, str]:
    """What stays true of the primary, the recipe, and the titles of the parents that give anything."""
    recipe, parents, inputs = plan.recipe, job.parents, job.inputs
    kept = parents[recipe.primary].metadata
    names = (ARCHITECTURE_KEY, *(f"modelspec.{name}" for name in STILL_TRUE))
    told = {name: kept[name] for name in names if name in kept}
    if (architecture := result(plan, job.architecture)) != job.architecture:
        told = retold(told, architecture)
    titles = [parents[name].metadata.get("modelspec.title") or name for name in plan.givers]
    merge = {
        "convention": recipe.convention,
        "primary": recipe.primary,
        "shares": recipe.by_model(),
        "vae": inputs.vae is not None,
        "loras": sorted(inputs.loras),
    }
    return {
        **told,
        "modelspec.merged_from": ", ".join(titles),
        "aid.merge": json.dumps(merge, sort_keys=True),
        METADATA_KEY: under_construction(out).embedded(),
    }


def _blocks(recipe: Recipe) -> dict[str, Any]:
    """Block -> shares."""
    return {block: {"shares": recipe.shares(block)} for block in recipe.blocks}
