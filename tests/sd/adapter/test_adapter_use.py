"""Adapters on a model: weights apart, several at once, taken off bitwise, baked, and refused by family."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from aid.errors import ModelError
from aid.sd.adapter.file import Adapter, load_adapter
from aid.sd.adapter.fitting import Fitting, applied, room_for
from aid.sd.adapter.target import kohya_targets, skeleton, targets_of
from aid.sd.adapter.use import Use
from aid.sd.model.architecture import (
    SD1,
    SD2,
    SDXL,
    TINY,
    TINY_INPAINTING,
    TINY_SD2,
    TINY_SDXL,
    Architecture,
)
from aid.sd.model.checkpoint import StableDiffusion, create_checkpoint

FAMILIES = {"sd1": TINY, "sd2": TINY_SD2, "sdxl": TINY_SDXL}


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) / 4


def lora(model: StableDiffusion, seed: int, words: tuple[str, ...] = ("",)) -> dict[str, Tensor]:
    tensors = {}
    for index, (name, target) in enumerate(kohya_targets(targets_of(model), convolutions=True).items()):
        if any(word in name for word in words):
            out, into, *kernel = target.shape
            tensors[f"{name}.lora_down.weight"] = random(2, into, *kernel, seed=seed + index)
            tensors[f"{name}.lora_up.weight"] = random(out, 2, *[1] * len(kernel), seed=seed - index)
    return tensors


def adapter(tensors: Mapping[str, Tensor], folder: Path, name: str = "style") -> Adapter:
    save_file(dict(tensors), folder / f"{name}.safetensors")
    return load_adapter(folder / f"{name}.safetensors")


def parts(model: StableDiffusion) -> list[nn.Module]:
    return [model.unet, model.text_encoder, *([model.text_encoder_2] if model.text_encoder_2 else [])]


def state(model: StableDiffusion) -> list[dict[str, Tensor]]:
    return [{key: tensor.clone() for key, tensor in part.state_dict().items()} for part in parts(model)]


def same(one: list[dict[str, Tensor]], other: list[dict[str, Tensor]]) -> bool:
    return all(
        torch.equal(mine[key], theirs[key]) for mine, theirs in zip(one, other, strict=True) for key in mine
    )


@pytest.fixture(scope="module", params=list(FAMILIES))
def model(request: pytest.FixtureRequest) -> StableDiffusion:
    return create_checkpoint(FAMILIES[request.param], seed=3)


def test_every_target_is_found_by_kohyas_name(model: StableDiffusion) -> None:
    """The names of each family's files, and the count of modules that have weights."""
    names = kohya_targets(targets_of(model), convolutions=True)
    family = model.architecture.family
    expected = {
        "sd1": "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0",
        "sd2": "lora_unet_up_blocks_1_attentions_2_transformer_blocks_0_ff_net_0_proj",
        "sdxl": "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k",
    }
    assert expected[family] in names
    text = "lora_te1_text_model_" if family == "sdxl" else "lora_te_text_model_"
    assert f"{text}encoder_layers_2_self_attn_out_proj" in names
    assert ("lora_te2_text_model_encoder_layers_3_mlp_fc2" in names) == (family == "sdxl")
    sampler = "output_blocks_2_2_conv" if family == "sdxl" else "up_blocks_0_upsamplers_0_conv"
    assert f"lora_unet_{sampler}" in names
    assert len({id(target.module) for target in names.values()}) == len(names)
    aliased = targets_of(model)
    assert "lora_unet_input_blocks_0_0" in aliased and "lora_unet_conv_in" in aliased


@pytest.mark.parametrize(
    "architecture", [TINY, TINY_INPAINTING, TINY_SD2, TINY_SDXL], ids=lambda one: one.family
)
def test_a_model_that_is_not_there_has_the_modules_of_one(architecture: Architecture) -> None:
    real, told = targets_of(create_checkpoint(architecture, seed=0)), skeleton(architecture)
    found = {name: (one.name, one.part, one.kohya, one.shape, one.bias_shape) for name, one in told.items()}
    assert found == {
        name: (one.name, one.part, one.kohya, one.shape, one.bias_shape) for name, one in real.items()
    }


@pytest.mark.parametrize(
    ("architecture", "unet", "text"), [(SD1, 192, 72), (SD2, 192, 138), (SDXL, 722, 72 + 192)]
)
def test_the_real_models_counts_are_kohyas(architecture: Architecture, unet: int, text: int) -> None:
    """What kohya's trainer prints: `create LoRA for U-Net: 192 modules`."""
    names = kohya_targets(skeleton(architecture))
    assert sum(name.startswith("lora_unet_") for name in names) == unet
    assert sum(name.startswith("lora_te") for name in names) == text


def test_weights_are_apart_and_taken_off_bitwise(model: StableDiffusion, tmp_path: Path) -> None:
    before = state(model)
    style = adapter(lora(model, 100), tmp_path)
    fitting = Fitting(model, keep="cpu")
    for text, unet in ((1.0, 0.0), (0.0, -0.5), (0.3, 0.7)):
        [match] = fitting.wear([Use(style, text, unet)])
        assert (match.matched, match.sentence()) == (len(style.changes), "")
        after = state(model)
        touched = [not same([old], [new]) for old, new in zip(before, after, strict=True)]
        assert touched == [bool(unet), *[bool(text)] * (len(parts(model)) - 1)]
    path = "lora_te1_encoder_layers_2_mlp_fc1"
    change = style.changes[path]
    own = before[1][f"{targets_of(model)[path].path}.weight"]
    expected = own + 0.3 * change.tensors["lora_up.weight"] @ change.tensors["lora_down.weight"]
    assert torch.allclose(targets_of(model)[path].weight, expected, atol=1e-6)
    fitting.wear([])
    assert same(state(model), before)


def test_a_gpu_keeps_copies_only_where_pictures_have_room_beside_them() -> None:
    """A LoRA on all layers of SDXL wants 6 GB of copies: a card of 24 GB holds them, one of 12 does not."""
    weights = [torch.empty(3_000_000_000, dtype=torch.float16, device="meta")]
    assert room_for(weights, 17_000_000_000) and not room_for(weights, 5_000_000_000)


def test_several_at_once_and_changed(model: StableDiffusion, tmp_path: Path) -> None:
    """However a set of adapters was reached, the weights are the same; what stays is not computed."""
    before = state(model)
    one = adapter(lora(model, 100), tmp_path, "one")
    two = adapter(lora(model, 500, ("attn", "mlp")), tmp_path, "two")
    with applied(model, [Use(one, 0.5, 0.5), Use(two, 1, -1)]):
        straight = state(model)
    assert same(state(model), before)
    fitting = Fitting(model)
    fitting.wear([Use(two, 0.2, 0.9)])
    fitting.wear([Use(one)])
    fitting.wear([(one, 0.5, 0.5), (two, 1, -1)])  # type: ignore[list-item]
    assert same(state(model), straight)
    versions = {name: target.weight._version for name, target in targets_of(model).items()}
    fitting.wear([Use(one, 0.5, 0.5), Use(two, 1, -0.9)])
    for name, target in targets_of(model).items():
        changed = target.weight._version != versions[name]
        assert changed == (target.part == "unet" and "attn" in name)
    fitting.wear([])
    assert same(state(model), before)


def test_half_precision_is_rounded_once(tmp_path: Path) -> None:
    model = create_checkpoint(TINY, seed=3)
    for part in parts(model):
        part.half()
    before = state(model)
    many = [
        Use(adapter(lora(model, seed, ("mid_block",)), tmp_path, str(seed)), 1, 1e-3) for seed in range(5)
    ]
    name = "lora_unet_mid_block_attentions_0_proj_in"
    own = targets_of(model)[name].weight.clone()
    with applied(model, many):
        found = targets_of(model)[name].weight.clone()
    total = own.double()
    for use in many:
        tensors = use.adapter.changes[name].tensors
        delta = tensors["lora_up.weight"].flatten(1) @ tensors["lora_down.weight"].flatten(1)
        total += 1e-3 * delta.reshape(own.shape).double()
    assert torch.equal(found, total.half())
    assert same(state(model), before)


def test_an_error_inside_leaves_the_models_own_weights(tmp_path: Path) -> None:
    model = create_checkpoint(TINY, seed=3)
    before = state(model)
    with pytest.raises(RuntimeError, match="drawn"), applied(model, [Use(adapter(lora(model, 1), tmp_path))]):
        raise RuntimeError("drawn")
    assert same(state(model), before)


def test_parts_without_a_place_are_named_and_counted(tmp_path: Path) -> None:
    model = create_checkpoint(TINY, seed=3)
    tensors = lora(model, 1, ("mid_block",))
    known = len(tensors) // 2
    for index in range(4):
        name = f"lora_unet_down_blocks_7_attentions_{index}_proj_in"
        tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"] = (
            random(2, 4, seed=1),
            random(4, 2, seed=2),
        )
    tensors["lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q.diff_b"] = random(32, seed=1)
    with applied(model, [Use(adapter(tensors, tmp_path))]) as [match]:
        assert (match.matched, len(match.unmatched)) == (known, 5)
        assert match.sentence().startswith(
            f"style: 5 of {known + 5} parts have no place in this model (lora_unet"
        )
        assert match.unmatched[-1].endswith("_to_q (bias)") or any(
            "(bias)" in name for name in match.unmatched
        )


@pytest.mark.parametrize(
    ("made_for", "used_on", "message"),
    [
        (TINY_SDXL, TINY, r"attn2_to_k is for \[16, 40\].*expected \[16, 16\], as this SD1 model"),
        (TINY, TINY_SDXL, r"is for \[.*\], as this SDXL model has there"),
    ],
)
def test_another_familys_adapter(
    made_for: Architecture, used_on: Architecture, message: str, tmp_path: Path
) -> None:
    """Modules of one name and another shape are refused before anything changes."""
    style = adapter(lora(create_checkpoint(made_for, seed=3), 1, ("unet",)), tmp_path)
    model = create_checkpoint(used_on, seed=3)
    before = state(model)
    with pytest.raises(ModelError, match=message), applied(model, [Use(style)]):
        pass
    assert same(state(model), before)


def test_nothing_matched_tells_the_family(tmp_path: Path) -> None:
    name = "lora_unet_double_blocks_0_img_attn_qkv"
    style = adapter(
        {f"{name}.lora_down.weight": random(2, 4, seed=1), f"{name}.lora_up.weight": random(4, 2, seed=2)},
        tmp_path,
    )
    model = create_checkpoint(TINY, seed=3)
    with pytest.raises(
        ModelError, match=r"no module of this SD1 model \(it is for FLUX\).*1 modules such as lora_unet_d"
    ):
        Fitting(model).wear([Use(style)])
