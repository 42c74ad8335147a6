"""Merging into a loaded model: the bits of a merge that was saved, and only what changed computed anew."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from aid.errors import FileError, ModelError
from aid.merge.blend import Blend
from aid.merge.extract import extract
from aid.merge.run import merge
from aid.merge.settings import ExtractInputs, ExtractSettings, MergeInputs, MergeSettings
from aid.sd.conversion import Conversion, convert
from aid.sd.file.tensorfile import read_header
from aid.sd.model.architecture import TINY, TINY_SD2, TINY_SDXL, Architecture
from aid.sd.model.blocks import block_of
from aid.sd.model.checkpoint import StableDiffusion, create_checkpoint, load_checkpoint, save_checkpoint
from aid.sd.model.layouts import VAE
from aid.sd.model.weights import open_weights

PLAIN = MergeSettings(primary="a", weights={"b": {"IN": 0.3, "M00": 1.0}, "c": {"OUT": 0.25, "BASE": 0.1}})
ONE_BLOCK = PLAIN.model_copy(update={"weights": {**PLAIN.weights, "b": {"IN": 0.3, "M00": 0.5}}})


def chain(mode: str, alpha: Any, **more: Any) -> MergeSettings:
    step = {"mode": mode, "models": ("a", "b", "c")[: 2 if mode == "cosine_a" else 3], "alpha": alpha, **more}
    return MergeSettings.model_validate({"chain": [step]})


def parents_of(architecture: Architecture, folder: Path) -> dict[str, Path]:
    paths = {}
    for seed, name in enumerate("abc"):
        model = create_checkpoint(architecture, seed)
        chance = torch.Generator().manual_seed(seed)
        for module in model.parts().values():
            for parameter in module.parameters():
                parameter.data += 0.05 * torch.randn(parameter.shape, generator=chance)
        paths[name] = folder / f"{name}.safetensors"
        save_checkpoint(model, paths[name], {})
    return paths


@pytest.fixture(scope="module")
def parents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return parents_of(TINY, tmp_path_factory.mktemp("parents"))


def weights_of(model: StableDiffusion) -> dict[str, Tensor]:
    state = {f"{p}.{k}": v for p, part in model.parts().items() for k, v in part.state_dict().items()}
    return state | model.unheld


def require_same(model: StableDiffusion, settings: MergeSettings, inputs: MergeInputs, out: Path) -> None:
    saved = weights_of(load_checkpoint(merge(settings, inputs, out)))
    own = weights_of(model)
    assert own.keys() == saved.keys()
    assert [key for key in own if not torch.equal(own[key], saved[key])] == []


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (PLAIN, ONE_BLOCK),
        (PLAIN, PLAIN.model_copy(update={"precision": "bf16"})),
        (chain("ties", 0.5, beta=0.3), chain("ties", {"IN": 0.5, "M00": 1.0}, beta=0.3)),
        (chain("cosine_a", 0.1), chain("cosine_a", 0.1, freeze=("OUT",))),
        (chain("add_difference", 0.7), PLAIN),
    ],
    ids=["weights", "precision", "ties", "cosine", "another recipe"],
)
def test_a_blend_is_the_merge(
    parents: dict[str, Path], first: MergeSettings, then: MergeSettings, tmp_path: Path
) -> None:
    inputs = MergeInputs(models=parents)
    with Blend(first, inputs) as blend:
        require_same(blend.model, first, inputs, tmp_path / "first")
        assert blend.become(then) > 0
        require_same(blend.model, then, inputs, tmp_path / "then")
        assert blend.become(then) == 0


def test_a_folder_without_vae_takes_the_widths_of_the_one_given(
    parents: dict[str, Path], tmp_path: Path
) -> None:
    convert(parents["a"], tmp_path / "folder", Conversion())
    shutil.rmtree(tmp_path / "folder" / "vae")
    merged = []
    for model in (parents["a"], tmp_path / "folder"):
        inputs = MergeInputs(models={"a": model, "b": parents["b"]}, vae=parents["c"])
        settings = MergeSettings(primary="a", weights={"b": {"IN": 0.4}})
        merged.append(merge(settings, inputs, tmp_path / f"merged{len(merged)}") / "model.safetensors")
    own, expected = map(load_file, merged)
    assert own.keys() == expected.keys() and all(torch.equal(own[key], expected[key]) for key in own)
    assert open_weights(merged[1]).architecture == open_weights(merged[0]).architecture


@pytest.mark.parametrize("architecture", [TINY_SD2, TINY_SDXL], ids=lambda one: one.family)
def test_of_every_family(architecture: Architecture, tmp_path: Path) -> None:
    """OpenCLIP's attention lies in thirds, SDXL's projection across."""
    inputs = MergeInputs(models=parents_of(architecture, tmp_path))
    settings = MergeSettings(primary="a", weights={"b": {"BASE": 0.4, "IN": 0.4}})
    with Blend(MergeSettings(primary="a"), inputs) as blend:
        blend.become(settings)
        require_same(blend.model, settings, inputs, tmp_path / "merged")


def test_a_primary_without_vae_takes_the_one_given(parents: dict[str, Path], tmp_path: Path) -> None:
    whole, bare = load_file(parents["a"]), tmp_path / "bare.safetensors"
    kept = {key: one for key, one in whole.items() if not key.startswith(VAE)}
    save_file(kept, bare, read_header(parents["a"]).metadata)
    with pytest.raises(ModelError, match="has no VAE"):
        merge(MergeSettings(primary="a"), MergeInputs(models={"a": bare}), tmp_path / "none")
    for others in ({}, {"b": parents["b"]}):
        settings = MergeSettings(primary="a", weights={name: {"IN": 0.4, "BASE": 0.2} for name in others})
        inputs = MergeInputs(models={"a": bare, **others}, vae=parents["c"])
        made = merge(settings, inputs, tmp_path / f"bare{len(others)}")
        like = inputs.model_copy(update={"models": {"a": parents["a"], **others}})
        expected = load_file(merge(settings, like, tmp_path / f"whole{len(others)}") / "model.safetensors")
        own = load_file(made / "model.safetensors")
        assert own.keys() == expected.keys() and all(torch.equal(own[key], expected[key]) for key in own)
        with Blend(settings, inputs) as blend:
            require_same(blend.model, settings, inputs, tmp_path / f"bare{len(others)}")
    own = {key: one for key, one in whole.items() if key.startswith(VAE)}
    narrow = {key: one[:1].clone() if "decoder" in key else one for key, one in own.items()}
    save_file(narrow, tmp_path / "narrow.safetensors")
    with pytest.raises(ModelError, match=r"narrow\.safetensors: first_stage_model\..* is \[1"):
        merge(settings, inputs.model_copy(update={"vae": tmp_path / "narrow.safetensors"}), tmp_path / "none")


def test_only_what_changed_is_computed(parents: dict[str, Path]) -> None:
    """In whatever layout the model's convolutions have been put since."""
    with Blend(PLAIN, MergeInputs(models=parents)) as blend:
        blend.model.unet.to(memory_format=torch.channels_last)
        before = {key: tensor.clone() for key, tensor in weights_of(blend.model).items()}
        count = blend.become(ONE_BLOCK)
        keys = [key for key in read_header(parents["a"]).tensors if block_of(key) == "M00"]
        assert count == len(keys)
        after = weights_of(blend.model)
        assert {key.split(".")[1] for key in after if not torch.equal(after[key], before[key])} == {
            "mid_block"
        }
        blend.become(PLAIN)
        after = weights_of(blend.model)
        assert all(torch.equal(after[key], before[key]) for key in after)


def test_another_primary_brings_its_precision(parents: dict[str, Path], tmp_path: Path) -> None:
    """`b` alone, by its weight over an fp16 primary and as the primary in fp32, isn't the same model."""
    fine, chance = load_checkpoint(parents["b"]), torch.Generator().manual_seed(9)
    for module in fine.parts().values():
        for parameter in module.parameters():
            parameter.data += 1e-5 * torch.randn(parameter.shape, generator=chance)
    save_checkpoint(fine, tmp_path / "fine.safetensors", {}, torch.float32)
    inputs = MergeInputs(models={"a": parents["a"], "b": tmp_path / "fine.safetensors"})
    everything = dict.fromkeys(("BASE", "IN", "M00", "OUT"), 1.0)
    with Blend(MergeSettings(primary="a", weights={"b": everything}), inputs) as blend:
        alone = MergeSettings(primary="b", weights={"a": {"BASE": 0.0}})
        assert blend.become(alone) > 0
        require_same(blend.model, alone, inputs, tmp_path / "alone")


def test_adapters_by_block_and_a_vae_that_stays(parents: dict[str, Path], tmp_path: Path) -> None:
    told = ExtractInputs(tuned=parents["b"], origin=parents["c"])
    lora = extract(ExtractSettings(rank=2), told, tmp_path / "lora") / "extracted.safetensors"
    inputs = MergeInputs(models=parents, loras={"own": lora}, vae=parents["c"])
    less = PLAIN.model_copy(update={"lora_weights": {"own": {"IN": -0.5}}})
    with Blend(PLAIN, inputs) as blend:
        require_same(blend.model, PLAIN, inputs, tmp_path / "one")
        blend.become(less)
        require_same(blend.model, less, inputs, tmp_path / "other")


def test_a_parent_whose_numbers_are_not_aligned(parents: dict[str, Path], tmp_path: Path) -> None:
    raw = parents["b"].read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    (tmp_path / "b.safetensors").write_bytes((end - 7).to_bytes(8, "little") + raw[8:end] + b" " + raw[end:])
    with Blend(PLAIN, MergeInputs(models={**parents, "b": tmp_path / "b.safetensors"})) as blend:
        require_same(blend.model, PLAIN, MergeInputs(models=parents), tmp_path / "out")


def test_a_parent_that_turns_out_broken_leaves_a_way_back(parents: dict[str, Path], tmp_path: Path) -> None:
    """It is read only when it is to give something."""
    broken = load_file(parents["b"])
    broken["model.diffusion_model.middle_block.2.out_layers.3.weight"][0] = torch.nan
    save_file(broken, tmp_path / "b.safetensors", read_header(parents["b"]).metadata)
    inputs = MergeInputs(models={**parents, "b": tmp_path / "b.safetensors"})
    sound = PLAIN.model_copy(update={"weights": {"c": PLAIN.weights["c"]}})
    with Blend(sound, inputs) as blend:
        with pytest.raises(ModelError, match=r"b \(.*middle_block\.2.* holds NaN"):
            blend.become(PLAIN)
        blend.become(sound)
        require_same(blend.model, sound, inputs, tmp_path / "out")


def test_a_parent_that_is_cut_short_meanwhile(parents: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "b.safetensors").write_bytes(parents["b"].read_bytes())
    inputs = MergeInputs(models={**parents, "b": tmp_path / "b.safetensors"})
    with Blend(MergeSettings(primary="a"), inputs) as blend:
        os.truncate(tmp_path / "b.safetensors", 1 << 17)
        with pytest.raises(FileError, match=r"b\.safetensors ends inside"):
            blend.become(PLAIN)
