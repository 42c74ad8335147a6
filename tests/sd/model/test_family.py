"""SD1, SD2 and SDXL in single files and diffusers folders: every key, both ways, as diffusers has them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from torch import Tensor
from transformers import CLIPTokenizer

from aid.errors import FileError, ModelError
from aid.sd.file.tensorfile import read_tensors, write_tensors
from aid.sd.model.architecture import SD1, SD2, SD2_BASE, SDXL, TINY_SD2, TINY_SDXL, Architecture
from aid.sd.model.checkpoint import (
    StableDiffusion,
    _assemble,
    ldm_tensors,
    load_checkpoint,
    load_vae,
    require_noise_prediction,
    save_checkpoint,
)
from aid.sd.model.layouts import PLACES, PROJECTION, TEXT_2, TEXT_PREFIX, UNET, VAE, average_key
from aid.sd.model.tokenizer import load_tokenizer
from aid.sd.model.vae_file import latent_scale
from aid.sd.model.weights import open_weights

FAMILIES = ("sd1", "sd2", "sdxl")


@pytest.fixture(scope="module")
def folders(family_files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each family's model as a diffusers folder of ours."""
    root = tmp_path_factory.mktemp("folders")
    for family, file in family_files.items():
        save_checkpoint(load_checkpoint(file), root / family, {"kept": "yes"}, torch.float32, "diffusers")
    return {family: root / family for family in family_files}


PIPELINES = {
    "sd1": StableDiffusionPipeline,
    "sd2": StableDiffusionPipeline,
    "sdxl": StableDiffusionXLPipeline,
}


@pytest.fixture(scope="module")
def pipelines(folders: dict[str, Path]) -> dict[str, StableDiffusionPipeline]:
    """What diffusers makes of our folders; tokenizers are read in a test of their own."""
    return {
        family: PIPELINES[family].from_pretrained(folder, local_files_only=True, **tokenizers(family))
        for family, folder in folders.items()
    }


def tokenizers(family: str) -> dict[str, object]:
    names = ["tokenizer", "tokenizer_2"] if family == "sdxl" else ["tokenizer"]
    return dict.fromkeys(names, load_tokenizer())


@pytest.mark.parametrize(
    ("architecture", "counts", "unet_parameters"),
    [
        (SD1, {UNET: 686, TEXT_PREFIX["sd1"]: 196, VAE: 248}, 859_520_964),
        (SD2, {UNET: 686, TEXT_PREFIX["sd2"]: 2 + 2 + 23 * 12, VAE: 248}, 865_910_724),
        (SDXL, {UNET: 1680, TEXT_PREFIX["sdxl"]: 196, TEXT_2: 389, VAE: 248}, 2_567_463_684),
    ],
)
def test_real_models_have_the_keys_and_sizes_of_the_released_files(
    architecture: Architecture, counts: dict[str, int], unet_parameters: int
) -> None:
    with torch.device("meta"):
        model = _assemble(architecture)
    keys = {
        PLACES[part](key, architecture.family).key
        for part, module in model.parts().items()
        for key in module.state_dict()
        if "position_ids" not in key
    }
    assert Counter(next(p for p in counts if key.startswith(p)) for key in keys) == counts
    assert sum(parameter.numel() for parameter in model.unet.parameters()) == unet_parameters


@pytest.mark.parametrize("family", FAMILIES)
def test_single_file_round_trip_is_bitwise(
    family: str, family_files: dict[str, Path], folders: dict[str, Path], tmp_path: Path
) -> None:
    for source in (family_files[family], folders[family]):
        save_checkpoint(load_checkpoint(source), tmp_path / "again.safetensors", {}, torch.float32)
        assert (tmp_path / "again.safetensors").read_bytes() == family_files[family].read_bytes()


def test_the_files_have_what_old_tools_look_for(family_files: dict[str, Path]) -> None:
    tensors = {family: read_tensors(path) for family, path in family_files.items()}
    for family in ("sd1", "sdxl"):
        positions = tensors[family][f"{TEXT_PREFIX[family]}embeddings.position_ids"]
        assert torch.equal(positions, torch.arange(77).unsqueeze(0))
    last = "transformer.resblocks.5.attn.in_proj_weight"
    assert tensors["sd2"][TEXT_PREFIX["sd2"] + last].shape == (48, 16), "SD2's layer that nothing uses"
    assert tensors["sdxl"][f"{TEXT_2}logit_scale"].shape == ()


@pytest.mark.parametrize("family", FAMILIES)
def test_diffusers_reads_our_folder_and_computes_the_same(
    family: str, family_files: dict[str, Path], pipelines: dict[str, StableDiffusionPipeline]
) -> None:
    compare(load_checkpoint(family_files[family]), pipelines[family])
    told = pipelines[family].scheduler.config.prediction_type
    assert told == ("v_prediction" if family == "sd2" else "epsilon")


@pytest.mark.parametrize("family", FAMILIES)
def test_diffusers_reads_our_single_file_and_computes_the_same(
    family: str, family_files: dict[str, Path], folders: dict[str, Path]
) -> None:
    theirs = PIPELINES[family].from_single_file(
        str(family_files[family]), config=str(folders[family]), local_files_only=True, **tokenizers(family)
    )
    compare(load_checkpoint(family_files[family]), theirs)


@pytest.mark.parametrize("family", FAMILIES)
def test_we_read_the_folder_that_diffusers_writes(
    family: str, family_files: dict[str, Path], pipelines: dict[str, StableDiffusionPipeline], tmp_path: Path
) -> None:
    """In shards, as the .fp16 variant."""
    pipelines[family].save_pretrained(tmp_path / "theirs", max_shard_size="200KB", variant="fp16")
    loaded = load_checkpoint(tmp_path / "theirs")
    assert same(ldm_tensors(loaded, torch.float32), read_tensors(family_files[family]))
    assert loaded.architecture == load_checkpoint(family_files[family]).architecture


def test_the_tokenizers_of_our_folder_pad_as_each_encoder_wants(folders: dict[str, Path]) -> None:
    for name, pad in (("tokenizer", 49407), ("tokenizer_2", 0)):
        tokenizer = CLIPTokenizer.from_pretrained(folders["sdxl"] / name)
        ids = tokenizer("a cat", padding="max_length", max_length=6).input_ids
        assert ids == [49406, 320, 2368, 49407, pad, pad]
        merges = (folders["sdxl"] / name / "merges.txt").read_text().splitlines()
        assert merges[1:3] == ["i n", "t h"] and len(merges) == 48_895


@torch.no_grad()
def compare(ours: StableDiffusion, theirs: StableDiffusionPipeline) -> None:
    """Text, U-Net and VAE outputs within 1e-5."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 49405, (2, 77), generator=generator)
    ids[:, -1] = 49407
    near(ours.text_encoder(ids).last_hidden_state, theirs.text_encoder(ids).last_hidden_state)
    added = None
    if ours.text_encoder_2 is not None:
        pooled = ours.text_encoder_2(ids).text_embeds
        near(pooled, theirs.text_encoder_2(ids).text_embeds)
        added = {"text_embeds": pooled, "time_ids": torch.full((2, 6), 64.0)}
    latents = torch.randn((2, 4, 8, 8), generator=generator)
    texts = torch.randn((2, 77, ours.architecture.context_width), generator=generator)
    outputs = [
        model.unet(latents, torch.tensor(321), texts, added_cond_kwargs=added).sample
        for model in (ours, theirs)
    ]
    near(*outputs)
    near(ours.vae.decode(latents).sample, theirs.vae.decode(latents).sample)
    assert ours.vae.config.scaling_factor == theirs.vae.config.scaling_factor


def near(ours: Tensor, theirs: Tensor) -> None:
    assert ours.any() and (ours - theirs).abs().max() < 1e-5


def same(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def rewritten(source: Path, path: Path, **changes: Tensor) -> Path:
    metadata = open_weights(source).metadata
    write_tensors(path, {**read_tensors(source), **changes}, metadata)
    return path


def test_a_projection_from_trainers_that_do_not_transpose(
    family_files: dict[str, Path], tmp_path: Path
) -> None:
    stored = read_tensors(family_files["sdxl"])[PROJECTION]
    kohya = rewritten(family_files["sdxl"], tmp_path / "k.safetensors", **{PROJECTION: stored.T.contiguous()})
    plain, told = load_checkpoint(kohya), load_checkpoint(kohya, untransposed=True)
    assert torch.equal(plain.text_encoder_2.text_projection.weight, stored)
    assert torch.equal(told.text_encoder_2.text_projection.weight, stored.T)
    assert torch.equal(ldm_tensors(told, torch.float32)[PROJECTION], stored), "written as others expect it"


def test_float_position_ids_are_counted_anew(family_files: dict[str, Path], tmp_path: Path) -> None:
    key = f"{TEXT_PREFIX['sd1']}embeddings.position_ids"
    torn = {key: torch.arange(77).unsqueeze(0) - 0.0001}
    path = rewritten(family_files["sd1"], tmp_path / "torn.safetensors", **torn)
    model = load_checkpoint(path)
    assert torch.equal(model.text_encoder.embeddings.position_ids, torch.arange(77).unsqueeze(0))
    assert ldm_tensors(model, torch.float16)[key].dtype == torch.int64


def test_averaged_weights_are_taken_when_asked_for(family_files: dict[str, Path], tmp_path: Path) -> None:
    source = read_tensors(family_files["sd1"])
    averages = {average_key(key): tensor * 2 for key, tensor in source.items() if key.startswith(UNET)}
    assert "model_ema.diffusion_modelinput_blocks00weight" in averages
    path = rewritten(family_files["sd1"], tmp_path / "ema.safetensors", **averages, betas=torch.ones(3))
    plain, averaged = load_checkpoint(path), load_checkpoint(path, ema=True)
    assert torch.equal(averaged.unet.conv_in.weight, 2 * plain.unet.conv_in.weight)
    with pytest.raises(ModelError, match=r"has no model_ema\.diffusion_model.*averaged weights"):
        load_checkpoint(family_files["sd1"], ema=True)
    del averages["model_ema.diffusion_modelout2bias"]
    rewritten(family_files["sd1"], tmp_path / "part.safetensors", **averages)
    with pytest.raises(ModelError, match=r"has no model_ema\.diffusion_modelout2bias"):
        load_checkpoint(tmp_path / "part.safetensors", ema=True)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("part", ["model.diffusion_model.", "first_stage_model.", "ln_final"])
def test_weights_that_are_not_finite_are_named(
    family: str, part: str, family_files: dict[str, Path], tmp_path: Path
) -> None:
    tensors = read_tensors(family_files[family])
    key = next((key for key in tensors if part in key), TEXT_PREFIX["sd1"] + "final_layer_norm.weight")
    tensors[key].reshape(-1)[0] = float("nan")
    path = rewritten(family_files[family], tmp_path / "nan.safetensors", **{key: tensors[key]})
    with pytest.raises(ModelError, match=r"nan\.safetensors: .* holds NaN or infinity"):
        load_checkpoint(path)


def test_values_too_large_for_half_are_named_on_loading(
    family_files: dict[str, Path], tmp_path: Path
) -> None:
    key = f"{UNET}out.2.bias"
    path = rewritten(family_files["sd1"], tmp_path / "big.safetensors", **{key: torch.full((4,), 7e4)})
    with pytest.raises(ModelError, match="too large for float16"):
        load_checkpoint(path, dtype=torch.float16)
    assert load_checkpoint(path, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_old_names_of_the_vaes_attention(folders: dict[str, Path], tmp_path: Path) -> None:
    new = read_tensors(folders["sd1"] / "vae" / "diffusion_pytorch_model.safetensors")
    words = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}
    old = {}
    for key, tensor in new.items():
        for word, older in words.items():
            key = key.replace(word, older)
        old[key] = tensor
    assert "encoder.mid_block.attentions.0.proj_attn.bias" in old
    write_tensors(tmp_path / "old.safetensors", old, {})
    with pytest.raises(ModelError, match="has shape"):
        load_vae(tmp_path / "old.safetensors")  # narrow, and doesn't say so
    taken = load_checkpoint(folders["sd1"], vae=tmp_path / "old.safetensors")
    assert same(taken.vae.state_dict(), load_checkpoint(folders["sd1"]).vae.state_dict())
    swapped = load_checkpoint(folders["sd1"], vae=folders["sd1"] / "vae")
    assert same(swapped.vae.state_dict(), taken.vae.state_dict())


def test_a_folder_is_whole_or_a_clear_error(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(FileError, match="is there already"):
        save_checkpoint(load_checkpoint(folders["sd1"]), folders["sd1"], {}, layout="diffusers")

    def broken(name: str, text: str | None) -> Path:
        copy = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        for file in folders["sd1"].rglob("*"):
            place = copy / file.relative_to(folders["sd1"])
            place.parent.mkdir(parents=True, exist_ok=True)
            if file.is_file() and place != copy / name:
                place.symlink_to(file)
        if text is not None:
            (copy / name).write_text(text)
        return copy

    unet = json.loads((folders["sd1"] / "unet" / "config.json").read_text())
    cases = [
        ("unet/config.json", None, FileError, r"unet/config\.json could not be read"),
        ("unet/config.json", "[]", FileError, "not a JSON object"),
        ("unet/config.json", "[" * 100_000, FileError, "not JSON"),
        ("unet/diffusion_pytorch_model.safetensors", None, FileError, "unet holds no weights"),
        ("vae/diffusion_pytorch_model.safetensors", "short", FileError, "vae.* is not a whole"),
        ("model_index.json", '{"_class_name": "FluxPipeline"}', ModelError, "holds a FluxPipeline"),
    ]
    for field, value in (
        ("attention_head_dim", [0, 1]),
        ("attention_head_dim", "x"),
        ("block_out_channels", [8, -1]),
        ("block_out_channels", 7),
        ("transformer_layers_per_block", [1, 10**9]),
        ("down_block_types", ["?"]),
        ("down_block_types", 3),
        ("in_channels", 8),
        ("sample_size", 10**9),
        ("block_out_channels", [16, 16, 32, 32]),
    ):
        text = json.dumps({**unet, field: value})
        cases.append(("unet/config.json", text, ModelError, "describes no model|input channels|has shape"))
    for name, text, error, match in cases:
        with pytest.raises(error, match=match):
            load_checkpoint(broken(name, text))


def test_shards_outside_the_folder_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    index = {"weight_map": {"conv_in.weight": "../../secret.safetensors"}}
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text("{}")
    (tmp_path / "vae" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FileError, match="lists no shards of this folder"):
        load_vae(tmp_path / "vae")


def test_a_vae_of_another_family_is_refused(family_files: dict[str, Path]) -> None:
    with pytest.raises(
        ModelError, match=r"sdxl\.safetensors multiplies .* 0\.13025 \(SDXL\); expected 0\.18215 \(SD1, SD2\)"
    ):
        load_checkpoint(family_files["sd1"], vae=family_files["sdxl"])
    load_checkpoint(family_files["sd2"], vae=family_files["sd1"])  # which is the same


def test_a_folder_tells_what_its_latents_are_multiplied_by(
    folders: dict[str, Path], family_files: dict[str, Path]
) -> None:
    with pytest.raises(ModelError, match=r"sdxl multiplies latents by 0\.13025"):
        load_checkpoint(family_files["sd1"], vae=folders["sdxl"])
    load_checkpoint(family_files["sdxl"], vae=folders["sdxl"] / "vae")
    for path in (folders["sdxl"], folders["sdxl"] / "vae"):  # alone, as for a dataset's latents
        assert load_vae(path).config["block_out_channels"] == TINY_SDXL.vae_widths
    told = {name: latent_scale(path) for name, path in (folders | {"file": family_files["sdxl"]}).items()}
    assert told["sdxl"] == told["file"] == 0.13025 and told["sd1"] == 0.18215


def test_real_constants() -> None:
    assert (SD1.vae_scale, SD2.vae_scale, SDXL.vae_scale) == (0.18215, 0.18215, 0.13025)
    assert (SDXL.context_width, SDXL.adm_width) == (2048, 2816)
    assert (SD2.prediction, SD2_BASE.prediction, SD2.native_edge_px) == ("v", "epsilon", 768)
    assert SDXL.unet_config()["attention_head_dim"] == [5, 10, 20]
    assert {TINY_SD2.family, TINY_SDXL.family} == {"sd2", "sdxl"}


def test_training_refuses_what_its_loss_is_not_for(family_files: dict[str, Path]) -> None:
    for family, named in (("sd2", "is SD2 that predicts v"), ("sdxl", "is SDXL")):
        with pytest.raises(ModelError, match=named):
            require_noise_prediction(load_checkpoint(family_files[family]), "training")
    require_noise_prediction(load_checkpoint(family_files["sd1"]), "training")
