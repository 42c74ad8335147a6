"""A step's two passes recorded on a GPU: always the same bits, and but for rounding those that they give one
kernel after another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from aid.core.dataset import Dataset
from aid.sd.model.checkpoint import load_checkpoint
from aid.train.optimiser.group import weights_of
from aid.train.run import style_training
from aid.train.settings import FinetuneSettings
from aid.train.step.plan import plan_styles
from aid.train.training import Training

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"checkpointing": False},
    "mixed": {"precision": "bf16", "checkpointing": False},
    "recomputed, in parts": {"precision": "bf16", "part_size": 1},
    "the text encoder stops": {"text_stop": 3, "checkpointing": False},
    "frozen text": {"text_rate": 0.0, "checkpointing": False},
}


def trained(
    checkpoint: Path, dataset: Path, recorded: bool, words: dict[str, Any]
) -> tuple[Training, list[tuple[float, float]]]:
    """Six steps, with their losses and norms."""
    common: dict[str, Any] = {
        "batch_size": 2,
        "regularisation_share": 0.5,
        "unet_rate": 1e-3,
        "text_rate": 1e-3,
    }
    settings = FinetuneSettings(steps=6, **common | words)
    model = load_checkpoint(checkpoint, torch.device("cuda"))
    plan = plan_styles(Dataset(dataset), settings, model.architecture.vae_scale)
    training = style_training(model, weights_of(model), settings, plan.steps)
    training.passes.recorded &= recorded
    told = []
    for index in range(plan.steps):
        told.append(training.gradients(plan.step(index)))
        training.update(index)
    assert bool(training.passes.recordings) is recorded
    return training, told


@pytest.mark.parametrize("words", KINDS.values(), ids=KINDS)
def test_recorded_passes(lively_checkpoint: Path, dataset: Path, words: dict[str, Any]) -> None:
    (ours, told), (again, repeated), (_, bare) = (
        trained(lively_checkpoint, dataset, recorded, words) for recorded in (True, True, False)
    )
    assert told == repeated
    first, second = ours.tensors(), again.tensors()
    assert all(torch.equal(first[name], second[name]) for name in first)
    near = 0.05 if "precision" in words else 1e-3
    assert torch.tensor(told) == pytest.approx(torch.tensor(bare), rel=near)
