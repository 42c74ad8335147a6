"""Which architecture a single file holds, told from its keys, shapes, markers and metadata.

A family is told by keys that only it has. What is predicted is told, in this order, by AID's own
metadata, marker tensors (`v_pred`, `ztsnr`), ModelSpec's and kohya's metadata, and for SD2, whose base
and 768-v models have the same keys and shapes, by the spread of one bias. Source: ComfyUI's
supported_models for markers and spread; A1111's sd_models for the order of families.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from pydantic import ValidationError

from aid.errors import ModelError
from aid.sd.model.architecture import (
    FAMILY_NAMES,
    METADATA_KEY,
    REAL,
    SD1,
    SD2_BASE,
    Architecture,
    Family,
    Prediction,
)
from aid.sd.model.layouts import TEXT_2, TEXT_PREFIX, UNET, VAE
from aid.sd.model.metadata import ARCHITECTURE_KEY, PREDICTION_KEY

if TYPE_CHECKING:
    from torch import Tensor

CONV_IN = f"{UNET}input_blocks.0.0.weight"
VAE_IN = f"{VAE}encoder.conv_in.weight"
VAE_LEVEL = f"{VAE}encoder.down.{{}}.block.0.conv1.weight"
TOKENS: dict[Family, str] = {
    "sd1": f"{TEXT_PREFIX['sd1']}embeddings.token_embedding.weight",
    "sd2": f"{TEXT_PREFIX['sd2']}token_embedding.weight",
    "sdxl": f"{TEXT_PREFIX['sdxl']}embeddings.token_embedding.weight",
}
TOKENS_2 = f"{TEXT_2}token_embedding.weight"
FAMILY_KEYS: dict[str, Family] = {
    f"{TEXT_2}ln_final.weight": "sdxl",
    "cond_stage_model.model.ln_final.weight": "sd2",
}
FOREIGN = {  # a key that only they have
    f"{UNET}x_embedder.proj.weight": "SD3",
    "conditioner.embedders.0.model.ln_final.weight": "the SDXL refiner",
    f"{UNET}double_blocks.0.img_attn.norm.key_norm.scale": "Flux",
    "edm_mean": "an EDM model, such as Playground 2.5",
    "edm_vpred.sigma_max": "an EDM model",
}
SCALES = (".scale_weight", ".weight_scale")  # beside ComfyUI's scaled fp8, which means nothing without
V_MARKER, ZERO_MARKER = "v_pred", "ztsnr"
KNOWN_INPUTS = (4, 9)
SD2_BIAS = f"{UNET}output_blocks.11.1.transformer_blocks.0.norm1.bias"
SD2_SPREAD = 0.09  # of that bias: 768-v models lie above it
Shapes = Mapping[str, Sequence[int]]
Read = Callable[[str], "Tensor"]


def detect(
    shapes: Shapes,
    metadata: Mapping[str, str],
    name: str,
    read: Read | None = None,
    prediction: Prediction | None = None,
    vae_given: bool = False,
) -> Architecture:
    """The architecture of a single file. `prediction` overrides what the file says; `read` gives one of its
    tensors, which SD2 without any marker needs (else it counts as 768-v). `vae_given`: another VAE takes the
    place of the file's, which may have none.

    Raises ModelError for another family, for a file without U-Net, text encoder or VAE, and where the
    metadata and the tensors contradict each other.
    """
    family = family_of(shapes, name)
    _refuse_partial_models(shapes, family, name, vae_given)
    if METADATA_KEY in metadata:
        architecture = declared(metadata, name)
        if architecture.family != family:
            told = FAMILY_NAMES[architecture.family]
            raise ModelError(f"{name} is {FAMILY_NAMES[family]}, and its metadata calls it {told}")
    else:
        _require_full_width(shapes, name)
        architecture = _undeclared(family, shapes, metadata, read)
    check_widths(architecture, shapes, name)
    return with_prediction(architecture, prediction)


def declared(metadata: Mapping[str, str], name: str) -> Architecture:
    """The architecture that a file's metadata declares; SD1 if it declares none.

    Raises ModelError, naming the field, for one that no model can have.
    """
    if METADATA_KEY not in metadata:
        return SD1
    try:
        return Architecture.model_validate_json(metadata[METADATA_KEY])
    except ValidationError as error:
        raise ModelError(
            f"{name} has a malformed {METADATA_KEY} in its metadata ({first_fault(error)})",
            "the architecture as `aid` writes it",
        ) from error


def first_fault(error: ValidationError) -> str:
    first = error.errors()[0]
    field = ".".join(map(str, first["loc"])) or "the whole"
    return f"{field}: {first['msg']}"


def family_of(shapes: Shapes, name: str) -> Family:
    """Raises ModelError naming a family that AID doesn't know, and for weights that are to be scaled."""
    for key, other in FOREIGN.items():
        if key in shapes:
            raise ModelError(f"{name} is {other}", "an SD1, SD2 or SDXL checkpoint", "Choose another model.")
    if scale := next((key for key in shapes if key.endswith(SCALES)), None):
        raise ModelError(
            f"{name} holds scaled weights ({scale})",
            "fp32, fp16, bf16 or plain fp8",
            "Take an unscaled file.",
        )
    return next((family for key, family in FAMILY_KEYS.items() if key in shapes), "sd1")


def latent_scale_of(shapes: Shapes, name: str) -> float | None:
    """What latents are multiplied by, as a model's family tells; None for a VAE alone, which doesn't.

    Raises ModelError as `family_of` does.
    """
    family = family_of(shapes, name)
    told = CONV_IN in shapes or family != "sd1"  # which is what is left over
    return REAL[family].vae_scale if told else None


def require_scale(found: float | None, expected: float, name: str, next_step: str = "") -> None:
    """Raises ModelError where a VAE is known to multiply latents by another number than the model."""
    if found not in (None, expected):
        raise ModelError(
            f"{name} multiplies latents by {_with_families(found)}", _with_families(expected), next_step
        )


def _with_families(scale: float) -> str:
    """`0.18215 (SD1, SD2)`."""
    families = [told for family, told in FAMILY_NAMES.items() if REAL[family].vae_scale == scale]
    return f"{scale} ({', '.join(families) or 'no family that AID knows'})"


def check_widths(architecture: Architecture, shapes: Shapes, name: str) -> None:
    """Compare declared widths with the tensors that are there, before anything is built so large.

    Raises ModelError naming the tensor.
    """
    for key, axis, width in _width_places(architecture):
        shape = shapes.get(key)
        if shape is not None and (len(shape) <= axis or shape[axis] != width):
            raise ModelError(f"{name}: {key} has shape {list(shape)}", f"{width} at place {axis + 1}")
    for layers, beyond in _beyond_last_layer(architecture):
        if beyond in shapes:
            raise ModelError(f"{name} has more text encoder layers than {layers}")


def _width_places(architecture: Architecture) -> Iterator[tuple[str, int, int]]:
    """Key, axis and length of one tensor for each declared width."""
    crossed = next(level for level, depth in enumerate(architecture.unet_depths) if depth)
    yield CONV_IN, 0, architecture.unet_widths[0]
    yield CONV_IN, 1, architecture.unet_inputs
    attention = f"{UNET}input_blocks.{1 + 3 * crossed}.1.transformer_blocks.0.attn2.to_k.weight"
    yield attention, 1, architecture.context_width
    yield f"{UNET}label_emb.0.0.weight", 1, architecture.adm_width
    yield TOKENS[architecture.family], 1, architecture.text_width
    yield TOKENS_2, 1, architecture.text_2_width
    for level, width in enumerate(architecture.unet_widths):
        yield f"{UNET}input_blocks.{1 + 3 * level}.0.in_layers.2.weight", 0, width
    for level, width in enumerate(architecture.vae_widths):
        yield VAE_LEVEL.format(level), 0, width


def _beyond_last_layer(architecture: Architecture) -> Iterator[tuple[int, str]]:
    """The number of layers, and a key that only a deeper text encoder has."""
    prefix, layers = TEXT_PREFIX[architecture.family], architecture.text_layers
    if architecture.family == "sd2":  # files hold a last layer that is never used
        yield layers, f"{prefix}transformer.resblocks.{layers + 1}.ln_1.weight"
    else:
        yield layers, f"{prefix}encoder.layers.{layers}.layer_norm1.weight"
    yield (
        architecture.text_2_layers,
        f"{TEXT_2}transformer.resblocks.{architecture.text_2_layers}.ln_1.weight",
    )


def _refuse_partial_models(shapes: Shapes, family: Family, name: str, vae_given: bool) -> None:
    for key in (CONV_IN, TOKENS[family], *(() if vae_given else (VAE_IN,))):
        if key not in shapes:
            known = CONV_IN in shapes or family in FAMILY_KEYS.values()  # SD1 is what is left over
            lacks = f"no VAE ({key})" if key == VAE_IN else f"no {key}"
            found = f"is {FAMILY_NAMES[family]} but has {lacks}" if known else f"has {lacks}"
            whole = FAMILY_NAMES[family] if known else "SD1, SD2 or SDXL"
            bake = f"`aid convert {name} WHOLE.safetensors --vae VAE` gives it one."
            look = f"`aid inspect {name}` tells what it is."
            raise ModelError(
                f"{name} {found}", f"a whole {whole} checkpoint in one file", bake if key == VAE_IN else look
            )
    shape = list(shapes[CONV_IN])
    if len(shape) != 4:
        raise ModelError(f"{name}: {CONV_IN} has shape {shape}", "a convolution's four numbers")
    require_known_inputs(shape[1], name)


def require_known_inputs(channels: object, name: str) -> None:
    """Raises ModelError for a U-Net that reads anything but a latent, or a latent, a mask and a picture."""
    if channels not in KNOWN_INPUTS:
        raise ModelError(f"{name} takes {channels} input channels", "4, or an inpainting model's 9")


def _require_full_width(shapes: Shapes, name: str) -> None:
    width = shapes[CONV_IN][0]
    if width != SD1.unet_widths[0]:
        raise ModelError(
            f"{name} is {width} channels wide and does not say how many heads and norm groups it has",
            f"the {SD1.unet_widths[0]} channels of SD1, SD2 and SDXL, or `{METADATA_KEY}` in the metadata",
        )


def _undeclared(
    family: Family, shapes: Shapes, metadata: Mapping[str, str], read: Read | None
) -> Architecture:
    """A full-size model, with what its markers and metadata say about its prediction."""
    zero = ZERO_MARKER in shapes or metadata.get("ss_zero_terminal_snr") == "True"
    marked = marked_prediction(shapes, metadata)
    if family == "sd2" and marked is None:
        marked = _sd2_prediction(shapes, read)
    found = with_prediction(REAL[family], marked)
    return found.model_copy(update={"zero_terminal_snr": zero, "unet_inputs": shapes[CONV_IN][1]})


def marked_prediction(shapes: Shapes, metadata: Mapping[str, str]) -> Prediction | None:
    """What a marker tensor, or else ModelSpec's or kohya's metadata say."""
    if V_MARKER in shapes:
        return "v"
    told = metadata.get(PREDICTION_KEY, "").lower()
    if told in ("v", "v_prediction"):
        return "v"
    if told in ("epsilon", "eps"):
        return "epsilon"
    names = metadata.get(ARCHITECTURE_KEY, ""), metadata.get("ss_base_model_version", "")
    if (
        names[0].endswith("-768-v")
        or names[1] == "sd_v2_v"
        or metadata.get("ss_v_parameterization") == "True"
    ):
        return "v"
    return "epsilon" if names[0].endswith("-v2-512") or names[1] == "sd_v2" else None


def _sd2_prediction(shapes: Shapes, read: Read | None) -> Prediction:
    if shapes[CONV_IN][1] != 4:
        return "epsilon"  # as all released inpainting models do
    if read is None or SD2_BIAS not in shapes:
        return "v"
    return "v" if float(read(SD2_BIAS).float().std(unbiased=False)) > SD2_SPREAD else "epsilon"


def with_prediction(architecture: Architecture, prediction: Prediction | None) -> Architecture:
    if prediction is None or prediction == architecture.prediction:
        return architecture
    changes: dict[str, object] = {"prediction": prediction}
    if architecture == REAL["sd2"]:
        changes["native_edge_px"] = SD2_BASE.native_edge_px
    return architecture.model_copy(update=changes)
