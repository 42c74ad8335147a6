"""A step's two passes recorded on a GPU: always the same bits, and but for rounding those that they give one
kernel after another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from aid.core.dataset import Dataset
from aid.core.workbench import Workbench
from aid.sd.model.checkpoint import load_checkpoint
from aid.sd.model.device import torch_device
from aid.train.optimiser.group import weights_of
from aid.train.run import lighten, style_training
from aid.train.settings import FinetuneSettings
from aid.train.step.passes import Passes
from aid.train.step.plan import plan_styles
from aid.train.tables import CaptionSettings
from aid.train.training import Training

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"checkpointing": False},
    "mixed": {"precision": "bf16", "checkpointing": False},
    "recomputed, in parts": {"precision": "bf16", "part_size": 1},
    "the text encoder stops": {"text_stop": 3, "checkpointing": False},
    "frozen text": {"text_rate": 0.0, "checkpointing": False},
    "captions with weights": {"caption": CaptionSettings(weighted=True), "checkpointing": False},
    "rounded": {"optimiser": "adamw_bf16", "precision": "bf16"},
    "lion": {"optimiser": "lion", "checkpointing": False},
}


def trained(
    checkpoint: Path, dataset: Path, recorded: bool, words: dict[str, Any]
) -> tuple[Training, list[tuple[float, float]]]:
    """Six steps of two sizes, with their losses and norms; what was recorded is forgotten in between."""
    common: dict[str, Any] = {
        "batch_size": 2,
        "regularisation_share": 0.5,
        "unet_rate": 1e-3,
        "text_rate": 1e-3,
    }
    settings = FinetuneSettings(steps=6, **common | words)
    model = load_checkpoint(checkpoint, torch_device(Workbench(device="cuda")))
    if settings.optimiser == "adamw_bf16":
        lighten(model)
    plan = plan_styles(Dataset(dataset), settings, model.architecture.vae_scale)
    training = style_training(model, weights_of(model), settings, plan.steps)
    training.passes.recorded &= recorded
    told = []
    for index in range(plan.steps):
        step = plan.step(index)
        told.append(training.gradients(next(step.parts(1)) if index % 3 == 1 else step))
        training.update(index)
        if index == 3:
            with training.whole():
                assert not training.passes.recordings
    return training, told


@pytest.mark.parametrize("words", KINDS.values(), ids=KINDS)
def test_recorded_passes(lively_checkpoint: Path, dataset: Path, words: dict[str, Any]) -> None:
    (ours, told), (again, repeated), (bare, expected) = (
        trained(lively_checkpoint, dataset, recorded, words) for recorded in (True, True, False)
    )
    assert told == repeated and ours.passes.recordings
    first, second, peer = ours.tensors(), again.tensors(), bare.tensors()
    assert all(torch.equal(first[name], second[name]) for name in first)
    near = 0.05 if "precision" in words else 1e-3
    torch.testing.assert_close(torch.tensor(told), torch.tensor(expected), rtol=near, atol=0)
    if words == KINDS["plain"]:
        moments = [name for name in first if name.endswith("exp_avg")]
        assert moments and all(
            (first[name] - peer[name]).norm() <= 0.01 * peer[name].norm() for name in moments
        )


def test_what_cannot_be_recorded_is_done_all_the_same(
    lively_checkpoint: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, expected = trained(lively_checkpoint, dataset, False, KINDS["plain"])

    def fail(*_: object) -> None:
        raise torch.cuda.OutOfMemoryError("too little memory")

    monkeypatch.setattr(Passes, "_record", fail)
    with pytest.warns(UserWarning, match="too little memory"):
        training, told = trained(lively_checkpoint, dataset, True, KINDS["plain"])
    assert told == expected and not training.passes.recorded
