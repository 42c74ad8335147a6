"""`aid convert` and `aid inspect` on what files of this family have been through elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from aid.cli import root
from aid.sd.file.tensorfile import read_header, read_tensors, write_tensors
from aid.sd.model.architecture import METADATA_KEY, Architecture
from aid.sd.model.layouts import OLD_TEXT, POSITION_IDS, PROJECTION, TEXT, UNET, average_key

Tensors = dict[str, Tensor]


def run(*words: object) -> str:
    result = CliRunner().invoke(root, [*map(str, words)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def told(path: Path) -> dict[str, str]:
    about: dict[str, str] = json.loads(run("inspect", path, "--json", "--quick"))["about"]
    return about


def without_text_model(tensors: Tensors) -> Tensors:
    return {key.replace(TEXT, OLD_TEXT): one for key, one in tensors.items()}


def with_averages(tensors: Tensors) -> Tensors:
    """The model itself is worthless here, and its averages are right."""
    averages = {average_key(key): one for key, one in tensors.items() if key.startswith(UNET)}
    spoilt = {key: one + 1 for key, one in tensors.items() if key.startswith(UNET)}
    return {**tensors, **spoilt, **averages, "model_ema.decay": torch.tensor(0.999)}


def with_torn_positions(tensors: Tensors) -> Tensors:
    return {**tensors, POSITION_IDS: tensors[POSITION_IDS] - 1e-4}


def with_a_schedule(tensors: Tensors) -> Tensors:
    return {**tensors, "betas": torch.ones(1000), "alphas_cumprod": torch.ones(1000)}


def untransposed(tensors: Tensors) -> Tensors:
    return {**tensors, PROJECTION: tensors[PROJECTION].T.contiguous()}


@pytest.mark.parametrize(
    ("family", "change", "words"),
    [
        ("sd1", without_text_model, []),
        ("sd1", with_averages, ["--ema"]),
        ("sd1", with_torn_positions, []),
        ("sd1", with_a_schedule, []),
        ("sdxl", untransposed, ["--untransposed"]),
    ],
)
def test_what_others_changed_is_put_right(
    family: str,
    change: Callable[[Tensors], Tensors],
    words: list[str],
    family_files: dict[str, Path],
    tmp_path: Path,
) -> None:
    source = family_files[family]
    odd, right = tmp_path / "odd.safetensors", tmp_path / "right.safetensors"
    write_tensors(odd, change(read_tensors(source)), read_header(source).metadata)
    assert told(odd) == told(source)
    run("convert", odd, right, *words)
    assert right.read_bytes() == source.read_bytes()


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_prediction_and_terminal_snr_survive_every_layout(
    family: str, family_files: dict[str, Path], tmp_path: Path
) -> None:
    header = read_header(family_files[family])
    architecture = Architecture.model_validate_json(header.metadata[METADATA_KEY])
    zero = architecture.model_copy(update={"zero_terminal_snr": True, "prediction": "v"})
    metadata = {**header.metadata, METADATA_KEY: zero.model_dump_json(exclude_defaults=True)}
    single, folder, back = (tmp_path / name for name in ("v.safetensors", "folder", "back.safetensors"))
    write_tensors(single, read_tensors(family_files[family]), metadata)
    run("convert", single, folder)
    run("convert", folder, back)
    for path in (single, folder, back):
        assert told(path)["prediction"] == "v, zero terminal SNR"
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler["prediction_type"] == "v_prediction" and scheduler["rescale_betas_zero_snr"] is True
    shapes = {key: one.shape for key, one in read_header(back).tensors.items() if key in ("v_pred", "ztsnr")}
    assert shapes == ({} if family == "sd2" else {"v_pred": (0,), "ztsnr": (0,)})
    assert read_header(back).metadata["modelspec.prediction_type"] == "v"
