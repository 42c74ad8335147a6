"""A step's two passes recorded: always the same bits, and those of the bare ones, on a GPU but for rounding.
Elsewhere a stand-in plays them, which computes anew where a graph would."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from aid.core.dataset import Dataset
from aid.core.workbench import Workbench
from aid.sd.model.checkpoint import load_checkpoint
from aid.sd.model.device import torch_device
from aid.train.embedding import Word, plan_word, word_training
from aid.train.lora import put_on, trained_by
from aid.train.optimiser.group import weights_of
from aid.train.run import style_training
from aid.train.settings import EmbeddingSettings, FinetuneSettings, LoraSettings
from aid.train.step.passes import Graph, Passes
from aid.train.step.plan import Plan, plan_styles
from aid.train.tables import CaptionSettings
from aid.train.team import ALONE
from aid.train.training import Training
from aid.train.weight_types import frozen_types, trained_types

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
COMMON = {"batch_size": 2, "regularisation_share": 0.5, "unet_rate": 1e-3, "text_rate": 1e-3}
BF16 = {"precision": "bf16"}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"checkpointing": False},
    "mixed": {**BF16, "checkpointing": False},
    "recomputed, in parts": {**BF16, "part_size": 1},
    "several draws": {"noise_draws": 3},
    "the text encoder stops": {"text_stop": 3, "checkpointing": False},
    "the U-Net stops": {"unet_stop": 3, "checkpointing": False},
    "frozen text": {"text_rate": 0.0, "checkpointing": False},
    "captions with weights": {"caption": CaptionSettings(weighted=True), "checkpointing": False},
    "rounded": {"optimiser": "adamw_bf16", **BF16},
    "lion": {"optimiser": "lion", "checkpointing": False},
    "a LoRA": {"conv_rank": 2, "checkpointing": False},
    "a LoRA whose text encoder stops": {"conv_rank": 2, "text_stop": 3, "checkpointing": False},
    "an embedding": {"noise_draws": 2},
}


PLAYED = [kind for kind in KINDS if kind not in ("mixed", "captions with weights", "rounded", "lion")]


class Played:
    """Stands in for a graph, which reads and writes gradients where they were when it was recorded."""

    def __init__(self, work: Callable[[], Tensor], learning: Sequence[Tensor]) -> None:
        self.work, self.result = work, torch.zeros(())
        self.places = {one: one.grad.data_ptr() for one in learning if one.grad is not None}

    def pool(self) -> None:
        """It has no memory of its own."""

    def replay(self) -> None:
        self.result.copy_(self.work())
        assert all(one.grad is not None and one.grad.data_ptr() == at for one, at in self.places.items())


def begun(kind: str, checkpoint: Path, dataset: Path, device: str) -> tuple[Training, Plan]:
    data, words = Dataset(dataset), KINDS[kind]
    load = partial(load_checkpoint, checkpoint, torch_device(Workbench(device=device)))
    if "embedding" in kind:
        told = EmbeddingSettings(steps=6, batch_size=2, **words)
        model = load(frozen_types(told))
        plan = plan_word(data, told, model.architecture.vae_scale)
        return word_training(Word(model, told), plan.steps, ALONE), plan
    if "LoRA" in kind:
        small = LoraSettings(steps=6, **COMMON | words)
        model = load(frozen_types(small))
        plan = plan_styles(data, small, model.architecture.vae_scale)
        pairs = trained_by(put_on(model, small), model.architecture.family)
        return style_training(model, pairs, small, plan.steps), plan
    settings = FinetuneSettings(steps=6, **COMMON | words)
    model = load(trained_types(settings))
    plan = plan_styles(data, settings, model.architecture.vae_scale)
    return style_training(model, weights_of(model), settings, plan.steps), plan


def trained(
    kind: str, checkpoint: Path, dataset: Path, recorded: bool, device: str = "cuda"
) -> tuple[Training, list[tuple[float, float]]]:
    """Six steps of two sizes, with their losses and norms; what was recorded is forgotten in between."""
    training, plan = begun(kind, checkpoint, dataset, device)
    training.passes.recorded = recorded
    if device == "cpu":
        training.passes.capture = partial(played, training)
    told = []
    for index in range(plan.steps):
        step = plan.step(index)
        told.append(training.gradients(next(step.parts(1)) if index % 3 == 1 else step))
        training.update(index)
        if index == 3:
            with training.whole():
                assert not training.passes.recordings
    return training, told


def played(
    training: Training, work: Callable[[], Tensor], _: torch.device, pool: object
) -> tuple[Graph, Tensor]:
    made = Played(work, training.parameters)
    return made, made.result


@on_gpu
@pytest.mark.parametrize("kind", KINDS)
def test_recorded_passes(lively_checkpoint: Path, dataset: Path, kind: str) -> None:
    (ours, told), (again, repeated), (bare, expected) = (
        trained(kind, lively_checkpoint, dataset, recorded) for recorded in (True, True, False)
    )
    assert told == repeated and ours.passes.recordings
    first, second, peer = ours.tensors(), again.tensors(), bare.tensors()
    assert all(torch.equal(first[name], second[name]) for name in first)
    near = 0.05 if "precision" in KINDS[kind] else 1e-3
    torch.testing.assert_close(torch.tensor(told), torch.tensor(expected), rtol=near, atol=0)
    if kind == "plain":
        moments = [name for name in first if name.endswith("exp_avg")]
        assert moments and all(
            (first[name] - peer[name]).norm() <= 0.01 * peer[name].norm() for name in moments
        )


@on_gpu
def test_what_cannot_be_recorded_is_done_all_the_same(
    lively_checkpoint: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, expected = trained("plain", lively_checkpoint, dataset, False)

    def fail(*_: object) -> None:
        raise torch.cuda.OutOfMemoryError("too little memory")

    monkeypatch.setattr(Passes, "_record", fail)
    with pytest.warns(UserWarning, match="too little memory"):
        training, told = trained("plain", lively_checkpoint, dataset, True)
    assert told == expected and not training.passes.recorded


@pytest.mark.parametrize("kind", PLAYED)
def test_passes_that_are_played_give_the_bits_of_bare_ones(
    lively_checkpoint: Path, dataset: Path, kind: str
) -> None:
    bare, expected = trained(kind, lively_checkpoint, dataset, False, "cpu")
    ours, told = trained(kind, lively_checkpoint, dataset, True, "cpu")
    assert told == expected and ours.passes.recordings
    peer = bare.tensors()
    assert all(torch.equal(one, peer[name]) for name, one in ours.tensors().items())
