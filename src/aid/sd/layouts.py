"""SD1's names in two worlds: LDM single files, and diffusers' and transformers' modules.

Each table maps a diffusers path to its LDM path; numbers are computed where the two count differently.
Source: the key lists of the released SD1 single file and diffusers' modules.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from torch import Tensor

UNET = "model.diffusion_model."
TEXT = "cond_stage_model.transformer.text_model."
OLD_TEXT = "cond_stage_model.transformer."  # NAI and naifu files leave `text_model.` out
VAE = "first_stage_model."
POSITION_IDS = f"{TEXT}embeddings.position_ids"

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
    (r"^up_blocks\.0\.upsamplers\.0\.conv\.", "output_blocks.2.1.conv."),
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
    (r"\.conv_norm_out\.", ".norm_out."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
)


def _apply(rules: tuple[Rule, ...], key: str, once: bool) -> str:
    for pattern, replacement in rules:
        renamed = re.sub(pattern, replacement, key)
        if once and renamed != key:
            return renamed
        key = renamed
    return key


def unet_key(key: str) -> str:
    """A diffusers U-Net key in LDM's words, with its prefix."""
    if ".resnets." in key:
        key = _apply(UNET_RESNET, key, once=True)
    return UNET + _apply(UNET_PLACES, key, once=True)


def vae_key(key: str) -> str:
    """A diffusers VAE key in LDM's words, with its prefix."""
    return VAE + _apply(VAE_PLACES, key, once=False)


def text_key(key: str) -> str:
    """A transformers CLIPTextModel key in LDM's words; transformers 5 leaves `text_model.` out."""
    return TEXT + key.removeprefix("text_model.")


def vae_shape(key: str, tensor: Tensor) -> Tensor:
    """LDM keeps the VAE's attention as 1x1 convolutions: [c, c] -> [c, c, 1, 1]."""
    is_projection = re.search(r"mid\.attn_1\.(q|k|v|proj_out)\.weight$", key)
    return tensor[:, :, None, None] if is_projection and tensor.dim() == 2 else tensor


def modern_keys(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the NAI lineage's text encoder to SD1's names; drop nothing."""
    return {modern_key(key): tensor for key, tensor in tensors.items()}


def modern_key(key: str) -> str:
    old = key.startswith(OLD_TEXT) and not key.startswith(TEXT)
    if old and key[len(OLD_TEXT) :].split(".")[0] in ("embeddings", "encoder", "final_layer_norm"):
        return TEXT + key[len(OLD_TEXT) :]
    return key
