"""What each verb takes: sizes, FLOPs, bytes. A few formulas, and nothing is run.

A training step is three passes through the U-Net, two when only an embedding is trained, and one more
when activations are recomputed. Memory is weights (4 bytes a parameter, or 2), for trained ones also
gradient, the optimiser's moments and the average, and what is kept in between.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from aid.core.blocks import BLOCKS, block_range
from aid.core.gallery import SHOTS_FILE
from aid.core.shot import Shot
from aid.dataset.finding.find import find
from aid.dataset.settings import PrepareInputs, PrepareSettings
from aid.errors import AidError
from aid.estimate.merging import distance_work, extract_work, merge_work
from aid.estimate.scene import DISK_RATE, Pictures, Scene, Work
from aid.evaluate.settings import EvaluateInputs, EvaluateSettings, JudgeInputs, JudgeSettings
from aid.generate.grid.layout import plan_grid
from aid.generate.grid.settings import GridInputs, GridSettings
from aid.generate.settings import DrawingInputs, DrawingSettings, GenerateInputs, GenerateSettings
from aid.release.settings import ReleaseInputs, ReleaseSettings
from aid.sd.adapter.target import kohya_targets, skeleton
from aid.sd.model.blocks import extra_blocks
from aid.sd.model.cost import DECODED, DRAWN, ENCODED, FROZEN, RECOMPUTED, TRAINED, Cost
from aid.search.settings import SearchInputs, SearchSettings, SheetInputs, SheetSettings
from aid.train.optimiser.in_backward import TOGETHER
from aid.train.optimiser.rounding import PIECE_NUMBERS
from aid.train.settings import (
    CommonSettings,
    EmbeddingInputs,
    EmbeddingSettings,
    FinetuneInputs,
    FinetuneSettings,
    LoraInputs,
    LoraSettings,
    TrainingSettings,
)
from aid.train.tables import ALL_STYLES, BalanceSettings, SampleSettings

MOMENT_BYTES = {
    "adamw": 8, "adamw_8bit": 2, "adamw_bf16": 4, "adafactor": 0, "adafactor_absolute": 0, "lion": 4,
    "prodigy": 16, "schedule_free": 8,
}  # fmt: skip
"""Kept by an optimiser for a trained parameter."""
AUTOCAST_BYTES = 2.5  # an activation under bf16: some stay in 32 bits
FUSED_BYTES = 1.6  # where layers are fused, on a GPU: fewer are kept, and none of those
ROUNDED_BYTES = 35  # of a number while `adamw_bf16` changes it: its parts side by side, and in float32
BETWEEN = 1.04  # of training's memory, with what lies free between tensors and is too small for others; a
# LoRA's outputs, which come and go beside the layers', leave as much again
COPY_BYTES = 2  # a trained parameter's copy under bf16
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
        f"{_many(count, 'picture')} to {shape} {settings.resolution_px}x{settings.resolution_px} px"
        + (", and their latents" if cost else ""),
        made,
        flops=count * areas * sides * cost.encode_flops(pixels) if cost else 0.0,
        seconds=count * areas * pixels * CROP_SECONDS,
        memory=4 * (cost.vae + cost.vae_numbers(ENCODED, pixels) * settings.latent_batch) if cost else 0.0,
        disk=count * areas * pixels * (WEBP_BYTES + (LATENT_BYTES * sides if cost else 0.0)),
        scratch=count * areas * pixels * LATENT_BYTES * sides if cost else 0.0,
        notes=(note,),
    )


def _number_bytes(settings: TrainingSettings) -> int:
    """Of a weight of U-Net and text encoders. The VAE's are of four, and stay out of a GPU."""
    return 2 if settings.optimiser == "adamw_bf16" else 4


def _frozen_bytes(settings: CommonSettings, cost: Cost) -> float:
    """Of a model that something is trained beside: U-Net and text encoders, whose words keep four bytes."""
    number = 2 if settings.precision == "bf16" else 4
    return number * (cost.unet + cost.text - cost.words) + 4 * cost.words


def _peak_bytes(cost: Cost, training: float, gpu: bool) -> float:
    """Of a run whose training takes so many: on a CPU the VAE stays beside that, and at first loading takes
    four bytes of every number."""
    return training if gpu else max(4 * cost.parameters, training + 4 * cost.vae)


def _standing_bytes(settings: TrainingSettings) -> int:
    """Of a trained parameter while it is trained, and in a saved state: weight, moments, average."""
    number = _number_bytes(settings)
    return number + MOMENT_BYTES[settings.optimiser] + (number if settings.ema else 0)


def _passing_bytes(
    settings: TrainingSettings, trained: float, kept: float, largest: float, gpu: bool
) -> float:
    """Most that activations, `kept` numbers a picture, and gradients take at once. The backward pass frees
    the ones as it makes the others; parts find the gradients of those before them, and passes that are
    recorded, on a GPU, all gradients. A fused backward pass has one gradient at a time, the `largest` at its
    end. When the optimiser works there are gradients, no activations unless fused, and of what it rounds a
    piece, unless a GPU's kernel does it."""
    half, number = settings.precision == "bf16", _number_bytes(settings)
    part = min(settings.part_size or settings.batch_size, settings.batch_size)
    activations = part * kept * ((FUSED_BYTES if gpu else AUTOCAST_BYTES) if half else 4)
    if half and number == 4 and not settings.checkpointing:
        activations += COPY_BYTES * trained
    gradients = number * (min(largest + TOGETHER, trained) if settings.fused_backward else trained)
    first = gradients if part < settings.batch_size or (gpu and not settings.fused_backward) else 0.0
    late = activations / (4 if settings.checkpointing else 2)
    rounded = largest if settings.fused_backward else trained
    apart = settings.optimiser == "adamw_bf16" and not gpu
    rounding = ROUNDED_BYTES * min(PIECE_NUMBERS, rounded) if apart else 0.0
    at_work = gradients + rounding + (late if settings.fused_backward else 0.0)
    return max(activations + first, late + gradients, at_work)


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


def _finetune(settings: FinetuneSettings, inputs: FinetuneInputs, scene: Scene) -> Work:
    cost = scene.cost(inputs.checkpoint)
    trained = cost.unet * (settings.unet_rate > 0) + cost.text * (settings.text_rate > 0)
    frozen = _number_bytes(settings) * (cost.unet + cost.text - trained)
    return _style(settings, inputs, scene, cost, trained, cost.parameters, frozen)


def _lora(settings: LoraSettings, inputs: LoraInputs, scene: Scene) -> Work:
    cost = scene.cost(inputs.checkpoint)
    trained = 0
    for target in kohya_targets(skeleton(cost.architecture), settings.conv_rank > 0).values():
        wide = len(target.shape) == 4 and target.shape[2:] != (1, 1)
        rank = settings.conv_rank if wide else settings.rank
        rate = settings.unet_rate if target.part == "unet" else settings.text_rate
        trained += rank * (target.shape[0] + math.prod(target.shape[1:])) * (rate > 0)
    work = _style(settings, inputs, scene, cost, trained, trained, _frozen_bytes(settings, cost))
    return replace(work, made=None, memory=BETWEEN * work.memory + 4 * trained)


def _style(
    settings: TrainingSettings,
    inputs: FinetuneInputs | LoraInputs,
    scene: Scene,
    cost: Cost,
    trained: float,
    saved: float,
    frozen: float,
) -> Work:
    """Training from captions, of which `saved` parameters go into the file, beside `frozen` bytes of what
    isn't trained."""
    pictures = scene.pictures(inputs.dataset)
    batch, half, cells = settings.batch_size, settings.precision == "bf16", pictures.pixels // 64
    replays = min(round(batch * settings.regularisation_share), batch - 1) if pictures.replayed else 0
    steps = settings.steps or max(1, round(settings.epochs * -(-pictures.trained // (batch - replays))))
    alive, passes = (RECOMPUTED, 4) if settings.checkpointing else (TRAINED, 3)
    samples = settings.samples
    width, height = samples.size(cost.architecture.native_edge_px)
    sheet = len(samples.prompts) + samples.per_style * _drawn_styles(samples, pictures)
    drawn = steps // samples.every * sheet * samples.steps * 2 if samples.every else 0
    drawn += _judged(settings, pictures, steps)
    measured = _measured(settings.balance, pictures, steps)
    kept = cost.unet_numbers(alive, cells) * settings.noise_draws + cost.text_numbers()
    disk, state = (
        _files(settings, steps) * saved * (2 if settings.output == "fp16" else 4),
        trained * _standing_bytes(settings),
    )
    unet = passes * settings.noise_draws * cost.unet_flops(cells)
    return Work(
        f"{_many(steps, 'step')} of {_many(batch, 'picture')} x {_many(settings.noise_draws, 'draw')}, "
        f"{trained / 1e6:,.1f} of {cost.parameters / 1e6:,.1f} M parameters trained",
        cost,
        flops=steps * batch * (unet + 3 * cost.text_flops() * settings.caption.windows)
        + drawn * cost.unet_flops(width * height // 64)
        + measured * cost.unet_flops(cells),
        number_bytes=2 if half else 4,
        memory=BETWEEN
        * _peak_bytes(
            cost,
            frozen + state + _passing_bytes(settings, trained, kept, cost.largest, scene.gpu),
            scene.gpu,
        ),
        disk=disk,
        scratch=state * min(steps // settings.save_every, settings.keep_states + 1)
        + (4 * trained if settings.balance.stop_at != "never" else 0),
        notes=(cost.note, pictures.note, _copied(state * settings.save_behind)),
    )


def _files(settings: TrainingSettings, steps: int) -> int:
    """Of what was learnt, in the end and on the way."""
    made = (steps - 1) // settings.keep_every if settings.keep_every else 0
    return 1 + (min(made, settings.keep_newest) if settings.keep_newest else made)


def _drawn_styles(samples: SampleSettings, pictures: Pictures) -> int:
    """Styles on a sheet."""
    return len(pictures.styles) if ALL_STYLES in samples.styles else len(samples.styles)


def _measured(balance: BalanceSettings, pictures: Pictures, steps: int) -> int:
    """Predictions that the styles' measurements make: of held-out pictures, also without their style's word,
    and of trained ones."""
    every = balance.interval(steps)
    once = (2 + balance.by_word) * balance.pictures * balance.timesteps * max(1, len(pictures.styles))
    return once * (1 + -(-steps // every)) if every else 0


def _judged(settings: TrainingSettings, pictures: Pictures, steps: int) -> int:
    """Predictions that drawing for the judge takes, with guidance."""
    balance, styles = settings.balance, max(1, len(pictures.styles))
    if not balance.by_judge:
        return 0
    times = 1 + -(-steps // balance.interval(steps))
    return times * styles * balance.pictures * settings.samples.steps * 2


def _copied(state: float) -> str:
    """Worth a word where it is much."""
    return (
        f"saved while training goes on: {state / 1e9:.1f} GB more of the CPU's memory" if state > 1e9 else ""
    )


def _embedding(settings: EmbeddingSettings, inputs: EmbeddingInputs, scene: Scene) -> Work:
    cost, pictures = scene.cost(inputs.checkpoint), scene.pictures(inputs.pictures)
    draws, cells, half = settings.noise_draws, pictures.pixels // 64, settings.precision == "bf16"
    alive, passes = (RECOMPUTED, 3) if settings.checkpointing else (FROZEN, 2)
    kept = cost.unet_numbers(alive, cells) * draws + cost.text_numbers()
    each = passes * draws * cost.unet_flops(cells) + 2 * cost.text_flops()
    return Work(
        f"{_many(settings.steps, 'step')} of {_many(settings.batch_size, 'picture')} x "
        f"{_many(draws, 'draw')}, {settings.vectors} vectors trained",
        flops=settings.steps * settings.batch_size * each,
        number_bytes=2 if half else 4,
        memory=BETWEEN
        * _peak_bytes(
            cost,
            _frozen_bytes(settings, cost) + settings.batch_size * kept * (AUTOCAST_BYTES if half else 4),
            scene.gpu,
        ),
        disk=2 * 4 * settings.vectors * cost.architecture.text_width,
        notes=(cost.note, pictures.note),
    )


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
    each, at_once = 4 if settings.precision == "fp32" else 2, min(count, settings.batch_size)
    decoded = cost.vae_numbers(DECODED, max(pixels, min(at_once * pixels, DECODED_AT_ONCE)))
    drawn = cost.unet_numbers(DRAWN, pixels // 64) * guided * at_once
    return Work(
        f"{_many(count, 'picture')} of {width}x{height} px in {settings.steps} steps"
        + (f", {settings.plan.shots_per_style} of each of {len(styles)} styles" if settings.plan else ""),
        Pictures(count, frozenset(styles), pixels=pixels, note=""),
        flops=count * (settings.steps * guided * cost.unet_flops(pixels // 64) + cost.decode_flops(pixels)),
        number_bytes=each,
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
    sizes = f"{_many(len(plan.cells), 'cell')}, {_many(len(plan.pictures), 'picture')}"
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
        f"{_many(count, 'picture')}, {seen:,} seen",
        flops=seen * 3 * JUDGE_PASS * (settings.width / JUDGE_WIDTH) ** 2,
        seconds=sum(map(_look, sets)),
        memory=count * 64 * 64 * 3,
        disk=count * 4 * (8 * settings.width + 256),
        notes=(sets[0].note,),
    )


def _evaluate(settings: EvaluateSettings, inputs: EvaluateInputs, scene: Scene) -> Work:
    galleries = [scene.pictures(path) for path in (inputs.gallery, inputs.baseline) if path]
    count = sum(pictures.count for pictures in galleries)
    return Work(_many(count, "picture"), seconds=sum(map(_look, galleries)), disk=count * 1000.0)


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


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


WORK: dict[str, Callable[[Any, Any, Scene], Work]] = {
    "prepare": _prepare,
    "train finetune": _finetune,
    "train lora": _lora,
    "train embedding": _embedding,
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
