"""Adapter files: every name for one module, embeddings in them, what is written, and malformed files."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from aid.errors import AidError, ModelError
from aid.sd.adapter.file import Adapter, load_adapter, save_adapter
from aid.sd.adapter.kind import KINDS, fits, magnitude_axis
from aid.sd.file.tensorfile import read_header, write_tensors

NAME = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
TEXT_NAME = "lora_te1_encoder_layers_3_self_attn_q_proj"
OUT, IN, RANK = 6, 8, 2


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


DOWN, UP = random(RANK, IN, seed=1), random(OUT, RANK, seed=2)
WEIGHT = random(OUT, IN, seed=3)


def written(tmp_path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Adapter:
    save_file(tensors, tmp_path / "style.safetensors", metadata)
    return load_adapter(tmp_path / "style.safetensors")


UNET_PATH = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
TEXT_PATH = "text_model.encoder.layers.3.self_attn"
SPELLINGS = {  # down, up -> the one name
    "kohya": (f"{NAME}.lora_down.weight", f"{NAME}.lora_up.weight", NAME),
    "kohya-peft": (f"{NAME}.lora_A.weight", f"{NAME}.lora_B.weight", NAME),
    "peft": (f"unet.{UNET_PATH}.to_q.lora_A.weight", f"unet.{UNET_PATH}.to_q.lora_B.weight", NAME),
    "peft-named": (f"base_model.model.{UNET_PATH}.to_q.lora_A.style.weight",
                   f"base_model.model.{UNET_PATH}.to_q.lora_B.style.weight", NAME),
    "peft-saved-by-diffusers": (f"unet.base_model.model.{UNET_PATH}.to_q.lora_A.weight",
                                f"unet.base_model.model.{UNET_PATH}.to_q.lora_B.weight", NAME),
    "lycoris": (f"{NAME.replace('lora_unet', 'lycoris')}.lora_down.weight",
                f"{NAME.replace('lora_unet', 'lycoris')}.lora_up.weight", NAME),
    "diffusers": (f"unet.{UNET_PATH}.to_q.lora.down.weight", f"unet.{UNET_PATH}.to_q.lora.up.weight", NAME),
    "processor": (f"unet.{UNET_PATH}.processor.to_q_lora.down.weight",
                  f"unet.{UNET_PATH}.processor.to_q_lora.up.weight", NAME),
    "first": (f"{UNET_PATH}.processor.to_q_lora.down.weight",
              f"{UNET_PATH}.processor.to_q_lora.up.weight", NAME),
    "out": (f"unet.{UNET_PATH}.processor.to_out_lora.down.weight",
            f"unet.{UNET_PATH}.processor.to_out_lora.up.weight", NAME.replace("to_q", "to_out_0")),
    "text-kohya": ("lora_te_text_model_encoder_layers_3_self_attn_q_proj.lora_down.weight",
                   "lora_te_text_model_encoder_layers_3_self_attn_q_proj.lora_up.weight", TEXT_NAME),
    "text-xl": ("lora_te2_text_model_encoder_layers_3_self_attn_q_proj.lora_down.weight",
                "lora_te2_text_model_encoder_layers_3_self_attn_q_proj.lora_up.weight",
                TEXT_NAME.replace("te1", "te2")),
    "text-diffusers": (f"text_encoder.{TEXT_PATH}.q_proj.lora_linear_layer.down.weight",
                       f"text_encoder.{TEXT_PATH}.q_proj.lora_linear_layer.up.weight", TEXT_NAME),
    "text-old": (f"text_encoder.{TEXT_PATH}.to_q_lora.down.weight",
                 f"text_encoder.{TEXT_PATH}.to_q_lora.up.weight", TEXT_NAME),
    "text-new": ("text_encoder_2.encoder.layers.3.self_attn.q_proj.lora_A.weight",
                 "text_encoder_2.encoder.layers.3.self_attn.q_proj.lora_B.weight",
                 TEXT_NAME.replace("te1", "te2")),
    "ldm": ("diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.lora_A.weight",
            "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.lora_B.weight",
            "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q"),
    "text-comfyui": (f"text_encoders.clip_l.transformer.{TEXT_PATH}.q_proj.lora_down.weight",
                     f"text_encoders.clip_l.transformer.{TEXT_PATH}.q_proj.lora_up.weight", TEXT_NAME),
    "text-comfyui-sd2": (f"text_encoders.clip_h.transformer.{TEXT_PATH}.q_proj.lora_down.weight",
                         f"text_encoders.clip_h.transformer.{TEXT_PATH}.q_proj.lora_up.weight", TEXT_NAME),
    "text-comfyui-xl": (f"text_encoders.clip_g.transformer.{TEXT_PATH}.q_proj.lora_down.weight",
                        f"text_encoders.clip_g.transformer.{TEXT_PATH}.q_proj.lora_up.weight",
                        TEXT_NAME.replace("te1", "te2")),
    "text-dotted": (f"lora_te.{TEXT_PATH}.q_proj.lora_down.weight",
                    f"lora_te.{TEXT_PATH}.q_proj.lora_up.weight", TEXT_NAME),
}  # fmt: skip


@pytest.mark.parametrize("spelling", list(SPELLINGS))
def test_every_spelling_of_one_module(spelling: str, tmp_path: Path) -> None:
    down, up, name = SPELLINGS[spelling]
    adapter = written(tmp_path, {down: DOWN, up: UP})
    assert (adapter.name, adapter.kinds, list(adapter.changes)) == ("style", {"lora": 1}, [name])
    changed = adapter.changes[name].applied(WEIGHT, 0.5)
    assert torch.allclose(changed, WEIGHT + 0.5 * UP @ DOWN)  # no alpha: scale 1


@pytest.mark.parametrize("alpha", [1.0, 4.0, 0.0])
def test_alpha_over_rank(alpha: float, tmp_path: Path) -> None:
    stored = {f"{NAME}.lora_down.weight": DOWN.bfloat16(), f"{NAME}.lora_up.weight": UP.bfloat16()}
    change = written(tmp_path, stored | {f"{NAME}.alpha": torch.tensor(alpha)}).changes[NAME]
    product = UP.bfloat16().float() @ DOWN.bfloat16().float()
    assert torch.allclose(change.applied(WEIGHT, -1.0), WEIGHT - alpha / RANK * product)


def test_old_pickled_files(tmp_path: Path) -> None:
    torch.save({f"{NAME}.lora_down.weight": DOWN, f"{NAME}.lora_up.weight": UP}, tmp_path / "style.pt")
    assert load_adapter(tmp_path / "style.pt").changes[NAME].shape == (OUT, IN)


def test_dora_between_and_beyond(tmp_path: Path) -> None:
    """m (W + d) / |W + d| by outputs or inputs, whichever the magnitudes are for; A1111's rule for
    weights: the way from W to there, in a straight line."""
    product = UP @ DOWN
    for shape, axis in ((OUT, 1), 1), ((1, IN), 0), ((OUT,), 1):
        magnitude = random(*shape, seed=5).abs()
        tensors = {f"{NAME}.lora_down.weight": DOWN, f"{NAME}.lora_up.weight": UP}
        change = written(tmp_path, tensors | {f"{NAME}.dora_scale": magnitude}).changes[NAME]
        unit = torch.nn.functional.normalize(WEIGHT + product, dim=axis)
        there = unit * magnitude.reshape((OUT, 1) if axis else (1, IN))
        for strength in (1.0, 0.4, -1.0):
            expected = torch.lerp(WEIGHT, there, strength)
            assert torch.allclose(change.applied(WEIGHT, strength), expected, atol=1e-5)


def test_magnitudes_of_square_weights_are_told_by_their_place() -> None:
    assert magnitude_axis((8, 1, 1, 1), (8, 8, 3, 3)) == 0
    assert magnitude_axis((1, 8, 1, 1), (8, 8, 3, 3)) == 1
    with pytest.raises(ValueError, match="5"):
        magnitude_axis((5, 1), (8, 8))


def test_what_fits_a_weight() -> None:
    assert fits((6, 8), (6, 8, 1, 1)) and fits((6, 8, 1, 1), (6, 8)) and fits((6, 72), (6, 8, 3, 3))
    assert not fits((6, 8), (6, 8, 3, 3)) and not fits((8, 6), (6, 8)) and not fits((6,), (6, 8))


def test_bundled_embeddings_and_what_is_not_read(tmp_path: Path) -> None:
    pair = random(2, 16), random(2, 24)
    tensors = {
        f"{NAME}.lora_down.weight": DOWN, f"{NAME}.lora_up.weight": UP,
        "bundle_emb.my.word.string_to_param.*": random(3, 16),
        "bundle_emb.pair.clip_l": pair[0], "bundle_emb.pair.clip_g": pair[1],
        "bundle_emb.pair.clip_l_out": random(2, 16),
        f"{NAME}.oft_blocks": random(2, 2),
    }  # fmt: skip
    adapter = written(tmp_path, tensors)
    assert {name: len(one.vectors) for name, one in adapter.embeddings.items()} == {"my.word": 3, "pair": 2}
    found = adapter.embeddings["pair"].vectors_g
    assert found is not None and torch.equal(found, pair[1])
    assert sorted(adapter.unread) == ["bundle_emb.pair.clip_l_out", f"{NAME}.oft_blocks"]


FAMILIES: list[tuple[str, tuple[int, int], dict[str, str], str]] = [
    ("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k", (4, 768), {}, "SD1"),
    ("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k", (4, 1024), {}, "SD2"),
    ("lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k", (4, 2048), {}, "SDXL"),
    ("lora_te2_text_model_encoder_layers_0_mlp_fc1", (4, 4), {}, "SDXL"),
    ("lora_te_text_model_encoder_layers_0_self_attn_q_proj", (4, 1024), {}, "SD2"),
    ("lora_unet_double_blocks_0_img_attn_qkv", (4, 4), {}, "FLUX"),
    ("lora_unet_conv_in", (4, 4), {"ss_base_model_version": "sdxl_base_v1-0"}, "SDXL"),
    ("lora_unet_conv_in", (4, 4), {"ss_v2": "True"}, "SD2"),
    ("lora_unet_conv_in", (4, 4), {"modelspec.architecture": "stable-diffusion-v1/lora"}, "SD1"),
    ("lora_unet_conv_in", (4, 4), {}, ""),
]


@pytest.mark.parametrize(("name", "shape", "metadata", "family"), FAMILIES)
def test_the_family_is_told(
    name: str, shape: tuple[int, int], metadata: dict[str, str], family: str, tmp_path: Path
) -> None:
    tensors = {f"{name}.lora_down.weight": random(2, shape[1]), f"{name}.lora_up.weight": random(shape[0], 2)}
    assert written(tmp_path, tensors, metadata).family == family


def test_a_saved_file_has_kohyas_hashes_and_the_same_bytes(tmp_path: Path) -> None:
    big = random(700, 2048)  # beyond the first MiB, where the old hash looks
    tensors = {
        f"{NAME}.lora_down.weight": big,
        f"{NAME}.lora_up.weight": random(6, 700),
        f"{NAME}.alpha": torch.tensor(3.0),
    }
    metadata = {"ss_network_dim": "700", "ss_base_model_version": "sd_v1", "modelspec.title": "style"}
    for name in ("a", "b"):
        save_adapter(tmp_path / f"{name}.safetensors", tensors, metadata)
        tensors = dict(reversed(tensors.items()))
    raw = (tmp_path / "a.safetensors").read_bytes()
    assert raw == (tmp_path / "b.safetensors").read_bytes()
    found = read_header(tmp_path / "a.safetensors")
    assert found.metadata.items() >= metadata.items()
    assert found.metadata["sshs_model_hash"] == hashlib.sha256(raw[found.data_start :]).hexdigest()
    kept = {key: text for key, text in metadata.items() if key.startswith("ss_")}
    write_tensors(tmp_path / "kept.safetensors", {k: v.half() for k, v in tensors.items()}, kept)
    slab = (tmp_path / "kept.safetensors").read_bytes()[0x100000:0x110000]
    assert found.metadata["sshs_legacy_hash"] == hashlib.sha256(slab).hexdigest()[:8]
    assert load_file(tmp_path / "a.safetensors")[f"{NAME}.lora_up.weight"].dtype == torch.float16
    assert load_adapter(tmp_path / "a.safetensors").changes[NAME].scale == pytest.approx(3 / 700)
    with pytest.raises(ModelError, match=r"lora_up.*too large for float16"):
        save_adapter(tmp_path / "c.safetensors", {f"{NAME}.lora_up.weight": 1e6 * UP}, {})


LORA = {f"{NAME}.lora_down.weight": DOWN, f"{NAME}.lora_up.weight": UP}
HALVES = {f"{NAME}.hada_w{half}_{side}": random(2, 4 if side == "a" else 3) for half in "12" for side in "ab"}
TWICE = {f"unet.{UNET_PATH}.to_q.lora_A.weight": DOWN, f"unet.{UNET_PATH}.to_q.lora_B.weight": UP}
Refused = tuple[dict[str, Tensor], dict[str, str], str]
REFUSED: dict[str, Refused] = {
    "half": ({f"{NAME}.lora_down.weight": DOWN}, {}, r"has only lora_down.weight; expected lora_up"),
    "ranks": (LORA | {f"{NAME}.lora_up.weight": random(OUT, 3)}, {}, r"don't fit each other.*\[6, 3\]"),
    "nan": (LORA | {f"{NAME}.lora_up.weight": UP * torch.nan}, {}, "lora_up.weight holds NaN"),
    "alpha-nan": (LORA | {f"{NAME}.alpha": torch.tensor(torch.inf)}, {}, "alpha holds NaN"),
    "alpha-many": (LORA | {f"{NAME}.alpha": torch.ones(2)}, {}, r"alpha has shape \[2\]"),
    "rank-0": (
        {f"{NAME}.lora_down.weight": random(0, 8), f"{NAME}.lora_up.weight": random(6, 0)},
        {},
        "rank of at least 1",
    ),
    "vectors": ({f"{NAME}.lora_down.weight": DOWN[0], f"{NAME}.lora_up.weight": UP[:, 0]}, {}, "don't fit"),
    "integers": (LORA | {f"{NAME}.lora_up.weight": UP.to(torch.int32)}, {}, "holds I32"),
    "mixed": (LORA | {f"{NAME}.hada_w1_a": UP}, {}, "mixes lora with hada_w1_a"),
    "alone": ({f"{NAME}.alpha": torch.tensor(1.0)}, {}, "nothing that changes it"),
    "magnitude": (LORA | {f"{NAME}.dora_scale": torch.ones(5, 1)}, {}, r"dora_scale has shape \[5, 1\]"),
    "lokr": ({f"{NAME}.lokr_w1": UP, f"{NAME}.lokr_w2_a": UP}, {}, "lokr_w2 or lokr_w2_a and lokr_w2_b"),
    "loha": (HALVES, {}, "don't fit"),
    "twice": (LORA | TWICE, {}, "changes one module twice"),
    "checkpoint": ({"model.diffusion_model.out.2.weight": UP, "vae.x": UP}, {}, "2 tensors such as"),
    "embedding": (LORA | {"bundle_emb.x.clip_l": torch.ones(2, 2, 2)}, {}, r"shape \[2, 2, 2\]"),
    "peft-json": (LORA, {"lora_adapter_metadata": "{"}, "malformed lora_adapter_metadata"),
    "peft-alpha": (LORA, {"lora_adapter_metadata": '{"unet.lora_alpha": "x"}'}, "malformed lora_adapter"),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_refusals_say_why(name: str, tmp_path: Path) -> None:
    tensors, metadata, message = REFUSED[name]
    with pytest.raises(ModelError, match=message) as caught:
        written(tmp_path, {key: tensor.clone() for key, tensor in tensors.items()}, metadata)
    assert "style.safetensors" in str(caught.value)


@given(cut=st.integers(0, 520), junk=st.binary(max_size=40))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_files_raise_named_errors(cut: int, junk: bytes, tmp_path: Path) -> None:
    save_adapter(tmp_path / "good.safetensors", LORA, {"ss_v2": "False"})
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes((tmp_path / "good.safetensors").read_bytes()[:cut] + junk)
    try:
        load_adapter(broken)
    except AidError as error:
        assert "broken" in str(error)
    else:
        assert broken.stat().st_size == (tmp_path / "good.safetensors").stat().st_size


WORDS = sorted({name for kind in KINDS.values() for name in kind.names})
WORDS += ["alpha", "dora_scale", "diff_b", "b_norm", "lora_magnitude_vector", "strange"]
SHAPES = st.lists(st.integers(0, 4), max_size=4)


@given(
    parts=st.dictionaries(st.sampled_from(WORDS), SHAPES, max_size=6),
    weight=st.lists(st.integers(1, 4), min_size=1, max_size=4),
)
@example(parts={"diff": [], "dora_scale": []}, weight=[1])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_tensors_give_a_change_or_one_error(
    parts: dict[str, list[int]], weight: list[int], tmp_path: Path
) -> None:
    tensors: dict[str, Any] = {f"lora_unet_x.{word}": torch.ones(shape) for word, shape in parts.items()}
    try:
        adapter = written(tmp_path, tensors)
    except AidError as error:
        assert "style.safetensors" in str(error)
        return
    for change in adapter.changes.values():
        if change.kind and fits(change.shape, weight) and change.magnitude is None:
            assert change.applied(torch.ones(weight), 1.0).shape == tuple(weight)
