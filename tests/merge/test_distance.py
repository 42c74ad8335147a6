"""How far models are apart: numpy's norms, told as a table and as a picture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from aid.cli import main
from aid.core.blocks import SD1_BLOCKS
from aid.errors import ModelError, SettingsError
from aid.merge.distance import distance
from aid.merge.settings import DistanceInputs, DistanceSettings
from aid.sd.file.tensorfile import read_header
from aid.sd.model.blocks import block_of, is_merged

HEAD = "model.diffusion_model.out.2.weight"
FIRST_CONV = "model.diffusion_model.input_blocks.0.0.weight"


@pytest.fixture(scope="module")
def models(lively_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`near` differs from `a` in M00 alone; `far` everywhere, and is in fp32."""
    folder, metadata = tmp_path_factory.mktemp("models"), read_header(lively_checkpoint).metadata
    chance = torch.Generator().manual_seed(1)
    tensors = {"a": load_file(lively_checkpoint), "near": load_file(lively_checkpoint), "far": {}}
    for key, tensor in tensors["a"].items():
        if block_of(key) == "M00":
            tensors["near"][key] = tensor + 0.1
        floats = tensor.is_floating_point()
        tensors["far"][key] = (
            tensor.float() + torch.randn(tensor.shape, generator=chance) if floats else tensor
        )
    for name, own in tensors.items():
        save_file(own, folder / f"{name}.safetensors", metadata)
    return {name: folder / f"{name}.safetensors" for name in tensors}


def test_distances_are_numpys(models: dict[str, Path], tmp_path: Path) -> None:
    out = distance(DistanceSettings(), DistanceInputs(models=models), tmp_path / "out")
    rows = json.loads((out / "distance.json").read_text())
    assert [(row["from"], row["to"]) for row in rows] == [("a", "near"), ("a", "far"), ("near", "far")]
    tensors = {name: load_file(path) for name, path in models.items()}
    for row in rows:
        assert tuple(row["blocks"]) == SD1_BLOCKS
        for block in ("BASE", "IN04", "M00", "OUT11"):
            keys = [k for k in tensors["a"] if block_of(k) == block and is_merged(k)]
            one, other = (
                np.concatenate([tensors[row[end]][k].double().numpy().ravel() for k in keys])
                for end in ("from", "to")
            )
            expected = np.linalg.norm(other - one) / np.linalg.norm(one)
            assert row["blocks"][block] == pytest.approx(expected, rel=1e-4)
    assert [block for block, far in rows[0]["blocks"].items() if far] == ["M00"]


def test_a_table_and_a_picture(models: dict[str, Path], tmp_path: Path) -> None:
    words = [word for name in ("a", "far") for word in ("--models", f"{name}={models[name]}")]
    main(["merge", "distance", *words, "--out", str(tmp_path / "out")])
    lines = (tmp_path / "out/distance.md").read_text().splitlines()
    assert lines[0] == "| block | a - far |" and len(lines) == 2 + len(SD1_BLOCKS)
    with Image.open(tmp_path / "out/distance.png") as picture:
        colours = picture.convert("RGB").getcolors(1 << 20)
    assert colours and len(colours) > 25, "a square of its own for each block"


def test_what_has_no_distance(models: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="one model"):
        distance(DistanceSettings(), DistanceInputs(models={"a": models["a"]}), tmp_path / "one")
    broken = load_file(models["near"])
    broken["model.diffusion_model.out.2.weight"][0] = torch.inf
    save_file(broken, tmp_path / "broken.safetensors", read_header(models["near"]).metadata)
    two = {"a": models["a"], "b": tmp_path / "broken.safetensors"}
    with pytest.raises(ModelError, match=r"b \(.*out\.2\.weight holds NaN or infinity"):
        distance(DistanceSettings(), DistanceInputs(models=two), tmp_path / "broken")


def test_what_a_model_lacks_is_told(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And what it has as whole numbers; averages, which are no part of the model, are not missed."""
    tensors, metadata = load_file(models["near"]), read_header(models["near"]).metadata
    del tensors[HEAD]
    tensors[FIRST_CONV] = tensors[FIRST_CONV].to(torch.int32)
    save_file(tensors, tmp_path / "less.safetensors", metadata)
    more = load_file(models["a"]) | {"model_ema.diffusion_modeloutweight": torch.ones(3)}
    save_file(more, tmp_path / "more.safetensors", metadata)
    words = [
        "--models",
        f"a={tmp_path / 'more.safetensors'}",
        "--models",
        f"b={tmp_path / 'less.safetensors'}",
    ]
    main(["merge", "distance", *words, "--out", str(tmp_path / "out")])
    said = capsys.readouterr().err
    assert f"less.safetensors) lacks {HEAD}: compared without" in said
    assert f"less.safetensors): {FIRST_CONV} is int32: compared without" in said
    assert "ema" not in said and "a (" not in said
