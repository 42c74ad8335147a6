"""Every key and block is SD1's; diffusers' own converter agrees; other files are refused by name."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint

from aid.core.blocks import SD1_BLOCKS
from aid.errors import FileError, ModelError
from aid.sd.architecture import SD1, TINY
from aid.sd.blocks import block_of
from aid.sd.checkpoint import create_checkpoint, load_checkpoint, read_vae, save_checkpoint
from aid.sd.layouts import POSITION_IDS, TEXT, UNET, VAE
from aid.sd.tensorfile import read_header, read_tensors, write_tensors


@pytest.fixture(scope="module")
def tensors(tiny_checkpoint: Path) -> dict[str, torch.Tensor]:
    return read_tensors(tiny_checkpoint)


def test_the_single_file_has_sd1s_keys(tensors: dict[str, torch.Tensor]) -> None:
    counts = Counter(next(p for p in (UNET, TEXT, VAE) if key.startswith(p)) for key in tensors)
    assert counts == {UNET: 686, TEXT: 197, VAE: 248}
    assert tensors[POSITION_IDS].dtype == torch.int64
    assert set(map(block_of, tensors)) == set(SD1_BLOCKS)


def test_diffusers_converter_finds_the_same_weights(tiny_checkpoint: Path) -> None:
    model = load_checkpoint(tiny_checkpoint)
    source = read_tensors(tiny_checkpoint)
    config = {**model.unet.config, "class_embed_type": None, "addition_embed_type": None}
    unet = convert_ldm_unet_checkpoint(dict(source), config)
    vae = convert_ldm_vae_checkpoint(dict(source), dict(model.vae.config))
    for ours, theirs in ((model.unet.state_dict(), unet), (model.vae.state_dict(), vae)):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key].float().reshape(ours[key].shape)) for key in ours)


def test_round_trip_is_bitwise(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model = load_checkpoint(tiny_checkpoint)
    save_checkpoint(model, tmp_path / "again.safetensors", {})
    assert (tmp_path / "again.safetensors").read_bytes() == tiny_checkpoint.read_bytes()


def test_naifu_names_are_understood(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    old = {key.replace("transformer.text_model.", "transformer."): tensor for key, tensor in tensors.items()}
    write_tensors(tmp_path / "naifu.safetensors", old, {"aid.architecture": TINY.model_dump_json()})
    model = load_checkpoint(tmp_path / "naifu.safetensors")
    key = "final_layer_norm.weight"
    assert torch.equal(model.text_encoder.state_dict()[key], tensors[f"{TEXT}{key}"].float())


def test_a_ckpt_without_metadata_must_be_full_size(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save({"state_dict": tensors}, tmp_path / "old.ckpt")
    with pytest.raises(ModelError, match="8 channels wide"):
        load_checkpoint(tmp_path / "old.ckpt")


def test_vae_swap_with_and_without_prefix(tiny_checkpoint: Path, tmp_path: Path) -> None:
    other = create_checkpoint(TINY, seed=2)
    save_checkpoint(other, tmp_path / "other.safetensors", {})
    bare = {key.removeprefix(VAE): t for key, t in read_vae(tmp_path / "other.safetensors").items()}
    write_tensors(tmp_path / "vae.safetensors", {**bare, "loss.logvar": torch.zeros(1)}, {})
    for vae in ("other.safetensors", "vae.safetensors"):
        swapped = load_checkpoint(tiny_checkpoint, vae=tmp_path / vae)
        weight = swapped.vae.state_dict()["decoder.conv_in.weight"]
        assert torch.equal(weight, other.vae.state_dict()["decoder.conv_in.weight"].half().float())


def test_other_architectures_are_named(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    sdxl = {"conditioner.embedders.1.model.ln_final.weight": torch.ones(1)}
    write_tensors(tmp_path / "xl.safetensors", sdxl, {})
    with pytest.raises(ModelError, match="is SDXL"):
        load_checkpoint(tmp_path / "xl.safetensors")
    inner = {key: tensor for key, tensor in tensors.items() if "middle_block.1.norm.weight" not in key}
    write_tensors(tmp_path / "hole.safetensors", inner, {"aid.architecture": TINY.model_dump_json()})
    with pytest.raises(ModelError, match=r"lacks .*middle_block\.1\.norm\.weight"):
        load_checkpoint(tmp_path / "hole.safetensors")
    with pytest.raises(FileError, match="does not exist"):
        load_checkpoint(tmp_path)


def test_truncated_checkpoint_is_named(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.safetensors").write_bytes(tiny_checkpoint.read_bytes()[:-1000])
    with pytest.raises(FileError, match=r"cut\.safetensors is not a whole safetensors file"):
        load_checkpoint(tmp_path / "cut.safetensors")
    assert read_header(tiny_checkpoint).tensors


def test_the_real_size_has_sd1s_parameter_count() -> None:
    from diffusers import AutoencoderKL, UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(**SD1.unet_config())
        vae = AutoencoderKL(**SD1.vae_config())
    assert sum(p.numel() for p in unet.parameters()) == 859_520_964
    assert sum(p.numel() for p in vae.parameters()) == 83_653_863
