"""Every key and block is SD1's; diffusers' own converter agrees; other and odd files are refused by name."""

from __future__ import annotations

import json
import weakref
from collections import Counter
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint

from aid.core.blocks import SD1_BLOCKS
from aid.errors import FileError, ModelError
from aid.sd.file.tensorfile import read_header, read_tensors, write_tensors
from aid.sd.model.architecture import SD1, TINY, Architecture
from aid.sd.model.blocks import block_of
from aid.sd.model.checkpoint import (
    create_checkpoint,
    ldm_stored,
    ldm_tensors,
    load_checkpoint,
    load_vae,
    read_vae,
    save_checkpoint,
)
from aid.sd.model.layouts import POSITION_IDS, TEXT, UNET, VAE


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
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        unet = UNet2DConditionModel(**SD1.unet_config())
        vae = AutoencoderKL(**SD1.vae_config())
    assert sum(p.numel() for p in unet.parameters()) == 859_520_964
    assert sum(p.numel() for p in vae.parameters()) == 83_653_863


XL = {"conditioner.embedders.1.model.ln_final.weight": torch.ones(1)}
DECLARED = {"aid.architecture": TINY.model_dump_json()}


def declaring(path: Path, tensors: dict[str, torch.Tensor], **changes: object) -> Path:
    """A file whose metadata differs from its tensors in `changes`."""
    text = json.dumps({**TINY.model_dump(mode="json"), **changes})
    write_tensors(path, tensors, {"aid.architecture": text})
    return path


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"unet_groups": 0}, "unet_groups: Input should be greater than or equal to 1"),
        ({"text_heads": -2}, "text_heads"),
        ({"unet_heads": 3}, "unet_heads is 3, which does not divide the width 8"),
        ({"unet_groups": 32}, "unet_groups is 32, which does not divide the width 8"),
        ({"vae_groups": 8}, "vae_groups is 8, which does not divide the width 4"),
        ({"text_heads": 5}, "text_heads is 5, which does not divide the width 16"),
        ({"text_width": 10_000_000}, "text_width: Input should be less than or equal to 8192"),
        ({"text_layers": 10**6}, "text_layers"),
        ({"unet_widths": [8, 16, 32]}, "unet_widths"),
        ({"unet_widths": [8, 16, 32, 1e300]}, r"unet_widths\.3"),
        ({"native_edge_px": 0}, "native_edge_px"),
        ({"colour": 1}, "colour"),
    ],
)
def test_impossible_architectures_name_the_field(
    changes: dict[str, object], named: str, tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path = declaring(tmp_path / "odd.safetensors", tensors, **changes)
    for load in (load_checkpoint, load_vae):
        with pytest.raises(ModelError, match=rf"odd\.safetensors has a malformed aid\.architecture.*{named}"):
            load(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"SD1"', "[" * 100_000])
def test_an_architecture_that_is_none(text: str, tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    write_tensors(tmp_path / "odd.safetensors", tensors, {"aid.architecture": text})
    for load in (load_checkpoint, load_vae):
        with pytest.raises(ModelError, match=r"odd\.safetensors has a malformed aid\.architecture"):
            load(tmp_path / "odd.safetensors")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"text_width": 8192}, r"attn2\.to_k\.weight has shape \[8, 16\]; expected 8192 at place 2"),
        (
            {"unet_widths": [16, 16, 32, 32]},
            r"input_blocks\.0\.0\.weight has shape \[8, 4, 3, 3\]; expected 16",
        ),
        ({"unet_widths": [8, 16, 32, 8192]}, r"input_blocks\.10\.0\.in_layers\.2\.weight"),
        ({"vae_widths": [4, 8, 8192, 16]}, r"down\.2\.block\.0\.conv1\.weight"),
        ({"text_layers": 6}, "more text encoder layers than 6"),
        ({"text_layers": 13}, r"lacks .*encoder\.layers\.12\."),
    ],
)
def test_a_declaration_must_agree_with_the_tensors(
    changes: dict[str, object],
    named: str,
    tensors: dict[str, torch.Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = declaring(tmp_path / "odd.safetensors", tensors, **changes)
    if "13" not in str(changes):  # told before anything is built
        monkeypatch.delattr("aid.sd.model.checkpoint.UNet2DConditionModel")
    with pytest.raises(ModelError, match=named):
        load_checkpoint(path)


def test_a_vae_must_agree_with_its_declaration(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = declaring(tmp_path / "odd.safetensors", tensors, vae_widths=[4, 8, 8, 16])
    with pytest.raises(ModelError, match=r"odd.*down\.2\.block\.0\.conv1\.weight has shape \[16, 8, 3, 3\]"):
        load_vae(path)


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("first_stage_model.quant_conv.weight", (1, 8, 8)),
        ("model.diffusion_model.input_blocks.1.1.transformer_blocks.0.ff.net.0.proj.weight", (8, 64)),
        ("model.diffusion_model.input_blocks.0.0.weight", (8,)),
        ("cond_stage_model.transformer.text_model.final_layer_norm.weight", (4, 4)),
    ],
)
def test_a_shape_that_only_has_the_right_size_is_refused(
    key: str, shape: tuple[int, ...], tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    odd = torch.zeros(shape)
    write_tensors(tmp_path / "odd.safetensors", {**tensors, key: odd}, DECLARED)
    listed = ", ".join(map(str, shape))
    with pytest.raises(ModelError, match=rf"odd\.safetensors: {key} has shape \[{listed}\]; expected "):
        load_checkpoint(tmp_path / "odd.safetensors")


def test_linear_layers_may_be_one_by_one_convolutions(
    tensors: dict[str, torch.Tensor], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    key = "model.diffusion_model.input_blocks.1.1.proj_in.weight"
    assert tensors[key].shape == (8, 8, 1, 1)
    write_tensors(tmp_path / "linear.safetensors", {**tensors, key: tensors[key][:, :, 0, 0]}, DECLARED)
    ours, theirs = load_checkpoint(tmp_path / "linear.safetensors"), load_checkpoint(tiny_checkpoint)
    for one, other in zip(ours.unet.parameters(), theirs.unet.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_checkpoint_of_another_family_is_no_vae(
    tensors: dict[str, torch.Tensor], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    path = declaring(tmp_path / "xl.safetensors", {**tensors, **XL})
    with pytest.raises(ModelError, match=r"xl\.safetensors multiplies latents by 0\.13025"):
        load_checkpoint(tiny_checkpoint, vae=path)
    for read in (read_vae, load_vae):
        with pytest.raises(ModelError, match=r"xl\.safetensors multiplies latents by 0\.13025"):
            read(path)


def test_a_vae_that_does_not_fit_is_the_one_named(tiny_checkpoint: Path, tmp_path: Path) -> None:
    wider = create_checkpoint(Architecture(**{**TINY.model_dump(), "vae_widths": (8, 8, 16, 16)}), seed=3)
    save_checkpoint(wider, tmp_path / "wider.safetensors", {})
    with pytest.raises(ModelError, match=r"wider\.safetensors: first_stage_model\..* has shape"):
        load_checkpoint(tiny_checkpoint, vae=tmp_path / "wider.safetensors")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_loaded_model_is_whole_and_its_own(dtype: torch.dtype, tiny_checkpoint: Path) -> None:
    before = torch.get_rng_state()
    model = load_checkpoint(tiny_checkpoint, dtype=dtype)
    assert torch.equal(torch.get_rng_state(), before)
    for module in model.modules():
        assert not module.training
        for name, parameter in module.named_parameters():
            assert parameter.dtype == dtype and parameter.device.type == "cpu", name
            assert parameter.requires_grad and parameter.is_contiguous(), name
    assert torch.equal(model.text_encoder.embeddings.position_ids, torch.arange(77).unsqueeze(0))
    model.unet.to(memory_format=torch.channels_last)
    assert model.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)


def test_a_loaded_unet_computes_what_the_built_one_does(lively_checkpoint: Path) -> None:
    """Against diffusers' own way: a module built with weights of its own, into which others are copied."""
    loaded = load_checkpoint(lively_checkpoint).unet
    built = UNet2DConditionModel(**TINY.unet_config()).eval()
    built.load_state_dict(loaded.state_dict())
    latents = torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(1))
    texts = torch.randn((2, 77, TINY.text_width), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        one, other = (unet(latents, torch.tensor(500), texts).sample for unet in (loaded, built))
    assert one.any() and torch.equal(one, other)


def test_tensors_that_share_memory_in_a_pickle_come_apart(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Parameters that are views of one tensor would be trained twice."""
    vae, keys = read_vae(tiny_checkpoint), [f"{VAE}decoder.norm_out.{kind}" for kind in ("weight", "bias")]
    wide = {key: tensor.float() for key, tensor in vae.items()}
    torch.save({**wide, **dict.fromkeys(keys, torch.ones(4))}, tmp_path / "shared.pt")
    stored = read_tensors(tmp_path / "shared.pt")
    assert stored[keys[0]].data_ptr() == stored[keys[1]].data_ptr()
    norm = load_checkpoint(tiny_checkpoint, vae=tmp_path / "shared.pt").vae.decoder.conv_norm_out
    with torch.no_grad():
        norm.weight += 1
    assert torch.equal(norm.bias, torch.ones(4))


def test_saving_refuses_what_is_not_finite(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model = load_checkpoint(tiny_checkpoint)
    bias = model.unet.conv_in.bias
    with torch.no_grad():
        bias[3] = 70_000.0
    with pytest.raises(
        ModelError, match=r"blocks\.0\.0\.bias holds values too large for float16.*Choose fp32"
    ):
        save_checkpoint(model, tmp_path / "out.safetensors", {})
    assert ldm_tensors(model, torch.float32)["model.diffusion_model.input_blocks.0.0.bias"][3] == 70_000
    for value in (float("nan"), float("-inf")):
        with torch.no_grad():
            bias[3] = value
        with pytest.raises(ModelError, match=r"input_blocks\.0\.0\.bias holds NaN or infinity"):
            save_checkpoint(model, tmp_path / "out.safetensors", {}, torch.float32)
    assert not list(tmp_path.iterdir())


def test_what_is_written_is_cast_one_tensor_at_a_time(tiny_checkpoint: Path) -> None:
    """A model as large as memory allows must still be saved."""
    stored = ldm_stored(load_checkpoint(tiny_checkpoint), torch.float16)
    cast = {key: one for key, one in stored.items() if key.startswith((UNET, VAE))}
    assert len(cast) > 900
    for one in cast.values():
        read = one.read()
        assert (read.dtype, tuple(read.shape)) == (one.dtype, one.shape)
        kept = weakref.ref(read)
        del read
        assert kept() is None
