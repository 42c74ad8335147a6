"""What trainings take.

A step is three passes through the U-Net, two when only an embedding is trained, and one more when activations
are recomputed. Memory is weights (4 bytes a parameter, or 2), for trained ones also gradient, the optimiser's
moments and the average, and what is kept in between.
"""

from __future__ import annotations

import math
from dataclasses import replace

from aid.errors import SettingsError
from aid.estimate.scene import Pictures, Scene, Work, many
from aid.sd.adapter.target import kohya_targets, skeleton
from aid.sd.model.cost import FROZEN, RECOMPUTED, TRAINED, Cost
from aid.train.optimiser.group import part_rates
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
from aid.train.training import require_heard

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


def finetune_work(settings: FinetuneSettings, inputs: FinetuneInputs, scene: Scene) -> Work:
    cost = scene.cost(inputs.checkpoint)
    rates = part_rates(settings)
    trained = sum(count for part, count in cost.learners.items() if rates[part][0] > 0)
    frozen = _number_bytes(settings) * (cost.unet + cost.text - trained)
    return _style(settings, inputs, scene, cost, trained, cost.parameters, frozen)


def lora_work(settings: LoraSettings, inputs: LoraInputs, scene: Scene) -> Work:
    cost = scene.cost(inputs.checkpoint)
    trained, rates = 0, part_rates(settings)
    for target in kohya_targets(skeleton(cost.architecture), settings.conv_rank > 0).values():
        wide = len(target.shape) == 4 and target.shape[2:] != (1, 1)
        rank = settings.conv_rank if wide else settings.rank
        numbers = rank * (target.shape[0] + math.prod(target.shape[1:]))
        trained += numbers * (rates[target.part][0] > 0)
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
        f"{many(steps, 'step')} of {many(batch, 'picture')} x {many(settings.noise_draws, 'draw')}, "
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
        notes=(cost.note, pictures.note, _refused(settings, cost), _copied(state * settings.save_behind)),
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


def embedding_work(settings: EmbeddingSettings, inputs: EmbeddingInputs, scene: Scene) -> Work:
    cost, pictures = scene.cost(inputs.checkpoint), scene.pictures(inputs.pictures)
    draws, cells, half = settings.noise_draws, pictures.pixels // 64, settings.precision == "bf16"
    alive, passes = (RECOMPUTED, 3) if settings.checkpointing else (FROZEN, 2)
    kept = cost.unet_numbers(alive, cells) * draws + cost.text_numbers()
    each = passes * draws * cost.unet_flops(cells) + 2 * cost.text_flops()
    return Work(
        f"{many(settings.steps, 'step')} of {many(settings.batch_size, 'picture')} x "
        f"{many(draws, 'draw')}, {settings.vectors} vectors trained",
        flops=settings.steps * settings.batch_size * each,
        number_bytes=2 if half else 4,
        memory=BETWEEN
        * _peak_bytes(
            cost,
            _frozen_bytes(settings, cost) + settings.batch_size * kept * (AUTOCAST_BYTES if half else 4),
            scene.gpu,
        ),
        disk=2 * 4 * settings.vectors * cost.architecture.text_width,
        notes=(cost.note, pictures.note, _refused(settings, cost)),
    )


def _refused(settings: CommonSettings, cost: Cost) -> str:
    """Why a training would end before its first step, as far as its model is known."""
    try:
        require_heard(settings, cost.architecture)
    except SettingsError as error:
        return f"refused: {error}" if not cost.note else ""
    return ""


def _number_bytes(settings: TrainingSettings) -> int:
    """Of a weight of U-Net and text encoders. The VAE's are of four, and stay out of a GPU."""
    return 2 if settings.optimiser == "adamw_bf16" else 4


def _frozen_bytes(settings: CommonSettings, cost: Cost) -> float:
    """Of a model that something is trained beside: U-Net and text encoders, whose words keep four bytes."""
    number = 2 if settings.precision == "bf16" else 4
    return number * (cost.unet + cost.text - cost.words) + 4 * cost.words


def _peak_bytes(cost: Cost, training: float, gpu: bool) -> float:
    """Of a run whose training takes so many: on a CPU the VAE stays beside that."""
    return training if gpu else training + 4 * cost.vae


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
