"""The verb `train finetune`: Dataset and Checkpoint in, Checkpoint out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from aid.core.artifact import under_construction, verb
from aid.core.dataset import Dataset
from aid.core.lineage import METADATA_KEY
from aid.core.rate import rate_factor
from aid.core.workbench import Workbench
from aid.errors import SettingsError
from aid.sd.file.precision import PRECISIONS
from aid.sd.file.state import STATES
from aid.sd.model.architecture import Architecture
from aid.sd.model.checkpoint import StableDiffusion, load_checkpoint, save_checkpoint
from aid.sd.model.device import torch_device
from aid.sd.prompt.text import Conditioning
from aid.train.loop import kept_for_states, train
from aid.train.optimiser.group import Group, Trained, grouped, part_rates, weights_of
from aid.train.optimiser.optimiser import create_optimiser
from aid.train.settings import FinetuneInputs, FinetuneSettings, TrainingSettings
from aid.train.step.caption import come_again
from aid.train.step.condition import Remembered, Written, encode_captions, encode_weighted, write_captions
from aid.train.step.plan import plan_styles
from aid.train.team import ALONE, Team, join
from aid.train.training import Training, make_ready
from aid.train.weight_types import trained_types


@verb("train finetune", resumable=True, together=True, precious=STATES)
def finetune(settings: FinetuneSettings, inputs: FinetuneInputs, out: Path, bench: Workbench) -> None:
    """Train U-Net and text encoder together on every style at once; save their averaged weights."""
    model = load_checkpoint(inputs.checkpoint, torch_device(bench), trained_types(settings))
    model.architecture = aim(model.architecture, settings)
    plan = plan_styles(Dataset(inputs.dataset), settings, model.architecture.vae_scale)
    team = join(bench)
    training = style_training(model, weights_of(model), settings, plan.steps, team)
    title = f"{plan.pictures} pictures, {plan.steps} steps"

    def save(averaged: StableDiffusion, folder: Path, ending: str, _: int) -> None:
        metadata = {METADATA_KEY: under_construction(out).embedded()}
        file = folder / f"model{ending}.safetensors"
        save_checkpoint(averaged, file, metadata, PRECISIONS[settings.output])

    with kept_for_states(out, team):
        train(training, plan, save, out, bench, "train finetune", title, judge=inputs.judge)


def style_training(
    model: StableDiffusion,
    trained: Iterable[Trained],
    settings: TrainingSettings,
    steps: int,
    team: Team = ALONE,
) -> Training:
    """The training of `trained`, which are in the model or act on it, from captions."""
    require_whole(settings, team)
    make_ready(model, settings, team)
    groups = grouped(trained, settings)
    require_learning(groups, steps)
    weighted, words = settings.caption.weighted, (settings.caption.windows, settings.clip_skip)

    def encode(captions: Sequence[str]) -> Conditioning:
        return (encode_weighted if weighted else encode_captions)(model, captions, *words)

    text_learns = any(rate > 0 for part, (rate, _) in part_rates(settings).items() if part != "unet")
    say: Callable[[Sequence[str]], Conditioning | Written] = encode
    if not text_learns and come_again(settings.caption):
        say = Remembered(encode)
    elif not weighted:
        say = lambda captions: write_captions(model, captions, *words)  # noqa: E731
    return Training(
        model,
        groups,
        create_optimiser(groups, settings),
        settings,
        encode=lambda captions, _: say(captions),
        factor=partial(rate_factor, steps=steps, warmup=settings.warmup, schedule=settings.schedule),
        ema=settings.ema,
        fused_backward=settings.fused_backward,
        team=team,
    )


def require_learning(groups: Sequence[Group], steps: int) -> None:
    """Raises SettingsError for a run at whose end nothing learns any more."""
    if not any(group.at_work(steps - 1) for group in groups):
        last = max(group.stop for group in groups)
        raise SettingsError(
            f"all that is trained stands still after step {last} of {steps}",
            f"{last} steps, or a later unet_stop or text_stop",
        )


def require_whole(settings: TrainingSettings, team: Team) -> None:
    """Raises SettingsError for settings that one process can follow and several can't."""
    if team.size > 1 and settings.fused_backward:
        raise SettingsError("`fused_backward` changes weights before gradients are summed", "one process")
    if team.sharded and settings.optimiser not in ("adamw", "lion"):
        raise SettingsError(f"{settings.optimiser} needs whole weights", "adamw or lion, where sharded")


def aim(architecture: Architecture, settings: FinetuneSettings) -> Architecture:
    """What the model is to be after training, and what it is trained as."""
    prediction = architecture.prediction if settings.prediction == "model" else settings.prediction
    zero = architecture.zero_terminal_snr or settings.zero_terminal_snr
    return architecture.model_copy(update={"prediction": prediction, "zero_terminal_snr": zero})
