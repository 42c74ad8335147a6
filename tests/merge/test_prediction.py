"""What a merge of models predicts that don't all predict the same."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from test_notes import told
from tests.sd.model.test_detection import real_shapes

from aid.merge.job import open_job
from aid.merge.settings import MergeInputs, MergeSettings
from aid.sd.file.tensorfile import Stored, header_bytes, read_header
from aid.sd.model.architecture import SD2, TINY_SD2, TINY_SDXL
from aid.sd.model.checkpoint import create_checkpoint, load_checkpoint, save_checkpoint
from aid.sd.model.metadata import PREDICTION_KEY

NOISY = {"prediction": "v", "zero_terminal_snr": True}
MARKERS = {"v_pred", "ztsnr"}
UNET = {"IN": 1, "M00": 1, "OUT": 1}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("kinds")
    kinds = {"noise": TINY_SDXL, "v": TINY_SDXL.model_copy(update=NOISY)}
    for seed, (name, architecture) in enumerate(kinds.items()):
        save_checkpoint(create_checkpoint(architecture, seed), folder / f"{name}.safetensors", {})
    return {name: folder / f"{name}.safetensors" for name in kinds}


def use(out: Path) -> tuple[str, bool, set[str]]:
    """As AID reads it, and the markers by which other tools do."""
    found = load_checkpoint(out).architecture
    with safe_open(out / "model.safetensors", "pt") as file:
        return found.prediction, found.zero_terminal_snr, MARKERS & set(file.keys())


def test_a_result_predicts_what_the_giver_of_its_unet_does(models: dict[str, Path], tmp_path: Path) -> None:
    said, _ = told(models, tmp_path / "v", primary="noise", weights={"v": UNET})
    assert use(tmp_path / "v") == ("v", True, MARKERS) and said == []
    metadata = read_header(tmp_path / "v" / "model.safetensors").metadata
    assert metadata["modelspec.prediction_type"] == "v"
    said, _ = told(models, tmp_path / "noise", primary="v", weights={"noise": UNET})
    assert use(tmp_path / "noise") == ("epsilon", False, set()) and said == []


@pytest.mark.parametrize("primary", ["noise", "v"])
def test_where_they_differ_the_primary_decides_and_it_is_said(
    models: dict[str, Path], tmp_path: Path, primary: str
) -> None:
    other = next(name for name in models if name != primary)
    said, _ = told(models, tmp_path / "out", primary=primary, weights={other: {"IN00": 0.5}})
    assert len(said) == 1 and "predict different things (" in said[0]
    assert "v v, zero terminal SNR" in said[0] and "noise epsilon" in said[0]
    marked = ("v", True, MARKERS) if primary == "v" else ("epsilon", False, set())
    assert use(tmp_path / "out") == marked


def test_text_encoders_have_no_say(models: dict[str, Path], tmp_path: Path) -> None:
    said, _ = told(models, tmp_path / "out", primary="noise", convention="mecha", weights={"v": {"BASE": 1}})
    assert said == [] and use(tmp_path / "out")[0] == "epsilon"


def test_an_sd2_keeps_its_own(tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    save_checkpoint(create_checkpoint(TINY_SD2, 1), path, {})
    said, _ = told({"a": path, "b": path}, tmp_path / "out", primary="a", weights={"b": {"IN": 0.5}})
    assert said == [] and use(tmp_path / "out")[0] == "v"


def test_an_sd2_counts_where_its_file_says_what_it_predicts(tmp_path: Path) -> None:
    """Files that hold nothing but their headers, as large as real ones."""
    shapes = real_shapes(SD2)
    told_by = {
        "marked": ({"v_pred": (0,)}, {}),
        "spoken": ({}, {PREDICTION_KEY: "epsilon"}),
        "silent": ({}, {}),
    }
    paths = {name: tmp_path / f"{name}.safetensors" for name in told_by}
    for name, (marker, metadata) in told_by.items():
        tensors = {
            key: Stored(torch.float16, shape, torch.Tensor) for key, shape in (shapes | marker).items()
        }
        paths[name].write_bytes(head := header_bytes(tensors, metadata))
        os.truncate(paths[name], len(head) + sum(one.size for one in tensors.values()))

    def notes(other: str) -> list[str]:
        settings = MergeSettings(primary="marked", weights={other: {"IN": 0.5}})
        inputs = MergeInputs(models={name: paths[name] for name in ("marked", other)})
        with ExitStack() as open_files:
            job = open_job(settings, inputs, open_files)
            return [note for note in job.notes(job.planned(settings)) if "predict" in note]

    assert len(notes("spoken")) == 1 and "(marked v, spoken epsilon)" in notes("spoken")[0]
    assert notes("silent") == []
