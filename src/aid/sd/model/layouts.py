"""Names in two worlds: LDM and SGM single files, and diffusers' and transformers' modules.

Each table maps a diffusers path to its LDM path; numbers are computed where the two count differently.
Source: the key lists of the released SD1, SD2 and SDXL single files, OpenCLIP's and diffusers' modules.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar

from aid.sd.model.architecture import Family

if TYPE_CHECKING:  # names alone need no torch, and who merges waits for none
    from torch import Tensor

UNET = "model.diffusion_model."
TEXT = "cond_stage_model.transformer.text_model."
OLD_TEXT = "cond_stage_model.transformer."  # NAI and naifu files leave `text_model.` out
VAE = "first_stage_model."
TEXT_2 = "conditioner.embedders.1.model."  # SDXL's OpenCLIP bigG
TEXT_PREFIX: dict[Family, str] = {
    "sd1": TEXT,
    "sd2": "cond_stage_model.model.",
    "sdxl": "conditioner.embedders.0.transformer.text_model.",
}
TEXT_ROOT: dict[Family, str] = {
    "sd1": "cond_stage_model.",
    "sd2": "cond_stage_model.",
    "sdxl": "conditioner.",
}
POSITION_IDS = f"{TEXT}embeddings.position_ids"
POSITIONS: dict[Family, str] = {  # int64, 0 to 76; OpenCLIP has none
    "sd1": POSITION_IDS,
    "sdxl": f"{TEXT_PREFIX['sdxl']}embeddings.position_ids",
}
PROJECTION = f"{TEXT_2}text_projection"
AVERAGE = "model_ema."
PLACES_KEPT = 8192  # of each part; SDXL has 2,515 in all

FLAT = re.compile(r"mid\.attn_1\.(q|k|v|proj_out)\.weight$")  # the VAE's attention
T = TypeVar("T")
Rule = tuple[str, Callable[[re.Match[str]], str] | str]


def _place(template: str, offset: int = 0, stride: int = 3) -> Callable[[re.Match[str]], str]:
    """A replacement that counts LDM's blocks: `offset + stride * level + index`."""

    def replace(match: re.Match[str]) -> str:
        level, *index = (int(number) for number in match.groups())
        return template.format(offset + stride * level + sum(index))

    return replace


UNET_PLACES: tuple[Rule, ...] = (
    (r"^conv_in\.", "input_blocks.0.0."),
    (r"^time_embedding\.linear_1\.", "time_embed.0."),
    (r"^time_embedding\.linear_2\.", "time_embed.2."),
    (r"^add_embedding\.linear_1\.", "label_emb.0.0."),
    (r"^add_embedding\.linear_2\.", "label_emb.0.2."),
    (r"^conv_norm_out\.", "out.0."),
    (r"^conv_out\.", "out.2."),
    (r"^down_blocks\.(\d)\.resnets\.(\d)\.", _place("input_blocks.{}.0.", 1)),
    (r"^down_blocks\.(\d)\.attentions\.(\d)\.", _place("input_blocks.{}.1.", 1)),
    (r"^down_blocks\.(\d)\.downsamplers\.0\.conv\.", _place("input_blocks.{}.0.op.", 3)),
    (r"^mid_block\.resnets\.0\.", "middle_block.0."),
    (r"^mid_block\.attentions\.0\.", "middle_block.1."),
    (r"^mid_block\.resnets\.1\.", "middle_block.2."),
    (r"^up_blocks\.(\d)\.resnets\.(\d)\.", _place("output_blocks.{}.0.")),
    (r"^up_blocks\.(\d)\.attentions\.(\d)\.", _place("output_blocks.{}.1.")),
    (r"^up_blocks\.(\d)\.upsamplers\.0\.conv\.", _place("output_blocks.{}.2.conv.", 2)),
)
UNET_RESNET: tuple[Rule, ...] = (
    (r"\.norm1\.(?=weight$|bias$)", ".in_layers.0."),
    (r"\.conv1\.", ".in_layers.2."),
    (r"\.norm2\.(?=weight$|bias$)", ".out_layers.0."),
    (r"\.conv2\.", ".out_layers.3."),
    (r"\.time_emb_proj\.", ".emb_layers.1."),
    (r"\.conv_shortcut\.", ".skip_connection."),
)
VAE_PLACES: tuple[Rule, ...] = (
    (r"\.down_blocks\.(\d)\.resnets\.", r".down.\1.block."),
    (r"\.down_blocks\.(\d)\.downsamplers\.0\.", r".down.\1.downsample."),
    (r"\.up_blocks\.(\d)\.resnets\.", _place(".up.{}.block.", 3, -1)),
    (r"\.up_blocks\.(\d)\.upsamplers\.0\.", _place(".up.{}.upsample.", 3, -1)),
    (r"\.mid_block\.resnets\.0\.", ".mid.block_1."),
    (r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
    (r"\.mid_block\.attentions\.0\.group_norm\.", ".mid.attn_1.norm."),
    (r"\.mid_block\.attentions\.0\.to_out\.0\.", ".mid.attn_1.proj_out."),
    (r"\.mid_block\.attentions\.0\.to_([qkv])\.", r".mid.attn_1.\1."),
    (r"\.mid_block\.attentions\.0\.(q)uery\.", r".mid.attn_1.\1."),  # diffusers' names until 0.13
    (r"\.mid_block\.attentions\.0\.(k)ey\.", r".mid.attn_1.\1."),
    (r"\.mid_block\.attentions\.0\.(v)alue\.", r".mid.attn_1.\1."),
    (r"\.mid_block\.attentions\.0\.proj_attn\.", ".mid.attn_1.proj_out."),
    (r"\.conv_norm_out\.", ".norm_out."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
)


OPEN_CLIP: tuple[Rule, ...] = (
    (r"^embeddings\.token_embedding\.", "token_embedding."),
    (r"^embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^final_layer_norm\.", "ln_final."),
    (r"^text_projection\.weight$", "text_projection"),
    (r"^encoder\.layers\.(\d+)\.layer_norm([12])\.", r"transformer.resblocks.\1.ln_\2."),
    (r"^encoder\.layers\.(\d+)\.mlp\.fc1\.", r"transformer.resblocks.\1.mlp.c_fc."),
    (r"^encoder\.layers\.(\d+)\.mlp\.fc2\.", r"transformer.resblocks.\1.mlp.c_proj."),
    (r"^encoder\.layers\.(\d+)\.self_attn\.out_proj\.", r"transformer.resblocks.\1.attn.out_proj."),
    (r"^encoder\.layers\.(\d+)\.self_attn\.[qkv]_proj\.", r"transformer.resblocks.\1.attn.in_proj_"),
)


@dataclass(frozen=True)
class Place:
    """Where a module's tensor lies in a single file: under `key`, as one `third` of it (OpenCLIP keeps an
    attention's q, k and v in one), or `transposed`."""

    key: str
    third: int | None = None
    transposed: bool = False

    @property
    def flat(self) -> bool:
        """Whether the file keeps a matrix as a 1x1 convolution: [c, c] -> [c, c, 1, 1]."""
        return FLAT.search(self.key) is not None

    def shape(self, own: tuple[int, ...]) -> tuple[int, ...]:
        """The file's shape of the module's tensor."""
        if self.third is not None:
            own = (3 * own[0], *own[1:])
        own = own[::-1] if self.transposed else own
        return (*own, 1, 1) if self.flat and len(own) == 2 else own

    def own(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """The module's shape of the file's tensor; of a matrix that is kept as a convolution, that one's."""
        if self.third is not None:
            stored = (stored[0] // 3, *stored[1:])
        return stored[::-1] if self.transposed else stored

    def take(self, stored: Tensor) -> Tensor:
        """The module's tensor out of the file's."""
        if self.third is not None:
            height = len(stored) // 3
            stored = stored[height * self.third : height * (self.third + 1)]
        return stored.T if self.transposed else stored


@lru_cache(PLACES_KEPT)
def unet_place(key: str, family: Family) -> Place:
    """Of a diffusers U-Net key."""
    return Place(unet_key(key, family))


@lru_cache(PLACES_KEPT)
def vae_place(key: str, family: Family) -> Place:
    """Of a diffusers VAE key."""
    return Place(vae_key(key))


@lru_cache(PLACES_KEPT)
def text_place(key: str, family: Family) -> Place:
    """Of a transformers CLIPTextModel key; transformers 5 leaves `text_model.` out of some."""
    key = key.removeprefix("text_model.")
    prefix = TEXT_PREFIX[family]
    return _open_clip_place(prefix, key) if family == "sd2" else Place(prefix + key)


@lru_cache(PLACES_KEPT)
def text_2_place(key: str, family: Family) -> Place:
    """Of a transformers CLIPTextModelWithProjection key, SDXL's second text encoder."""
    return _open_clip_place(TEXT_2, key.removeprefix("text_model."))


def _open_clip_place(prefix: str, key: str) -> Place:
    attention = re.search(r"self_attn\.([qkv])_proj\.", key)
    third = "qkv".index(attention[1]) if attention else None
    return Place(prefix + _apply(OPEN_CLIP, key, once=True), third, key == "text_projection.weight")


PLACES: dict[str, Callable[[str, Family], Place]] = {
    "unet": unet_place,
    "text_encoder": text_place,
    "text_encoder_2": text_2_place,
    "vae": vae_place,
}


def join(parts: Sequence[tuple[Place, Tensor]]) -> Tensor:
    """The file's tensor, of all the modules' tensors that lie under its key."""
    import torch

    in_order = [tensor for _, tensor in sorted(parts, key=lambda part: part[0].third or 0)]
    place = parts[0][0]
    joined = torch.cat(in_order) if place.third is not None else in_order[0]
    joined = joined.T if place.transposed else joined
    return joined[:, :, None, None] if place.flat and joined.dim() == 2 else joined


def _apply(rules: tuple[Rule, ...], key: str, once: bool) -> str:
    for pattern, replacement in rules:
        renamed = re.sub(pattern, replacement, key)
        if once and renamed != key:
            return renamed
        key = renamed
    return key


def unet_key(key: str, family: Family = "sd1") -> str:
    """A diffusers U-Net key in LDM's words, with its prefix."""
    if family != "sdxl" and key.startswith("up_blocks.0.upsamplers.0.conv."):  # no attention stands before it
        return f"{UNET}output_blocks.2.1.conv.{key.rpartition('.')[2]}"
    if ".resnets." in key:
        key = _apply(UNET_RESNET, key, once=True)
    return UNET + _apply(UNET_PLACES, key, once=True)


def vae_key(key: str) -> str:
    """A diffusers VAE key in LDM's words, with its prefix."""
    return VAE + _apply(VAE_PLACES, key, once=False)


def modern_keys(tensors: Mapping[str, T]) -> dict[str, T]:
    """Rename the NAI lineage's text encoder to SD1's names; drop nothing."""
    return {modern_key(key): tensor for key, tensor in tensors.items()}


def modern_key(key: str) -> str:
    old = key.startswith(OLD_TEXT) and not key.startswith(TEXT)
    if old and key[len(OLD_TEXT) :].split(".")[0] in ("embeddings", "encoder", "final_layer_norm"):
        return TEXT + key[len(OLD_TEXT) :]
    return key


def average_key(key: str) -> str:
    """The name of a U-Net tensor's moving average, whose dots LDM leaves out."""
    return AVERAGE + key.removeprefix("model.").replace(".", "")
