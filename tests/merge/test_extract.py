"""A LoRA out of the difference of two checkpoints, and back into the one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from aid.core.blocks import SD1_BLOCKS
from aid.core.lineage import lineage_of
from aid.core.workbench import Workbench
from aid.errors import FileError, ModelError
from aid.merge.decomposition import nearest
from aid.merge.extract import extract
from aid.merge.run import merge
from aid.merge.settings import ExtractInputs, ExtractSettings, MergeInputs, MergeSettings
from aid.sd.adapter.file import load_adapter
from aid.sd.adapter.target import kohya_targets, skeleton, targets_of
from aid.sd.adapter.use import match
from aid.sd.file.tensorfile import read_header
from aid.sd.model.architecture import METADATA_KEY, TINY
from aid.sd.model.checkpoint import load_checkpoint

QUERY = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
CONV = "model.diffusion_model.middle_block.0.in_layers.2.weight"


def keys(convolutions: bool) -> set[str]:
    return {
        target.place("weight", "sd1").key for target in kohya_targets(skeleton(TINY), convolutions).values()
    }


@pytest.fixture(scope="module")
def pair(lively_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model in fp32, and one in which every layer that a LoRA can change, and no other, is changed."""
    folder = tmp_path_factory.mktemp("pair")
    metadata = read_header(lively_checkpoint).metadata
    tensors = {
        key: tensor.float() if tensor.is_floating_point() else tensor
        for key, tensor in load_file(lively_checkpoint).items()
    }
    save_file(tensors, folder / "origin.safetensors", metadata)
    chance = torch.Generator().manual_seed(5)
    for key in sorted(keys(convolutions=True)):
        tensors[key] += 0.05 * torch.randn(tensors[key].shape, generator=chance)
    save_file(tensors, folder / "tuned.safetensors", metadata)
    return folder / "tuned.safetensors", folder / "origin.safetensors"


def extracted(pair: tuple[Path, Path], out: Path, **settings: object) -> Path:
    inputs = ExtractInputs(tuned=pair[0], origin=pair[1])
    return extract(ExtractSettings.model_validate({"precision": "fp32", **settings}), inputs, out)


def baked(origin: Path, lora: Path, out: Path) -> dict[str, torch.Tensor]:
    inputs = MergeInputs(models={"base": origin}, loras={"own": lora})
    return load_file(merge(MergeSettings(), inputs, out) / "model.safetensors")


def test_all_of_the_rank_gives_the_tuned_model_back(pair: tuple[Path, Path], tmp_path: Path) -> None:
    lora = extracted(pair, tmp_path / "lora", rank=1280, conv_rank=1280)
    result = baked(pair[1], lora / "extracted.safetensors", tmp_path / "merged")
    tuned = load_file(pair[0])
    assert max(float((result[key] - tuned[key]).abs().max()) for key in tuned) < 2e-6
    assert set(json.loads((lora / "kept.json").read_text()).values()) == {1.0}


def test_what_is_missing_is_what_the_rank_cannot_hold(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """The squared error is the sum of the squared singular values left out, told by numpy's own SVD."""
    lora = extracted(pair, tmp_path / "lora", rank=3, conv_rank=2)
    result = baked(pair[1], lora / "extracted.safetensors", tmp_path / "merged")
    tuned, origin = load_file(pair[0]), load_file(pair[1])
    for key, rank in ((QUERY, 3), (CONV, 2)):
        difference = (tuned[key].double() - origin[key].double()).flatten(1).numpy()
        values = np.linalg.svd(difference, compute_uv=False)
        error = float(((result[key].double() - tuned[key].double()) ** 2).sum())
        assert error == pytest.approx(float((values[rank:] ** 2).sum()), rel=1e-4)
    kept = json.loads((lora / "kept.json").read_text())
    assert set(kept) == set(SD1_BLOCKS) - {"IN00"}
    assert all(0 < share < 1 for share in kept.values())


def test_only_linear_layers_unless_a_convolution_rank_is_given(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    lora = extracted(pair, tmp_path / "lora", rank=1280, text_encoder=False)
    result = baked(pair[1], lora / "extracted.safetensors", tmp_path / "merged")
    origin = load_file(pair[1])
    changed = {key for key in origin if not torch.equal(result[key], origin[key])}
    assert changed == {key for key in keys(convolutions=False) if key.startswith("model.diffusion_model.")}


def test_it_has_kohyas_names_and_its_lineage(pair: tuple[Path, Path], tmp_path: Path) -> None:
    lora = extracted(pair, tmp_path / "lora", rank=4, name="own", precision="fp16") / "own.safetensors"
    adapter = load_adapter(lora)
    assert match(adapter, targets_of(load_checkpoint(pair[1])), "SD1").unmatched == ()
    tensors = load_file(lora)
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    shapes = [list(tensors[f"{name}.{one}.weight"].shape) for one in ("lora_down", "lora_up")]
    assert shapes == [[4, 8], [8, 4]]
    assert tensors[f"{name}.alpha"] == 4 and tensors[f"{name}.alpha"].dtype == torch.float16
    assert adapter.metadata["ss_network_dim"] == "4" and adapter.metadata["ss_base_model_version"] == "sd_v1"
    assert set(lineage_of(lora).node.inputs) == {"tuned", "origin"}


def test_the_same_bytes_for_any_number_of_threads(pair: tuple[Path, Path], tmp_path: Path) -> None:
    inputs, settings = ExtractInputs(tuned=pair[0], origin=pair[1]), ExtractSettings(rank=4, conv_rank=2)
    made = [extract(settings, inputs, tmp_path / str(n), Workbench(threads=n)) for n in (1, 2)]
    one, other = (folder / "extracted.safetensors" for folder in made)
    assert one.read_bytes() == other.read_bytes()


def test_models_that_cannot_be_compared(pair: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="the same in every layer"):
        extracted((pair[1], pair[1]), tmp_path / "lora")
    other = TINY.model_copy(update={"prediction": "v"})
    metadata = {METADATA_KEY: other.model_dump_json(), "modelspec.prediction_type": "v"}
    save_file(load_file(pair[1]), tmp_path / "other.safetensors", metadata)
    with pytest.raises(ModelError, match="two architectures"):
        extracted((tmp_path / "other.safetensors", pair[1]), tmp_path / "lora")
    assert not (tmp_path / "lora").exists()


@pytest.mark.parametrize("shape", [(6, 40), (40, 6), (9, 9)])
def test_the_nearest_product_of_a_rank(shape: tuple[int, int]) -> None:
    """Also of a matrix of lower rank than is asked for."""
    chance = torch.Generator().manual_seed(1)
    thin = torch.randn(shape[0], 2, generator=chance) @ torch.randn(2, shape[1], generator=chance)
    found = nearest(thin, 4)
    assert torch.allclose(found.up @ found.down, thin, atol=1e-5) and found.up.isfinite().all()
    assert found.kept == pytest.approx(found.total)
    full = torch.randn(*shape, generator=chance)
    left, values, right = np.linalg.svd(full.double().numpy(), full_matrices=False)
    expected = torch.from_numpy((left[:, :3] * values[:3]) @ right[:3]).float()
    assert torch.allclose(nearest(full, 3).up @ nearest(full, 3).down, expected, atol=1e-5)


def test_an_artifact_s_adapter_is_baked(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """As its file is; a folder with none or two of them is refused."""
    origin, tuned = pair
    lora = extract(
        ExtractSettings(name="x", rank=2), ExtractInputs(tuned=tuned, origin=origin), tmp_path / "lora"
    )
    results = []
    for number, path in enumerate((lora, lora / "x.safetensors")):
        inputs = MergeInputs(models={"base": origin}, loras={"f": path})
        out = merge(MergeSettings(), inputs, tmp_path / f"out{number}")
        results.append(load_file(out / "model.safetensors"))
    one, other = results
    assert all(torch.equal(one[key], other[key]) for key in other)
    assert not torch.equal(one[QUERY], load_file(origin)[QUERY])
    several, none = tmp_path / "several", tmp_path / "none"
    several.mkdir(), none.mkdir()
    for name in ("y", "z"):
        shutil.copy(lora / "x.safetensors", several / f"{name}.safetensors")
    shutil.copy(origin, none / "model.safetensors")
    for folder, holds in ((several, "y.safetensors, z.safetensors"), (none, "no adapter")):
        inputs = MergeInputs(models={"base": origin}, loras={"f": folder})
        with pytest.raises(
            FileError, match=f"{folder.name} holds {holds}; expected a file, or a folder with one"
        ):
            merge(MergeSettings(), inputs, tmp_path / "bad")
