"""The shapes of an SD1-family model, as data: the real one, and narrower ones of the same topology."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from aid.errors import ModelError

METADATA_KEY = "aid.architecture"
Width = Annotated[int, Field(ge=1, le=8192)]
Widths = tuple[Width, Width, Width, Width]


class Architecture(BaseModel):
    """Widths, heads and norm groups. Widths can be read from a file's tensors; heads and groups can't,
    so a file that differs from SD1 carries them in its metadata."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    unet_widths: Widths = (320, 640, 1280, 1280)
    unet_heads: Width = 8
    unet_groups: Width = 32
    text_width: Width = 768
    text_layers: int = Field(default=12, ge=1, le=64)
    text_heads: Width = 12
    vae_widths: Widths = (128, 256, 512, 512)
    vae_groups: Width = 32
    native_edge_px: int = Field(default=512, ge=8, le=8192, multiple_of=8)
    """The size it was trained at: what a picture's default size is taken from."""

    @model_validator(mode="after")
    def _parts_divide_widths(self) -> Self:
        for widths, part in (
            (self.unet_widths, "unet_heads"),
            (self.unet_widths, "unet_groups"),
            ((self.text_width,), "text_heads"),
            (self.vae_widths, "vae_groups"),
        ):
            count = getattr(self, part)
            if undivided := [width for width in widths if width % count]:
                raise ValueError(f"{part} is {count}, which does not divide the width {undivided[0]}")
        return self

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

UNET, TEXT, VAE = "model.diffusion_model.", "cond_stage_model.transformer.text_model.", "first_stage_model."
CONV_IN = f"{UNET}input_blocks.0.0.weight"
REQUIRED = (CONV_IN, f"{TEXT}embeddings.token_embedding.weight", f"{VAE}encoder.conv_in.weight")
OTHER_FAMILIES = {  # a key that only they have
    "conditioner.embedders.1.model.ln_final.weight": "SDXL",
    "conditioner.embedders.0.model.ln_final.weight": "the SDXL refiner",
    "cond_stage_model.model.ln_final.weight": "SD2",
    f"{UNET}x_embedder.proj.weight": "SD3",
}
Shapes = Mapping[str, Sequence[int]]


def detect(shapes: Shapes, metadata: Mapping[str, str], name: str) -> Architecture:
    """The architecture of an SD1 single file, from its metadata or else from its tensors' shapes.

    Raises ModelError for another family, for a file without U-Net, text encoder or VAE, and where the
    metadata and the tensors contradict each other.
    """
    refuse_other_families(shapes, name)
    _refuse_partial_models(shapes, name)
    architecture = declared(metadata, name)
    width = shapes[CONV_IN][0]
    if METADATA_KEY not in metadata and width != SD1.unet_widths[0]:
        raise ModelError(
            f"{name} is {width} channels wide and does not say how many heads and norm groups it has",
            f"SD1's {SD1.unet_widths[0]} channels, or `{METADATA_KEY}` in the metadata",
        )
    check_widths(architecture, shapes, name)
    return architecture


def declared(metadata: Mapping[str, str], name: str) -> Architecture:
    """The architecture that a file's metadata declares; SD1 if it declares none.

    Raises ModelError, naming the field, for one that no model can have.
    """
    if METADATA_KEY not in metadata:
        return SD1
    try:
        return Architecture.model_validate_json(metadata[METADATA_KEY])
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the whole"
        raise ModelError(
            f"{name} has a malformed {METADATA_KEY} in its metadata ({field}: {first['msg']})",
            "the architecture as `aid` writes it",
        ) from error


def check_widths(architecture: Architecture, shapes: Shapes, name: str) -> None:
    """Compare declared widths with the tensors that are there, before anything is built so large.

    Raises ModelError naming the tensor.
    """
    for key, axis, width in _width_places(architecture):
        shape = shapes.get(key)
        if shape is not None and (len(shape) <= axis or shape[axis] != width):
            raise ModelError(f"{name}: {key} has shape {list(shape)}", f"{width} at place {axis + 1}")
    if f"{TEXT}encoder.layers.{architecture.text_layers}.layer_norm1.weight" in shapes:
        raise ModelError(f"{name} has more text encoder layers than {architecture.text_layers}")


def _width_places(architecture: Architecture) -> Iterator[tuple[str, int, int]]:
    """Key, axis and length of one tensor for each declared width."""
    yield CONV_IN, 0, architecture.unet_widths[0]
    yield f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", 1, architecture.text_width
    yield f"{TEXT}embeddings.token_embedding.weight", 1, architecture.text_width
    for level, width in enumerate(architecture.unet_widths):
        yield f"{UNET}input_blocks.{1 + 3 * level}.0.in_layers.2.weight", 0, width
    for level, width in enumerate(architecture.vae_widths):
        yield f"{VAE}encoder.down.{level}.block.0.conv1.weight", 0, width


def refuse_other_families(keys: Container[str], name: str) -> None:
    """Raises ModelError naming the family of a whole checkpoint that isn't SD1's."""
    for key, family in OTHER_FAMILIES.items():
        if key in keys:
            raise ModelError(f"{name} is {family}", "an SD1 checkpoint", "Choose an SD1.x model.")


def _refuse_partial_models(shapes: Shapes, name: str) -> None:
    for key in REQUIRED:
        if key not in shapes:
            raise ModelError(f"{name} has no {key}", "an SD1 single-file checkpoint")
    shape = list(shapes[CONV_IN])
    if len(shape) != 4:
        raise ModelError(f"{name}: {CONV_IN} has shape {shape}", "a convolution's four numbers")
    if shape[1] != 4:
        raise ModelError(
            f"{name} takes {shape[1]} input channels", "4 (inpainting models can't be used here)"
        )
