"""Adapters beside the tools that people know them from: diffusers with PEFT, and LyCORIS."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import PNDMScheduler, StableDiffusionPipeline
from lycoris.modules.full import FullModule
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from lycoris.modules.norms import NormModule
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor, nn

from aid.sd.adapter.file import load_adapter
from aid.sd.adapter.fitting import applied
from aid.sd.adapter.target import kohya_targets, targets_of
from aid.sd.adapter.use import Use
from aid.sd.model.checkpoint import StableDiffusion, load_checkpoint
from aid.sd.model.tokenizer import load_tokenizer


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) / 4


def kohya_file(model: StableDiffusion, convolutions: bool) -> dict[str, Tensor]:
    """A LoRA on everything that kohya trains; alpha is half the rank."""
    tensors = {}
    for seed, (name, target) in enumerate(kohya_targets(targets_of(model), convolutions).items()):
        out, into, *kernel = target.shape
        tensors[f"{name}.lora_down.weight"] = random(2, into, *kernel, seed=2 * seed)
        tensors[f"{name}.lora_up.weight"] = random(out, 2, *[1] * len(kernel), seed=2 * seed + 1)
        tensors[f"{name}.alpha"] = torch.tensor(1.0)
    return tensors


def pipeline(model: StableDiffusion) -> Any:
    load_tokenizer.cache_clear()
    return StableDiffusionPipeline(
        model.vae, model.text_encoder, load_tokenizer(), model.unet, PNDMScheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


@torch.no_grad()
def outputs(model: Any) -> tuple[Tensor, Tensor]:
    """The text encoder's on some words, and the U-Net's on a context that doesn't depend on them."""
    ids = torch.tensor([[49406, 320, 1125, 539, 49407]])
    context = random(2, 77, 16, seed=1)
    noise = model.unet(random(2, 4, 8, 8, seed=2), torch.tensor([10, 600]), context).sample
    return model.text_encoder(ids).last_hidden_state, noise


def closest(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...], plain: tuple[Tensor, ...]) -> None:
    """Within 1e-5 of each other, and far from what the model gives without an adapter."""
    for one, other, without in zip(ours, theirs, plain, strict=True):
        assert (one - other).norm() / other.norm() < 1e-5
        assert (one - without).norm() / without.norm() > 1e-2


@pytest.mark.parametrize(("weights", "convolutions"), [((1.0, 1.0), False), ((0.3, 0.8), True)])
def test_a_kohya_file_as_in_diffusers(
    weights: tuple[float, float], convolutions: bool, lively_checkpoint: Path, tmp_path: Path
) -> None:
    ours, theirs = load_checkpoint(lively_checkpoint), load_checkpoint(lively_checkpoint)
    save_file(kohya_file(ours, convolutions), tmp_path / "style.safetensors")
    plain = outputs(ours)
    pipe = pipeline(theirs)
    pipe.load_lora_weights(str(tmp_path), weight_name="style.safetensors", adapter_name="style")
    pipe.set_adapters("style", adapter_weights={"text_encoder": weights[0], "unet": weights[1]})
    with applied(ours, [Use(load_adapter(tmp_path / "style.safetensors"), *weights)]) as matches:
        assert not matches[0].unmatched
        closest(outputs(ours), outputs(pipe), plain)
    assert all(torch.equal(one, other) for one, other in zip(outputs(ours), plain, strict=True))


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"use_dora": True}])
def test_a_file_that_diffusers_saved(
    options: dict[str, bool], lively_checkpoint: Path, tmp_path: Path
) -> None:
    """With alpha only in the metadata, rank-stabilised, and as DoRA."""
    ours, theirs = load_checkpoint(lively_checkpoint), load_checkpoint(lively_checkpoint)
    plain = outputs(ours)
    pipe = pipeline(theirs)
    for part, names in (("unet", ["to_q", "to_k", "to_out.0"]), ("text_encoder", ["q_proj", "fc1"])):
        config = LoraConfig(r=4, lora_alpha=7, target_modules=names, **options)
        getattr(pipe, part).add_adapter(config, adapter_name="style")
        for seed, (name, parameter) in enumerate(getattr(pipe, part).named_parameters()):
            if "lora_A" in name or "lora_B" in name or "magnitude" in name:
                parameter.data += random(*parameter.shape, seed=seed).abs() / 4
    pipe.save_lora_weights(
        str(tmp_path), *[_state(getattr(pipe, part)) for part in ("unet", "text_encoder")],
        unet_lora_adapter_metadata=_config(pipe.unet),
        text_encoder_lora_adapter_metadata=_config(pipe.text_encoder),
    )  # fmt: skip
    adapter = load_adapter(tmp_path / "pytorch_lora_weights.safetensors")
    with applied(ours, [Use(adapter)]) as matches:
        assert not matches[0].unmatched
        closest(outputs(ours), outputs(pipe), plain)


def _state(module: Any) -> dict[str, Tensor]:
    from peft.utils import get_peft_model_state_dict

    state: dict[str, Tensor] = get_peft_model_state_dict(module, adapter_name="style")
    return state


def _config(module: Any) -> dict[str, Any]:
    config: dict[str, Any] = module.peft_config["style"].to_dict()
    return config


LAYERS: dict[str, nn.Module] = {
    "linear": nn.Linear(24, 12),
    "convolution": nn.Conv2d(8, 12, 3, padding=1),
    "pointwise": nn.Conv2d(24, 12, 1),
}
MODULES: dict[str, tuple[Any, dict[str, Any]]] = {
    "lora": (LoConModule, {}),
    "cp": (LoConModule, {"use_tucker": True}),
    "rank-stabilised": (LoConModule, {"rs_lora": True}),
    "dora": (LoConModule, {"weight_decompose": True}),
    "dora-in": (LoConModule, {"weight_decompose": True, "wd_on_out": False}),
    "loha": (LohaModule, {}),
    "loha-cp": (LohaModule, {"use_tucker": True}),
    "loha-dora": (LohaModule, {"weight_decompose": True}),
    "lokr": (LokrModule, {"factor": 2}),
    "lokr-cp": (LokrModule, {"factor": 2, "use_tucker": True}),
    "lokr-both": (LokrModule, {"factor": 4, "decompose_both": True, "lora_dim": 1}),
    "lokr-whole": (LokrModule, {"factor": 4, "full_matrix": True}),
    "lokr-dora": (LokrModule, {"factor": 2, "weight_decompose": True, "wd_on_out": False}),
    "full": (FullModule, {}),
}


@pytest.mark.parametrize("layer", list(LAYERS))
@pytest.mark.parametrize("kind", list(MODULES))
@torch.no_grad()
def test_each_kind_as_in_lycoris(kind: str, layer: str, tmp_path: Path) -> None:
    """What LyCORIS's module gives in training is what its file gives here. DoRA's own scale agrees at 1;
    at other weights A1111's rule counts, which is another."""
    maker, options = MODULES[kind]
    original: Any = copy.deepcopy(LAYERS[layer])
    plain = {name: parameter.clone() for name, parameter in original.named_parameters()}
    theirs = maker("x", original, **{"lora_dim": 2, "alpha": 0.5, **options})
    theirs.apply_to()
    for seed, parameter in enumerate(theirs.parameters()):
        parameter += random(*parameter.shape, seed=seed).abs()
    stored = {f"lora_unet_x.{name}": tensor.contiguous() for name, tensor in theirs.state_dict().items()}
    stored.pop("lora_unet_x.dtype_tensor", None)
    save_file(stored, tmp_path / "x.safetensors")
    change = load_adapter(tmp_path / "x.safetensors").changes["lora_unet_x"]
    operation, shape = (
        (F.linear, (3, 24)) if layer == "linear" else (F.conv2d, (2, plain["weight"].shape[1], 5, 5))
    )
    picture = random(*shape, seed=9)
    padding = {"padding": 1} if layer == "convolution" else {}
    for strength in (1.0,) if change.magnitude is not None or kind == "full" else (1.0, -0.7):
        theirs.multiplier = strength
        weight = change.applied(plain["weight"], strength)
        ours = operation(picture, weight, change.applied_to_bias(plain["bias"], strength), **padding)
        assert torch.allclose(ours, original(picture), atol=1e-5, rtol=1e-5)
        assert not torch.allclose(weight, plain["weight"], atol=1e-3)


def test_norms_and_biases_as_in_lycoris(tmp_path: Path) -> None:
    original = nn.GroupNorm(2, 8)
    theirs = NormModule("x", original)
    theirs.w_norm.data, theirs.b_norm.data = random(8, seed=1), random(8, seed=2)
    save_file(
        {"lora_unet_x.w_norm": theirs.w_norm.data, "lora_unet_x.b_norm": theirs.b_norm.data},
        tmp_path / "x.safetensors",
    )
    change = load_adapter(tmp_path / "x.safetensors").changes["lora_unet_x"]
    weight, bias = theirs.get_merged_weight(0.4)
    assert torch.allclose(change.applied(original.weight.detach(), 0.4), weight)
    assert torch.allclose(change.applied_to_bias(original.bias.detach(), 0.4), bias)
