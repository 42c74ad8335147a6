"""A step's two passes recorded on a GPU give the bits that they give one kernel after another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from aid.core.dataset import Dataset
from aid.sd.model.checkpoint import load_checkpoint
from aid.train.optimiser.group import weights_of
from aid.train.run import style_training
from aid.train.settings import FinetuneSettings
from aid.train.step.plan import plan_styles
from aid.train.training import Training

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def trained(checkpoint: Path, dataset: Path, recorded: bool, **words: Any) -> tuple[Training, list[Any]]:
    """Six steps' losses and norms, and what they came to."""
    settings = FinetuneSettings(steps=6, batch_size=2, unet_rate=1e-3, text_rate=1e-3, **words)
    model = load_checkpoint(checkpoint, torch.device("cuda"))
    plan = plan_styles(Dataset(dataset), settings, model.architecture.vae_scale)
    training = style_training(model, weights_of(model), settings, plan.steps)
    assert training.passes.recorded
    training.passes.recorded = recorded
    told: list[Any] = []
    for index in range(plan.steps):
        told.append(training.gradients(plan.step(index)))
        training.update(index)
    return training, told


@pytest.mark.parametrize(
    "words",
    [
        {"checkpointing": False},
        {"precision": "bf16", "checkpointing": False},
        {"precision": "bf16", "part_size": 1},
        {"text_stop": 3, "checkpointing": False},
    ],
    ids=["plain", "mixed", "recomputed, in parts", "text stops"],
)
def test_recorded_passes_give_the_same_bits(
    lively_checkpoint: Path, dataset: Path, words: dict[str, Any]
) -> None:
    (bare, expected), (ours, told) = (
        trained(lively_checkpoint, dataset, recorded, **words) for recorded in (False, True)
    )
    assert any(ours.passes.recordings.values()) and not any(bare.passes.recordings.values())
    assert told == expected
    states: list[dict[str, Tensor]] = [bare.tensors(), ours.tensors()]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
