"""Regularisation pictures of other shapes than those that are learnt: none goes unused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image
from test_finetune import QUICK

from aid.core.dataset import Dataset
from aid.core.workbench import Workbench
from aid.dataset.run import prepare
from aid.dataset.settings import PrepareInputs, PrepareSettings
from aid.errors import SettingsError
from aid.sd.file.tensorfile import read_tensors
from aid.train.run import finetune
from aid.train.settings import FinetuneInputs
from aid.train.step.plan import plan_styles
from aid.train.team import Team

SIZES = {"tall": (64, 128), "wide": (128, 64), "square": (64, 64)}  # buckets of their own


def lay_out(folder: Path, shapes: list[str], pictures: Path, style: str) -> Path:
    """The pictures of a style, in turn in the shapes named."""
    (folder / style).mkdir(parents=True)
    for index, path in enumerate(sorted((pictures / style).glob("*.png"))):
        with Image.open(path) as picture:
            picture.resize(SIZES[shapes[index % len(shapes)]]).save(folder / style / path.name)
    return folder


def prepared(learnt: list[str], replayed: list[str], pictures: Path, checkpoint: Path, folder: Path) -> Path:
    settings = PrepareSettings(resolution_px=128, held_fraction=0.0, held_minimum=0)
    inputs = PrepareInputs(
        pictures={"new": lay_out(folder / "new", learnt, pictures, "alpha")},
        regularisation={"old": lay_out(folder / "old", replayed, pictures, "beta")},
        vae=checkpoint,
    )
    return prepare(settings, inputs, folder / "dataset")


@pytest.mark.parametrize(
    ("learnt", "replayed"),
    [
        (["tall"], ["square"]),
        (["tall"], ["tall", "square"]),
        (["tall", "square"], ["square"]),
        (["tall", "wide"], ["square", "wide"]),
    ],
)
def test_all_are_used_and_every_step_has_its_share(
    learnt: list[str], replayed: list[str], pictures: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    dataset = Dataset(prepared(learnt, replayed, pictures, tiny_checkpoint, tmp_path))
    plan = plan_styles(dataset, QUICK, 0.18215)
    used = Counter[str]()
    for step in map(plan.step, range(64)):
        used += Counter(record.source for record in step.whole if record.regularisation)
        assert sum(record.regularisation for record in step.whole) == 1
        for part in step.parts(0):
            height, width = part.noised.latents.shape[-2:]
            assert {(one.width, one.height) for one in part.records} == {(width * 8, height * 8)}
    assert len(used) == 8, "every one of them"


def test_they_count_alike_however_a_step_is_cut(
    pictures: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    folder = prepared(["tall"], ["square"], pictures, tiny_checkpoint, tmp_path)
    inputs, bench = FinetuneInputs(checkpoint=tiny_checkpoint, dataset=folder), Workbench(threads=1)

    def trained(**changes: object) -> dict[str, torch.Tensor]:
        settings = QUICK.model_copy(update={"steps": 2, "optimiser_options": {"eps": 1e-3}, "output": "fp32"})
        out = finetune(settings.model_copy(update=changes), inputs, tmp_path / str(changes), bench)
        return read_tensors(out / "model.safetensors")

    def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
        return max((one[key] - other[key]).abs().max().item() for key in one)

    whole = trained()
    assert apart(whole, trained(part_size=1)) < 1e-5 < 1e-4 < apart(whole, trained(regularisation_weight=0.0))


def test_processes_share_them_too(pictures: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    dataset = Dataset(prepared(["tall"], ["square"], pictures, tiny_checkpoint, tmp_path))
    step = plan_styles(dataset, QUICK, 0.18215).step(0)
    shares = [Team(rank, 2).share(step) for rank in (0, 1)]
    counted = [
        record.source
        for share in shares
        for part in share.parts(0)
        for record, weight in zip(part.records, part.weights, strict=True)
        if weight
    ]
    assert sorted(counted) == sorted(record.source for record in step.whole)
    assert [len(part.records) for part in shares[0].parts(0)] == [len(p.records) for p in shares[1].parts(0)]


def test_a_fused_backward_pass_has_one_size(pictures: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = prepared(["tall"], ["square"], pictures, tiny_checkpoint, tmp_path)
    settings = QUICK.model_copy(update={"fused_backward": True, "gradient_norm": 0.0})
    with pytest.raises(SettingsError, match="a step is of one size"):
        finetune(
            settings,
            FinetuneInputs(checkpoint=tiny_checkpoint, dataset=folder),
            tmp_path / "out",
            Workbench(),
        )
