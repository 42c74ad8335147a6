"""The modules of a model that an adapter may change, under each name that files give them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from aid.sd.adapter.name import TEXT, TEXT_2, UNET, kohya_name, module_name
from aid.sd.model.architecture import Architecture, Family
from aid.sd.model.checkpoint import StableDiffusion
from aid.sd.model.layouts import PLACES, Place
from aid.sd.model.layouts import UNET as LDM_UNET

PREFIXES = {"unet": UNET, "text_encoder": TEXT, "text_encoder_2": TEXT_2}


@dataclass(frozen=True)
class Target:
    """A module with weights: its one name, its part (such as `unet`) and path there, and what kohya's
    tools call it."""

    name: str
    part: str
    path: str
    kohya: str
    module: torch.nn.Module

    @property
    def weight(self) -> Tensor:
        weight = self.module.weight
        assert isinstance(weight, Tensor)
        return weight

    @property
    def bias(self) -> Tensor | None:
        bias = getattr(self.module, "bias", None)
        return bias if isinstance(bias, Tensor) else None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.weight.shape)

    @property
    def bias_shape(self) -> tuple[int, ...] | None:
        return None if self.bias is None else tuple(self.bias.shape)

    def place(self, parameter: str, family: Family) -> Place:
        """Where its `weight` or `bias` lies in a single file."""
        return PLACES[self.part](f"{self.path}.{parameter}", family)


Targets = dict[str, Target]


def targets_of(model: StableDiffusion) -> Targets:
    """A loaded model's modules by every name they go by: diffusers' paths, and for the U-Net LDM's too."""
    parts = {part: module for part, module in model.parts().items() if part in PREFIXES}
    return _targets(parts, model.architecture.family)


def skeleton(architecture: Architecture) -> Targets:
    """The same of a model without weights: its modules are on the meta device."""
    with torch.device("meta"):
        parts: dict[str, torch.nn.Module] = {
            "unet": UNet2DConditionModel(**architecture.unet_config()),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**architecture.text_config())),
        }
        if architecture.text_2_width:
            config = CLIPTextConfig(**architecture.text_2_config())
            parts["text_encoder_2"] = CLIPTextModelWithProjection(config)
    return _targets(parts, architecture.family)


def kohya_targets(targets: Targets, convolutions: bool = False) -> Targets:
    """Of a model's modules those that kohya's trainer puts LoRA on, by its names.

    Linear layers and 1x1 convolutions of the U-Net's transformers, and the text encoders' attention and
    MLP; with `convolutions` also all of the residual blocks, downsamplers and upsamplers.
    """
    inner = {"unet": (".attentions.",), "text_encoder": (".self_attn.", ".mlp.")}
    inner["text_encoder_2"] = inner["text_encoder"]
    if convolutions:
        inner["unet"] += (".resnets.", ".downsamplers.", ".upsamplers.")
    return {
        target.kohya: target
        for target in targets.values()
        if isinstance(target.module, torch.nn.Linear | torch.nn.Conv2d)
        and any(word in f".{target.path}." for word in inner[target.part])
    }


def _targets(parts: Mapping[str, torch.nn.Module], family: Family) -> Targets:
    found = {}
    for part, module in parts.items():
        for path, inner in module.named_modules():
            if isinstance(getattr(inner, "weight", None), Tensor):
                for target in _named(part, path, inner, family):
                    found[target[0]] = target[1]
    return found


def _named(part: str, path: str, module: torch.nn.Module, family: Family) -> Iterator[tuple[str, Target]]:
    """The module under its one name; in the U-Net also under LDM's path, which kohya's SDXL files use."""
    name = module_name(PREFIXES[part] + path)
    if part != "unet":
        yield name, Target(name, part, path, kohya_name(name, family == "sdxl"), module)
        return
    key = PLACES[part](f"{path}.weight", family).key
    other = module_name(UNET + key.removeprefix(LDM_UNET).removesuffix(".weight"))
    target = Target(name, part, path, other if family == "sdxl" else name, module)
    yield name, target
    yield other, target
