"""The modules of a model that an adapter may change, under each name that files give them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

from aid.sd.adapter.name import TEXT, TEXT_2, UNET, kohya_name, module_name
from aid.sd.model.anatomy import Shape, anatomy
from aid.sd.model.architecture import Architecture, Family
from aid.sd.model.layouts import PLACES, Place
from aid.sd.model.layouts import UNET as LDM_UNET

if TYPE_CHECKING:  # who bakes waits for no torch
    import torch
    from torch import Tensor

    from aid.sd.model.checkpoint import StableDiffusion

PREFIXES = {"unet": UNET, "text_encoder": TEXT, "text_encoder_2": TEXT_2}


@dataclass(frozen=True)
class Target:
    """A module with weights: its one name, its part (such as `unet`) and path there, what kohya's tools call
    it, and the shapes of its weight and bias; of a loaded model also the module."""

    name: str
    part: str
    path: str
    kohya: str
    shape: Shape
    bias_shape: Shape | None = None
    own: torch.nn.Module | None = None

    @property
    def module(self) -> torch.nn.Module:
        assert self.own is not None
        return self.own

    @property
    def weight(self) -> Tensor:
        return cast("Tensor", self.module.weight)

    @property
    def bias(self) -> Tensor | None:
        return None if self.bias_shape is None else cast("Tensor", self.module.bias)

    def place(self, parameter: str, family: Family) -> Place:
        """Where its `weight` or `bias` lies in a single file."""
        return PLACES[self.part](f"{self.path}.{parameter}", family)


Targets = dict[str, Target]


def targets_of(model: StableDiffusion) -> Targets:
    """A loaded model's modules by every name they go by: diffusers' paths, and for the U-Net LDM's too."""
    from torch import Tensor

    found: Targets = {}
    for part, whole in model.parts().items():
        for path, module in whole.named_modules() if part in PREFIXES else ():
            if isinstance(weight := getattr(module, "weight", None), Tensor):
                bias = getattr(module, "bias", None)
                shape = tuple(bias.shape) if isinstance(bias, Tensor) else None
                target = _target(model.architecture.family, part, path, tuple(weight.shape), shape, module)
                found.update(_named(target, model.architecture.family))
    return found


@lru_cache(maxsize=8)
def skeleton(architecture: Architecture) -> Mapping[str, Target]:
    """The same of a model that isn't there."""
    found: Targets = {}
    for part, modules in anatomy(architecture).items():
        for module in modules:
            target = _target(architecture.family, part, *module)
            found.update(_named(target, architecture.family))
    return found


def kohya_targets(targets: Mapping[str, Target], convolutions: bool = False) -> Targets:
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
        if len(target.shape) > 1  # no norms
        and any(word in f".{target.path}." for word in inner[target.part])
    }


def _target(family: Family, part: str, path: str, *told: Any) -> Target:
    name, xl = module_name(PREFIXES[part] + path), family == "sdxl"
    kohya = kohya_name(name, xl) if part != "unet" else _ldm_name(path, family) if xl else name
    return Target(name, part, path, kohya, *told)


def _named(target: Target, family: Family) -> Iterator[tuple[str, Target]]:
    """The module under its one name; in the U-Net also under LDM's path, which kohya's SDXL files use."""
    yield target.name, target
    if target.part == "unet":
        yield _ldm_name(target.path, family), target


def _ldm_name(path: str, family: Family) -> str:
    key = PLACES["unet"](f"{path}.weight", family).key
    return module_name(UNET + key.removeprefix(LDM_UNET).removesuffix(".weight"))
