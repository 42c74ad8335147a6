"""A model's tensors under their LDM names, one at a time, whatever file or folder holds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from aid.errors import ModelError
from aid.sd.file.tensorfile import Stored, in_memory, is_finite, open_tensors
from aid.sd.model.architecture import METADATA_KEY, SD1, SDXL, Architecture, Prediction
from aid.sd.model.detection import V_MARKER, VAE_IN, ZERO_MARKER, Shapes, detect
from aid.sd.model.folder import open_folder
from aid.sd.model.layouts import (
    POSITIONS,
    PROJECTION,
    TEXT_2,
    TEXT_PREFIX,
    TEXT_ROOT,
    UNET,
    VAE,
    average_key,
    modern_keys,
)
from aid.sd.model.location import resolve_checkpoint as resolve_checkpoint
from aid.sd.model.metadata import PREDICTION_KEY
from aid.sd.model.sibling import sibling_prediction

WINDOW = 77  # positions of a text encoder
LOGIT_SCALE = 4.6052  # ln 100, where every CLIP's training ends


@dataclass(frozen=True)
class Weights:
    """`tensors` are all that the file holds, under modern LDM names."""

    path: Path
    architecture: Architecture
    tensors: Mapping[str, Stored]
    metadata: Mapping[str, str]

    @property
    def has_vae(self) -> bool:
        return VAE_IN in self.tensors

    def model(self) -> dict[str, Stored]:
        """Only what the model is made of: no averages, no state of a training, no schedule."""
        roots = (UNET, TEXT_ROOT[self.architecture.family], VAE)
        return {key: stored for key, stored in self.tensors.items() if key.startswith(roots)}

    def whole(self) -> dict[str, Stored]:
        """What a single file of the family holds: with position ids as int64, markers, and what no diffusers
        folder keeps. SD2's unused last layer is then one that changes nothing."""
        family = self.architecture.family
        made = (
            {POSITIONS[family]: in_memory(torch.arange(WINDOW).unsqueeze(0))} if family in POSITIONS else {}
        )
        tensors = {**unheld(self.architecture, self._text_dtype()), **self.model(), **made}
        return tensors | markers(self.architecture, self._text_dtype())

    def _text_dtype(self) -> torch.dtype:
        root = TEXT_ROOT[self.architecture.family]
        dtypes = (stored.dtype for key, stored in self.tensors.items() if key.startswith(root))
        return next((dtype for dtype in dtypes if dtype.is_floating_point), torch.float32)


def open_weights(
    path: Path,
    *,
    ema: bool = False,
    untransposed: bool = False,
    prediction: Prediction | None = None,
    vae_given: bool = False,
) -> Weights:
    """Open a single file, an artifact or a diffusers folder; nothing but headers is read.

    `ema` takes the U-Net's moving averages in place of its weights. `untransposed` says that an SDXL file's
    `text_projection` is a Linear layer's weight, as trainers of the kohya family take it. `prediction`
    overrides what the file says. `vae_given`: another VAE takes the place of this one's, which may have none.

    Raises FileError for a missing, damaged or unsafe file and ModelError for what is no checkpoint.
    """
    path = resolve_checkpoint(path)
    if path.is_dir():
        architecture, tensors, metadata = open_folder(path, vae_given)
        if prediction:
            architecture = architecture.model_copy(update={"prediction": prediction})
    else:
        stored, metadata = open_tensors(path)
        tensors = modern_keys(stored)
        shapes = shapes_of(tensors)
        told = prediction or sibling_prediction(path)
        architecture = detect(shapes, metadata, str(path), lambda key: tensors[key].read(), told, vae_given)
    if ema:
        tensors = _averaged(tensors, path)
    if untransposed and PROJECTION in tensors:
        tensors = {**tensors, PROJECTION: _transposed(tensors[PROJECTION])}
    weights = Weights(path, architecture, tensors, metadata)
    require_floating(weights.model(), path)
    return weights


def shapes_of(tensors: Mapping[str, Stored]) -> Shapes:
    return {key: one.shape for key, one in tensors.items()}


def require_floating(tensors: Mapping[str, Stored], path: Path) -> None:
    """Raises ModelError naming the first of a model's tensors that holds whole numbers."""
    for key, one in tensors.items():
        if not (one.dtype.is_floating_point or key.endswith("position_ids")):
            kind = str(one.dtype).removeprefix("torch.")
            raise ModelError(f"{path}: {key} holds whole numbers ({kind})", "fp32, fp16, bf16 or fp8")


def describe(architecture: Architecture) -> dict[str, str]:
    """What a single file's metadata must say for it to be read back as it was."""
    told = (
        {}
        if architecture in (SD1, SDXL)
        else {METADATA_KEY: architecture.model_dump_json(exclude_defaults=True)}
    )
    return told | ({PREDICTION_KEY: "v"} if architecture.prediction == "v" else {})


def markers(architecture: Architecture, dtype: torch.dtype) -> dict[str, Stored]:
    """The empty tensors by which tools know SD1 and SDXL models of v-prediction; SD2's need none."""
    if architecture.family == "sd2":
        return {}
    names = {V_MARKER: architecture.prediction == "v", ZERO_MARKER: architecture.zero_terminal_snr}
    return {name: in_memory(torch.zeros(0, dtype=dtype)) for name, told in names.items() if told}


def unheld(architecture: Architecture, dtype: torch.dtype) -> dict[str, Stored]:
    """What single files hold and no module does, as plain values: a logit scale, and for SD2 a last layer,
    which is zero and so passes on what it gets, and a projection, which is the identity."""
    scale = {"logit_scale": torch.tensor(LOGIT_SCALE)}
    if architecture.family == "sdxl":
        made = {TEXT_2 + key: tensor for key, tensor in scale.items()}
    elif architecture.family == "sd2":
        own = scale | {"text_projection": torch.eye(architecture.text_width)} | _still_layer(architecture)
        made = {TEXT_PREFIX["sd2"] + key: tensor for key, tensor in own.items()}
    else:
        made = {}
    return {key: in_memory(tensor.to(dtype)) for key, tensor in made.items()}


def _still_layer(architecture: Architecture) -> dict[str, Tensor]:
    width, head = architecture.text_width, f"transformer.resblocks.{architecture.text_layers}."
    matrices = {
        "attn.in_proj_": (3 * width, width),
        "attn.out_proj.": (width, width),
        "mlp.c_fc.": (4 * width, width),
        "mlp.c_proj.": (width, 4 * width),
    }
    norms = {f"{head}ln_{one}.{kind}": torch.zeros(width) for one in (1, 2) for kind in ("weight", "bias")}
    layer = {f"{head}{name}weight": torch.zeros(shape) for name, shape in matrices.items()}
    return norms | layer | {f"{head}{name}bias": torch.zeros(shape[0]) for name, shape in matrices.items()}


def cast(stored: Stored, dtype: torch.dtype | None, name: str, path: Path) -> Stored:
    """The tensor in another format (None: its own), whole numbers as they are. Reading it raises ModelError
    if a value isn't finite, or is too large for the format."""
    wanted = dtype if dtype is not None and stored.dtype.is_floating_point else stored.dtype

    def read() -> Tensor:
        return require_finite(stored.read(), wanted, f"{path}: {name}")

    return replace(stored, dtype=wanted, read=read)


def require_finite(tensor: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """The tensor in `dtype`. Raises ModelError, naming it, for NaN, infinity and what `dtype` can't hold."""
    cast = tensor.to(dtype)
    if is_finite(cast):
        return cast
    if is_finite(tensor):
        short = str(dtype).removeprefix("torch.")
        raise ModelError(f"{name} holds values too large for {short}", next_step="Choose fp32 or bf16.")
    raise ModelError(
        f"{name} holds NaN or infinity", "finite weights", "Use an undamaged copy of this model."
    )


def _averaged(tensors: Mapping[str, Stored], path: Path) -> dict[str, Stored]:
    """Raises ModelError for a file without averages, or with some only."""
    found = {key: average_key(key) for key in tensors if key.startswith(UNET)}
    if missing := [name for name in found.values() if name not in tensors]:
        raise ModelError(f"{path} has no {missing[0]}", "averaged weights (EMA)", "Take its plain weights.")
    return {key: tensors[found[key]] if key in found else stored for key, stored in tensors.items()}


def _transposed(stored: Stored) -> Stored:
    return replace(stored, shape=stored.shape[::-1], read=lambda: stored.read().T)
