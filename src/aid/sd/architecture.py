"""The shapes of an SD1-family model, as data: the real one, and narrower ones of the same topology."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from aid.errors import ModelError

METADATA_KEY = "aid.architecture"


class Architecture(BaseModel):
    """Widths, heads and norm groups. Widths can be read from a file's tensors; heads and groups can't,
    so a file that differs from SD1 carries them in its metadata."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    unet_widths: tuple[int, int, int, int] = (320, 640, 1280, 1280)
    unet_heads: int = 8
    unet_groups: int = 32
    text_width: int = 768
    text_layers: int = 12
    text_heads: int = 12
    vae_widths: tuple[int, int, int, int] = (128, 256, 512, 512)
    vae_groups: int = 32
    native_edge_px: int = 512
    """The size it was trained at: what a picture's default size is taken from."""

    def unet_config(self) -> dict[str, Any]:
        """diffusers' UNet2DConditionModel. Its `attention_head_dim` is SD1's number of heads."""
        return {
            "sample_size": self.native_edge_px // 8,
            "block_out_channels": self.unet_widths,
            "attention_head_dim": self.unet_heads,
            "norm_num_groups": self.unet_groups,
            "cross_attention_dim": self.text_width,
        }

    def text_config(self) -> dict[str, Any]:
        """transformers' CLIPTextConfig."""
        return {
            "hidden_size": self.text_width,
            "intermediate_size": 4 * self.text_width,
            "projection_dim": self.text_width,
            "num_hidden_layers": self.text_layers,
            "num_attention_heads": self.text_heads,
            "hidden_act": "quick_gelu",
            "vocab_size": 49408,
            "bos_token_id": 49406,
            "eos_token_id": 49407,
            "pad_token_id": 49407,
        }

    def vae_config(self) -> dict[str, Any]:
        """diffusers' AutoencoderKL."""
        return {
            "down_block_types": ["DownEncoderBlock2D"] * 4,
            "up_block_types": ["UpDecoderBlock2D"] * 4,
            "block_out_channels": self.vae_widths,
            "layers_per_block": 2,
            "latent_channels": 4,
            "norm_num_groups": self.vae_groups,
            "sample_size": self.native_edge_px,
        }


SD1 = Architecture()
TINY = Architecture(
    unet_widths=(8, 16, 32, 32), unet_heads=2, unet_groups=4,
    text_width=16, text_heads=2, vae_widths=(4, 8, 16, 16), vae_groups=2, native_edge_px=64,
)  # fmt: skip

CONV_IN = "model.diffusion_model.input_blocks.0.0.weight"
REQUIRED = (
    CONV_IN,
    "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight",
    "first_stage_model.encoder.conv_in.weight",
)


def detect(shapes: Mapping[str, Sequence[int]], metadata: Mapping[str, str], name: str) -> Architecture:
    """The architecture of an SD1 single file, from its metadata or else from its tensors' shapes.

    Raises ModelError for another family, or for a file without U-Net, text encoder or VAE.
    """
    _refuse_other_families(shapes, name)
    if METADATA_KEY in metadata:
        try:
            return Architecture.model_validate_json(metadata[METADATA_KEY])
        except ValidationError as error:
            raise ModelError(f"{name} has a malformed {METADATA_KEY} in its metadata") from error
    width = shapes[CONV_IN][0]
    if width != SD1.unet_widths[0]:
        raise ModelError(
            f"{name} is {width} channels wide and does not say how many heads and norm groups it has",
            f"SD1's {SD1.unet_widths[0]} channels, or `{METADATA_KEY}` in the metadata",
        )
    return SD1


def _refuse_other_families(shapes: Mapping[str, Sequence[int]], name: str) -> None:
    others = {
        "conditioner.embedders.1.model.ln_final.weight": "SDXL",
        "conditioner.embedders.0.model.ln_final.weight": "the SDXL refiner",
        "cond_stage_model.model.ln_final.weight": "SD2",
        "model.diffusion_model.x_embedder.proj.weight": "SD3",
    }
    for key, family in others.items():
        if key in shapes:
            raise ModelError(f"{name} is {family}", "an SD1 checkpoint", "Choose an SD1.x model.")
    for key in REQUIRED:
        if key not in shapes:
            raise ModelError(f"{name} has no {key}", "an SD1 single-file checkpoint")
    channels = shapes[CONV_IN][1]
    if channels != 4:
        raise ModelError(
            f"{name} takes {channels} input channels", "4 (inpainting models can't be used here)"
        )
