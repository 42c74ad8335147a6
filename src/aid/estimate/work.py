"""What each verb takes: sizes, FLOPs, bytes. A few formulas, and nothing is run.

Those of merging and of training have files of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from aid.core.blocks import BLOCKS, block_range
from aid.core.gallery import SHOTS_FILE
from aid.core.shot import Shot
from aid.dataset.finding.find import find
from aid.dataset.settings import PrepareInputs, PrepareSettings
from aid.errors import AidError
from aid.estimate.merging import distance_work, extract_work, merge_work
from aid.estimate.scene import DISK_RATE, Pictures, Scene, Work, many
from aid.estimate.training import embedding_work, finetune_work, lora_work
from aid.evaluate.settings import EvaluateInputs, EvaluateSettings, JudgeInputs, JudgeSettings
from aid.generate.grid.layout import plan_grid
from aid.generate.grid.settings import GridInputs, GridSettings
from aid.generate.settings import DrawingInputs, DrawingSettings, GenerateInputs, GenerateSettings
from aid.release.settings import ReleaseInputs, ReleaseSettings
from aid.sd.file.precision import drawing_type
from aid.sd.model.blocks import extra_blocks
from aid.sd.model.cost import DECODED, DRAWN, ENCODED
from aid.search.settings import SearchInputs, SearchSettings, SheetInputs, SheetSettings

DECODED_AT_ONCE = 1 << 20  # pixels
CROP_SECONDS = 0.7e-6  # a pixel: decode, resize, write lossless WebP
LOOK_SECONDS = 0.15e-6  # a pixel: read it, measure its texture
WEBP_BYTES, PNG_BYTES, LATENT_BYTES = 1.6, 1.8, 0.25  # a pixel
JUDGE_PASS, JUDGE_WIDTH = 2.84e7, 16  # FLOPs a picture at the judge's default width


def _prepare(settings: PrepareSettings, inputs: PrepareInputs, scene: Scene) -> Work:
    new = [_found(path, scene) for path in inputs.pictures.values()]
    replay = [_found(path, scene) for path in inputs.regularisation.values()]
    count, pixels = sum(found.count for found in new + replay), settings.resolution_px**2
    replayed, held = sum(found.count for found in replay), round(count * settings.held_fraction)
    styles = frozenset[str]().union(*(found.styles for found in new + replay))
    note = next((found.note for found in new + replay if found.note), "")
    made = Pictures(count, styles, round(replayed * (1 - settings.held_fraction)), held, pixels, note)
    cost, sides = scene.cost(inputs.vae) if inputs.vae else None, 1 + settings.mirrored
    areas = sum(edge**2 for edge in {settings.resolution_px, *settings.more_resolutions_px}) / pixels
    shape = "buckets of at most" if settings.buckets else "squares of"
    return Work(
        f"{many(count, 'picture')} to {shape} {settings.resolution_px}x{settings.resolution_px} px"
        + (", and their latents" if cost else ""),
        made,
        flops=count * areas * sides * cost.encode_flops(pixels) if cost else 0.0,
        seconds=count * areas * pixels * CROP_SECONDS,
        memory=4 * (cost.vae + cost.vae_numbers(ENCODED, pixels) * settings.latent_batch) if cost else 0.0,
        disk=count * areas * pixels * (WEBP_BYTES + (LATENT_BYTES * sides if cost else 0.0)),
        scratch=count * areas * pixels * LATENT_BYTES * sides if cost else 0.0,
        notes=(note,),
    )


def _found(path: Path, scene: Scene) -> Pictures:
    """Pictures that an earlier step draws, or those that lie in a folder."""
    if scene.maker(path):
        return replace(scene.pictures(path), styles=frozenset())
    try:
        candidates = find(PrepareInputs(pictures={"counted": path}), PrepareSettings()).candidates
    except AidError as error:
        return Pictures(note=str(error)) if path.exists() else Pictures()
    styles = frozenset(candidate.style for candidate in candidates if candidate.style)
    return Pictures(len(candidates), styles, note="")


def _generate(settings: GenerateSettings, inputs: GenerateInputs, scene: Scene) -> Work:
    cost = scene.cost(inputs.checkpoint)
    known = scene.pictures(inputs.dataset) if inputs.dataset else Pictures(note="")
    styles = settings.plan.styles or sorted(known.styles) if settings.plan else ()
    count = settings.plan.shots_per_style * len(styles) if settings.plan else settings.count
    if inputs.shots:
        count = scene.pictures(inputs.shots).count if scene.maker(inputs.shots) else _lines(inputs.shots)
    edge = cost.architecture.native_edge_px
    width, height = settings.width or edge, settings.height or edge
    pixels, guided = width * height, 2 if settings.cfg_scale != 1 else 1
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    each = drawing_type(settings.precision, device).itemsize
    at_once = min(count, settings.batch_size)
    decoded = cost.vae_numbers(DECODED, max(pixels, min(at_once * pixels, DECODED_AT_ONCE)))
    drawn = cost.unet_numbers(DRAWN, pixels // 64) * guided * at_once
    return Work(
        f"{many(count, 'picture')} of {width}x{height} px in {settings.steps} steps"
        + (f", {settings.plan.shots_per_style} of each of {len(styles)} styles" if settings.plan else ""),
        Pictures(count, frozenset(styles), pixels=pixels, note=""),
        flops=count * (settings.steps * guided * cost.unet_flops(pixels // 64) + cost.decode_flops(pixels)),
        number_bytes=2 if settings.precision == "auto" else each,
        memory=each * (cost.parameters + max(drawn, decoded)),
        disk=count * pixels * PNG_BYTES,
        notes=(cost.note, known.note),
    )


def _grid(settings: GridSettings, inputs: GridInputs, scene: Scene) -> Work:
    """What as many shots take; where the axes depend on what is not made yet, one picture is assumed."""
    try:
        plan = plan_grid(settings, inputs)
    except AidError as error:
        note = f"the cells can't be counted yet: {error}"
        return replace(_alone(settings, inputs, scene), notes=(note,))
    parts = [_alone(settings, inputs, scene, cell.shot) for cell in plan.pictures]
    sizes = f"{many(len(plan.cells), 'cell')}, {many(len(plan.pictures), 'picture')}"
    return replace(
        parts[0],
        sizes=sizes,
        made=Pictures(len(parts), frozenset(cell.shot.style for cell in plan.pictures), note=""),
        flops=sum(part.flops for part in parts),
        memory=max(part.memory for part in parts),
        disk=2 * sum(part.disk for part in parts),
    )


def _alone(settings: GridSettings, inputs: GridInputs, scene: Scene, shot: Shot | None = None) -> Work:
    """One cell's picture as `generate` draws it; without a shot, what the settings say."""
    shared = {name: getattr(settings, name) for name in DrawingSettings.model_fields}
    told = {name: getattr(shot, name) for name in ("steps", "cfg_scale", "width", "height") if shot}
    given = {name: getattr(inputs, name) for name in DrawingInputs.model_fields}
    return _generate(GenerateSettings(**{**shared, **told}), GenerateInputs(**given), scene)


def _lines(shots: Path) -> int:
    """Shots in a list, a line each; 1 where it can't be read."""
    file = shots / SHOTS_FILE if shots.is_dir() else shots
    try:
        return max(1, sum(bool(line.strip()) for line in file.read_bytes().splitlines()))
    except OSError:
        return 1


def _judge(settings: JudgeSettings, inputs: JudgeInputs, scene: Scene) -> Work:
    sets = [scene.pictures(path) for path in (inputs.dataset, *inputs.extra.values())]
    count = sum(pictures.count for pictures in sets)
    seen = settings.epochs * count or max(settings.pictures_seen, 4 * count)
    return Work(
        f"{many(count, 'picture')}, {seen:,} seen",
        flops=seen * 3 * JUDGE_PASS * (settings.width / JUDGE_WIDTH) ** 2,
        seconds=sum(map(_look, sets)),
        memory=count * 64 * 64 * 3,
        disk=count * 4 * (8 * settings.width + 256),
        notes=(sets[0].note,),
    )


def _evaluate(settings: EvaluateSettings, inputs: EvaluateInputs, scene: Scene) -> Work:
    galleries = [scene.pictures(path) for path in (inputs.gallery, inputs.baseline) if path]
    count = sum(pictures.count for pictures in galleries)
    return Work(many(count, "picture"), seconds=sum(map(_look, galleries)), disk=count * 1000.0)


def _look(pictures: Pictures) -> float:
    return pictures.count * (0.001 + pictures.pixels * LOOK_SECONDS)


def _sheet(settings: SheetSettings, inputs: SheetInputs, scene: Scene) -> Work:
    """A picture a block and weight."""
    given = GenerateInputs(checkpoint=next(iter(inputs.models.values())))
    family = scene.cost(given.checkpoint).architecture.family
    extra = extra_blocks(family, settings.merge.convention)
    blocks = [block for name in settings.blocks for block in block_range(name, family, extra)]
    pictures = len(blocks or (*BLOCKS[family], *extra)) * len(settings.weights)
    drawing = GenerateSettings(**settings.drawing.model_dump(), count=pictures)
    return replace(_generate(drawing, given, scene), made=None)


def _search(settings: SearchSettings, inputs: SearchInputs, scene: Scene) -> Work:
    """The plan's pictures of each trial, and what is held out of the result and each parent."""
    given = GenerateInputs(checkpoint=next(iter(inputs.models.values())), dataset=inputs.dataset)
    once = _generate(settings.drawing, given, scene)
    plan = settings.drawing.plan
    ratio = settings.held_per_style / (plan.shots_per_style if plan else 1)
    times = settings.trials + 1 + (len(inputs.models) + 1) * ratio
    return replace(
        once, sizes=f"{settings.trials} trials, each {once.sizes}", made=None, flops=once.flops * times
    )


def _release(settings: ReleaseSettings, inputs: ReleaseInputs, scene: Scene) -> Work:
    cost = scene.cost(inputs.checkpoint)
    size = cost.parameters * (4 if settings.precision == "fp32" else 2)
    sizes = f"{cost.parameters / 1e6:,.1f} M parameters in {settings.precision}, cards and samples"
    return Work(sizes, seconds=3 * size / DISK_RATE, memory=2 * size, disk=size, notes=(cost.note,))


WORK: dict[str, Callable[[Any, Any, Scene], Work]] = {
    "prepare": _prepare,
    "train finetune": finetune_work,
    "train lora": lora_work,
    "train embedding": embedding_work,
    "merge": merge_work,
    "merge extract": extract_work,
    "merge distance": distance_work,
    "merge sheet": _sheet,
    "merge search": _search,
    "generate": _generate,
    "grid": _grid,
    "judge": _judge,
    "evaluate": _evaluate,
    "release": _release,
}
