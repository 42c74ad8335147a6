"""The shapes of SD1, SD2 and SDXL models, as data: the real ones, and narrow ones of the same topology.

How a file's family and prediction are told from its keys stands in `detection`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

METADATA_KEY = "aid.architecture"
Width = Annotated[int, Field(ge=1, le=8192)]
Count = Annotated[int, Field(ge=0, le=64)]
Family = Literal["sd1", "sd2", "sdxl"]
Prediction = Literal["epsilon", "v"]
USE = {"prediction", "zero_terminal_snr", "unet_inputs", "native_edge_px"}  # all other fields are its shape
FAMILY_NAMES: dict[Family, str] = {"sd1": "SD1", "sd2": "SD2", "sdxl": "SDXL"}


class Architecture(BaseModel):
    """Widths, depths, heads and norm groups. Widths can be read from a file's tensors; heads and groups
    can't, so a file that differs from its family's real model carries them in its metadata."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    family: Family = "sd1"
    prediction: Prediction = "epsilon"
    """What the U-Net predicts: the noise, or v = alpha * noise - sigma * picture."""
    zero_terminal_snr: bool = False
    """Whether its last timestep was trained as pure noise."""
    unet_inputs: Literal[4, 9] = 4
    """Channels that the U-Net reads: 4 of the noisy latent; in an inpainting model also the mask and 4 of
    the latent of the picture without what is masked."""
    unet_widths: tuple[Width, ...] = (320, 640, 1280, 1280)
    unet_depths: tuple[Count, ...] = (1, 1, 1, 0)
    """Transformer blocks in each attention of a level. The middle has as many as the deepest level that
    has any."""
    unet_heads: Width = 8
    unet_head_width: int = Field(default=0, ge=0, le=8192)
    """Channels of a head; heads are then counted by width (SD2, SDXL). 0: `unet_heads` at every level."""
    unet_groups: Width = 32
    linear_projection: bool = False
    """Whether transformers are entered by linear layers (SD2, SDXL) or 1x1 convolutions."""
    size_width: int = Field(default=0, ge=0, le=8192)
    """Width of the embedding of each of SDXL's six sizes: original, crop, target."""
    text_width: Width = 768
    text_layers: int = Field(default=12, ge=1, le=64)
    text_heads: Width = 12
    text_activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    text_2_width: int = Field(default=0, ge=0, le=8192)
    """Of SDXL's second text encoder (OpenCLIP bigG); 0 where there is none."""
    text_2_layers: Count = 0
    text_2_heads: Count = 0
    vae_widths: tuple[Width, Width, Width, Width] = (128, 256, 512, 512)
    vae_groups: Width = 32
    native_edge_px: int = Field(default=512, ge=8, le=8192, multiple_of=8)
    """The size it was trained at: what a picture's default size is taken from."""

    @model_validator(mode="after")
    def _levels_fit_the_family(self) -> Self:
        levels = 3 if self.family == "sdxl" else 4
        for part in ("unet_widths", "unet_depths"):
            if len(getattr(self, part)) != levels:
                raise ValueError(f"{part} has {len(getattr(self, part))} levels, and {self.family} {levels}")
        if not any(self.unet_depths):
            raise ValueError("unet_depths has no transformer at all")
        second = (self.size_width, self.text_2_width, self.text_2_layers, self.text_2_heads)
        if (self.family == "sdxl") != all(second) or any(second) != all(second):
            raise ValueError(
                "size_width and text_2_width, _layers and _heads are SDXL's: all or none of them"
            )
        return self

    @model_validator(mode="after")
    def _parts_divide_widths(self) -> Self:
        for widths, part in (
            (self.unet_widths, "unet_head_width" if self.unet_head_width else "unet_heads"),
            (self.unet_widths, "unet_groups"),
            ((self.text_width,), "text_heads"),
            ((self.text_2_width,), "text_2_heads" if self.text_2_width else "text_heads"),
            (self.vae_widths, "vae_groups"),
        ):
            count = getattr(self, part)
            if undivided := [width for width in widths if width % count]:
                raise ValueError(f"{part} is {count}, which does not divide the width {undivided[0]}")
        return self

    @property
    def vae_scale(self) -> float:
        """Latents are multiplied by it before noise is added (Rombach et al. 2022; Podell et al. 2023)."""
        return 0.13025 if self.family == "sdxl" else 0.18215

    @property
    def inpaints(self) -> bool:
        """Whether its U-Net is shown the mask and what lies around it (Rombach et al. 2022)."""
        return self.unet_inputs == 9

    @property
    def is_narrow(self) -> bool:
        """Whether its shape isn't that of its family's released models, so that only AID can open it."""
        real = REAL[self.family].model_dump(exclude=USE)
        return self.model_dump(exclude=USE) != real

    @property
    def has_clip_skip(self) -> bool:
        """SD2's and SDXL's encoders always end at their last layer but one."""
        return self.family == "sd1"

    @property
    def context_width(self) -> int:
        """Of what the U-Net reads: both text encoders side by side."""
        return self.text_width + self.text_2_width

    @property
    def adm_width(self) -> int:
        """Of the vector beside the timestep: the pooled text and six sizes (SDXL: 2816); 0 for none."""
        return self.text_2_width + 6 * self.size_width

    def unet_config(self) -> dict[str, Any]:
        """diffusers' UNet2DConditionModel. Its `attention_head_dim` is the number of heads."""
        crossed = [depth > 0 for depth in self.unet_depths]
        config = {
            "sample_size": self.native_edge_px // 8,
            "in_channels": self.unet_inputs,
            "block_out_channels": self.unet_widths,
            "down_block_types": [_block("Down", one) for one in crossed],
            "up_block_types": [_block("Up", one) for one in reversed(crossed)],
            "transformer_layers_per_block": [max(1, depth) for depth in self.unet_depths],
            "attention_head_dim": self._head_counts(),
            "norm_num_groups": self.unet_groups,
            "cross_attention_dim": self.context_width,
            "use_linear_projection": self.linear_projection,
        }
        if not self.adm_width:
            return config
        return config | {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": self.size_width,
            "projection_class_embeddings_input_dim": self.adm_width,
        }

    def _head_counts(self) -> int | list[int]:
        if not self.unet_head_width:
            return self.unet_heads
        return [width // self.unet_head_width for width in self.unet_widths]

    def text_config(self) -> dict[str, Any]:
        """transformers' CLIPTextConfig."""
        return _text_config(self.text_width, self.text_layers, self.text_heads, self.text_activation)

    def text_2_config(self) -> dict[str, Any]:
        """transformers' CLIPTextConfig of SDXL's second text encoder."""
        return _text_config(self.text_2_width, self.text_2_layers, self.text_2_heads, "gelu")

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
            "scaling_factor": self.vae_scale,
        }


def _block(way: str, crossed: bool) -> str:
    return f"CrossAttn{way}Block2D" if crossed else f"{way}Block2D"


def _text_config(width: int, layers: int, heads: int, activation: str) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "projection_dim": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "hidden_act": activation,
        "vocab_size": 49408,
        "bos_token_id": 49406,
        "eos_token_id": 49407,
        "pad_token_id": 49407,
    }


SD1 = Architecture()
SD2_BASE = Architecture(
    family="sd2", unet_head_width=64, linear_projection=True,
    text_width=1024, text_layers=23, text_heads=16, text_activation="gelu",
)  # fmt: skip
SD2 = SD2_BASE.model_copy(update={"prediction": "v", "native_edge_px": 768})
SDXL = Architecture(
    family="sdxl", unet_widths=(320, 640, 1280), unet_depths=(0, 2, 10), unet_head_width=64,
    linear_projection=True, size_width=256, text_2_width=1280, text_2_layers=32, text_2_heads=20,
    native_edge_px=1024,
)  # fmt: skip
TINY = Architecture(
    unet_widths=(8, 16, 32, 32), unet_heads=2, unet_groups=4,
    text_width=16, text_heads=2, vae_widths=(4, 8, 16, 16), vae_groups=2, native_edge_px=64,
)  # fmt: skip
TINY_INPAINTING = TINY.model_copy(update={"unet_inputs": 9})
TINY_SD2 = Architecture(
    family="sd2", prediction="v", unet_widths=(8, 16, 32, 32), unet_head_width=8, unet_groups=4,
    linear_projection=True, text_width=16, text_layers=5, text_heads=2, text_activation="gelu",
    vae_widths=(4, 8, 16, 16), vae_groups=2, native_edge_px=64,
)  # fmt: skip
TINY_SDXL = Architecture(
    family="sdxl", unet_widths=(8, 16, 32), unet_depths=(0, 1, 2), unet_head_width=8, unet_groups=4,
    linear_projection=True, size_width=8, text_width=16, text_heads=2, text_2_width=24, text_2_layers=4,
    text_2_heads=3, vae_widths=(4, 8, 16, 16), vae_groups=2, native_edge_px=64,
)  # fmt: skip
REAL = {"sd1": SD1, "sd2": SD2, "sdxl": SDXL}
