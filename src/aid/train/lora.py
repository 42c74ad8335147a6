"""The verb `train lora`: Dataset and Checkpoint in, Adapter out, as kohya's scripts save it.

Source of names and of what is trained: kohya-ss/sd-scripts networks/lora.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aid.core.artifact import under_construction, verb
from aid.core.dataset import Dataset
from aid.core.lineage import METADATA_KEY
from aid.core.workbench import Workbench
from aid.sd.adapter.file import save_adapter
from aid.sd.adapter.target import Target, Targets, kohya_targets, targets_of
from aid.sd.file.precision import PRECISIONS
from aid.sd.file.state import STATES
from aid.sd.model.architecture import Family
from aid.sd.model.blocks import block_of
from aid.sd.model.checkpoint import StableDiffusion, load_checkpoint
from aid.sd.model.device import torch_device
from aid.train.kohya import base_words, lora_metadata
from aid.train.loop import kept_for_states, train
from aid.train.optimiser.group import Trained, part_rates
from aid.train.run import style_training
from aid.train.settings import LoraInputs, LoraSettings
from aid.train.step.plan import plan_styles
from aid.train.team import join
from aid.train.weight_types import frozen_types


@verb("train lora", resumable=True, together=True, precious=STATES)
def lora(settings: LoraSettings, inputs: LoraInputs, out: Path, bench: Workbench) -> None:
    """Freeze the model, train a pair of narrow matrices beside each layer, and save them alone."""
    model = load_checkpoint(inputs.checkpoint, torch_device(bench), frozen_types(settings))
    plan = plan_styles(Dataset(inputs.dataset), settings, model.architecture.vae_scale)
    pairs = put_on(model, settings)
    trained = trained_by(pairs, model.architecture.family)
    team = join(replace(bench, sharded=False))  # what is trained is small
    training = style_training(model, trained, settings, plan.steps, team)
    title = f"{settings.name}: {len(pairs)} layers, {plan.pictures} pictures, {plan.steps} steps"

    base = cache(partial(base_words, model))  # hashes the whole file

    def save(_: StableDiffusion, folder: Path, ending: str, done: int) -> None:
        name = f"{settings.name}{ending}"
        metadata = {**lora_metadata(model, plan, settings, name, done), **base()}
        metadata[METADATA_KEY] = under_construction(out).embedded()
        tensors = kohya_tensors(pairs)
        save_adapter(folder / f"{name}.safetensors", tensors, metadata, PRECISIONS[settings.output])

    with kept_for_states(out, team):
        train(training, plan, save, out, bench, "train lora", title, judge=inputs.judge)


class Pair:
    """Two matrices beside one layer, whose output gets `scale` * up(down(input)) added: nothing at first,
    for `up` starts at 0 (Hu et al. 2021)."""

    def __init__(self, target: Target, rank: int, alpha: float, generator: torch.Generator) -> None:
        self.target, self.alpha, self.scale = target, alpha, alpha / rank
        weight = target.weight
        narrow = [1] * (weight.dim() - 2)
        bound = 1 / math.sqrt(weight[0].numel())  # of kaiming_uniform with a = √5, as kohya's begin
        down = torch.empty(rank, *weight.shape[1:]).uniform_(-bound, bound, generator=generator)
        self.down = down.to(weight.device).requires_grad_()
        self.up = torch.zeros(weight.shape[0], rank, *narrow, device=weight.device).requires_grad_()
        target.module.register_forward_hook(self._add)

    def _add(self, module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = inputs[0]
        if isinstance(module, torch.nn.Linear):
            change = torch.nn.functional.linear(torch.nn.functional.linear(x, self.down), self.up)
        else:
            conv = torch.nn.functional.conv2d
            change = conv(conv(x, self.down, None, module.stride, module.padding, module.dilation), self.up)
        return output + self.scale * change


Pairs = Mapping[str, Pair]  # by kohya's names


def put_on(model: StableDiffusion, settings: LoraSettings) -> Pairs:
    """A pair on each layer that is to be trained."""
    generator = torch.Generator().manual_seed(settings.seed)
    pairs = {}
    for name, target in sorted(chosen(model, settings).items()):
        wide = target.weight.dim() == 4 and target.shape[2:] != (1, 1)
        rank, alpha = (settings.conv_rank, settings.conv_alpha) if wide else (settings.rank, settings.alpha)
        pairs[name] = Pair(target, rank, alpha, generator)
    return pairs


def chosen(model: StableDiffusion, settings: LoraSettings) -> Targets:
    """The layers of the parts whose rate is above 0."""
    targets = kohya_targets(targets_of(model), convolutions=settings.conv_rank > 0)
    rates = part_rates(settings)
    return {name: target for name, target in targets.items() if rates[target.part][0] > 0}


def trained_by(pairs: Pairs, family: Family) -> Iterator[Trained]:
    for pair in pairs.values():
        block = block_of(pair.target.place("weight", family).key, family)
        for parameter in (pair.down, pair.up):
            yield Trained(pair.target.part, block, parameter)


def kohya_tensors(pairs: Pairs) -> dict[str, Tensor]:
    tensors = {}
    for name, pair in pairs.items():
        tensors[f"{name}.lora_down.weight"] = pair.down
        tensors[f"{name}.lora_up.weight"] = pair.up
        tensors[f"{name}.alpha"] = torch.tensor(pair.alpha)
    return tensors
