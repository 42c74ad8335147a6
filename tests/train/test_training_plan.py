"""Masks and mirrored pictures in a step, and steps made ahead."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from test_finetune import QUICK

from aid.core.dataset import Dataset, mask_file
from aid.errors import SettingsError
from aid.train.step.plan import Ahead, plan_styles

SCALE = 0.18215


@pytest.fixture
def masked(dataset: Path, tmp_path: Path) -> Dataset:
    """Of every picture the left half counts."""
    folder = tmp_path / "dataset"
    shutil.copytree(dataset, folder)
    masks = np.zeros((len(Dataset(folder).latents(64, 64)), 8, 8), np.uint8)
    masks[:, :, :4] = 255
    np.save(folder / mask_file(64, 64), masks)
    return Dataset(folder)


@pytest.mark.parametrize(("share", "half"), [(0.0, slice(0, 4)), (1.0, slice(4, 8))])
def test_masks_follow_their_pictures(masked: Dataset, share: float, half: slice) -> None:
    settings = QUICK.model_copy(update={"masked": True, "mirrored_share": share})
    mask = plan_styles(masked, settings, SCALE).step(0).noised.mask
    assert mask is not None and mask.shape == (6, 1, 8, 8), "three pictures, two draws each"
    assert mask[..., half].min() == 1 and mask.mean() == 0.5
    assert plan_styles(masked, QUICK, SCALE).step(0).noised.mask is None


def test_mirrored_pictures_have_latents_of_their_own(dataset: Path) -> None:
    shares = (0.0, 0.5, 1.0)
    settings = [QUICK.model_copy(update={"mirrored_share": share}) for share in shares]
    never, some, always = (plan_styles(Dataset(dataset), one, SCALE) for one in settings)
    turned = 0
    for index in range(12):
        latents = [plan.step(index).noised.latents for plan in (never, some, always)]
        for plain, drawn, mirrored in zip(*latents, strict=True):
            assert not torch.equal(plain, mirrored)
            assert torch.equal(drawn, plain) or torch.equal(drawn, mirrored)
            turned += torch.equal(drawn, mirrored)
    assert 15 < turned < 57  # of 72, in pairs


def test_mirroring_needs_mirrored_latents(dataset: Path, tmp_path: Path) -> None:
    shutil.copytree(dataset, tmp_path / "dataset")
    (tmp_path / "dataset" / "latents-64x64-mirrored.npy").unlink()
    settings = QUICK.model_copy(update={"mirrored_share": 0.5})
    with pytest.raises(SettingsError, match="no mirrored latents"):
        plan_styles(Dataset(tmp_path / "dataset"), settings, SCALE).step(0)


def test_steps_made_ahead_are_those_made_alone(dataset: Path) -> None:
    plan = plan_styles(Dataset(dataset), QUICK, SCALE)
    with Ahead(plan) as ahead:
        for index in (0, 1, 2, 5):
            made, alone = ahead.step(index), plan.step(index)
            assert torch.equal(made.noised.noise, alone.noised.noise) and made.captions == alone.captions
