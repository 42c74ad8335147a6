"""Whole files merged beside sd-mecha, from PyPI, in the modes that both have, under its convention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from aid.merge.run import merge
from aid.merge.settings import MergeInputs, MergeSettings
from aid.sd.model.architecture import TINY
from aid.sd.model.checkpoint import create_checkpoint, save_checkpoint

sd_mecha = pytest.importorskip("sd_mecha")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """In fp32, every tensor different in each."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate("abc"):
        model, chance = create_checkpoint(TINY, seed), torch.Generator().manual_seed(seed)
        for module in model.modules():
            for parameter in module.parameters():
                parameter.data += 0.05 * torch.randn(parameter.shape, generator=chance)
        save_checkpoint(model, folder / f"{name}.safetensors", {}, torch.float32)
    return {path.stem: path for path in sorted(folder.iterdir())}


MODES: list[
    tuple[str, str, str, dict[str, Any], dict[str, Any]]
] = [  # our mode, its method, models, both numbers
    ("weighted_sum", "weighted_sum", "ab", {"alpha": 0.3}, {"alpha": 0.3}),
    ("add_difference", "add_difference", "abc", {"alpha": 0.7}, {"alpha": 0.7}),
    ("slerp", "slerp", "ab", {"alpha": 0.4}, {"alpha": 0.4}),
    ("tensor", "tensor_sum", "ab", {"alpha": 0.25, "beta": 0.5}, {"width": 0.25, "offset": 0.5}),
    ("tensor", "tensor_sum", "ab", {"alpha": 0.75, "beta": 0.5}, {"width": 0.75, "offset": 0.5}),
]


@pytest.mark.parametrize(("mode", "method", "names", "ours", "theirs"), MODES)
def test_whole_files_are_merged_as_mecha_does(
    mode: str,
    method: str,
    names: str,
    ours: dict[str, Any],
    theirs: dict[str, Any],
    models: dict[str, Path],
    tmp_path: Path,
) -> None:
    nodes = [sd_mecha.model(str(models[name])) for name in names]
    expected = sd_mecha.merge(
        getattr(sd_mecha, method)(*nodes, **theirs),
        merge_device="cpu",
        merge_dtype=torch.float64,
        output_dtype=torch.float32,
        threads=1,
    )
    chain = [{"mode": mode, "models": list(names), **ours}]
    settings = MergeSettings.model_validate({"chain": chain, "convention": "mecha"})
    out = merge(settings, MergeInputs(models=models), tmp_path / "out")
    result = load_file(out / "model.safetensors")
    assert len(result) == 1131
    for key, tensor in result.items():
        if key.endswith("position_ids"):  # it makes floats of them
            continue
        if mode == "tensor" and len(tensor) % 4:  # the rows' bounds are no whole numbers: it rounds, we cut
            assert len(tensor) in (3, 77)
            continue
        torch.testing.assert_close(tensor, expected[key].reshape(tensor.shape), rtol=1e-5, atol=1e-6)
