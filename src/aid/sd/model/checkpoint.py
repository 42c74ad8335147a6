"""A whole model of SD1, SD2 or SDXL in memory; single files and diffusers folders, read and written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from aid.errors import ModelError
from aid.sd.file.tensorfile import Stored, in_memory, write_stored
from aid.sd.model.architecture import FAMILY_NAMES, SD1, Architecture, Prediction
from aid.sd.model.detection import check_widths, declared
from aid.sd.model.folder_output import write_folder
from aid.sd.model.layouts import PLACES, POSITIONS, TEXT_ROOT, VAE, Place, join
from aid.sd.model.tokenizer import CHUNK, load_tokenizer
from aid.sd.model.vae_file import open_vae, read_vae, resolve_vae, with_vae_of
from aid.sd.model.weights import (
    Weights,
    describe,
    markers,
    open_weights,
    require_finite,
    resolve_checkpoint,
    shapes_of,
    unheld,
)

__all__ = [
    "VAE_SCALE", "StableDiffusion", "create_checkpoint", "fill_checkpoint", "lay_out", "ldm_tensors",
    "load_checkpoint", "load_vae", "read_vae", "require_noise_prediction", "resolve_checkpoint",
    "resolve_vae", "save_checkpoint",
]  # fmt: skip
VAE_SCALE = SD1.vae_scale
Layout = Literal["ldm", "diffusers"]
TypeOf = Callable[[str, torch.nn.Module, Tensor], torch.dtype]  # of a part's layer's weight


@dataclass
class StableDiffusion:
    """U-Net, text encoders and VAE in eval mode, with what the file said about itself.

    SD1's text encoder is CLIP-L; SD2's OpenCLIP-H as a CLIPTextModel of the 23 layers that are used; SDXL has
    CLIP-L and, as `text_encoder_2`, OpenCLIP bigG.
    """

    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    vae: AutoencoderKL
    architecture: Architecture
    text_encoder_2: CLIPTextModelWithProjection | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    path: Path | None = None
    vae_path: Path | None = None
    tokenizer: CLIPTokenizer = field(default_factory=load_tokenizer)
    unheld: dict[str, Tensor] = field(default_factory=dict)
    """By LDM name, what the file's text encoders have and no module here: written back as it was."""

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.unet.parameters()).device
        return device

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = next(self.unet.parameters()).dtype
        return dtype

    @property
    def vae_dtype(self) -> torch.dtype:
        dtype: torch.dtype = next(self.vae.parameters()).dtype
        return dtype

    @cached_property
    def unet_layers(self) -> list[tuple[str, torch.nn.Module]]:
        """The U-Net's modules with their names, found once: the walk takes 10 ms."""
        return list(self.unet.named_modules())

    def modules(self) -> tuple[torch.nn.Module, ...]:
        return tuple(self.parts().values())

    def parts(self) -> dict[str, torch.nn.Module]:
        """The modules by their names in a diffusers folder."""
        parts = {"unet": self.unet, "text_encoder": self.text_encoder, "vae": self.vae}
        return parts if self.text_encoder_2 is None else {**parts, "text_encoder_2": self.text_encoder_2}


def lay_out(model: StableDiffusion) -> StableDiffusion:
    """The same model laid out for drawing: convolutions are quicker with the channels last."""
    last = torch.channels_last
    for part, first in ((model.unet, model.unet.conv_in), (model.vae, model.vae.decoder.conv_in)):
        if not first.weight.is_contiguous(memory_format=last):  # the walk takes 10 ms
            part.to(memory_format=last)
    return model


def create_checkpoint(architecture: Architecture, seed: int) -> StableDiffusion:
    """A model with random weights. The U-Net's residual branches start at zero, as LDM's do."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _assemble(architecture)
        for name, parameter in model.unet.named_parameters():
            if name.endswith(("conv2.weight", "conv2.bias", "proj_out.weight", "proj_out.bias")):
                torch.nn.init.zeros_(parameter)
        torch.nn.init.zeros_(model.unet.conv_out.weight)
        torch.nn.init.zeros_(model.unet.conv_out.bias)
    return model


def load_checkpoint(
    path: Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | TypeOf = torch.float32,
    vae: Path | None = None,
    *,
    ema: bool = False,
    untransposed: bool = False,
    prediction: Prediction | None = None,
) -> StableDiffusion:
    """Read a single file, an artifact that holds one, or a diffusers folder; `vae` replaces its own VAE.

    `ema`, `untransposed` and `prediction` are as `open_weights` has them; `dtype` may tell each weight's type
    by its part, its layer and its shape. At most one tensor is held beyond the model.

    Raises FileError for a missing, damaged or unsafe file and ModelError for another architecture, for what
    is not finite, or doesn't fit `dtype`.
    """
    weights = open_weights(
        path, ema=ema, untransposed=untransposed, prediction=prediction, vae_given=vae is not None
    )
    return fill_checkpoint(weights, device, dtype, vae)


def fill_checkpoint(
    weights: Weights, device: torch.device | str, dtype: torch.dtype | TypeOf, vae: Path | None = None
) -> StableDiffusion:
    """A model of these weights, each read when its turn comes. Raises as `load_checkpoint` does."""
    path, architecture, tensors = weights.path, weights.architecture, weights.whole()
    if vae is not None:
        given, metadata = open_vae(vae, architecture.family)
        if not weights.has_vae:
            architecture = with_vae_of(architecture, vae, shapes_of(given), metadata)
        tensors = {key: one for key, one in tensors.items() if not key.startswith(VAE)} | given
    with torch.device("meta"):
        model = _assemble(architecture)
    for part, module in model.parts().items():
        source = vae if vae is not None and part == "vae" else path
        own = part_tensors(part, module, tensors, architecture, source)
        one = dtype if isinstance(dtype, torch.dtype) else partial(dtype, part)
        _fill(module, own, one, device, f"{source}: {part}.")
    held = {
        place.key for part, module in model.parts().items() for place in _places(part, module, architecture)
    }
    model.unheld = {
        key: tensors[key].read() for key in _unheld_keys(tensors, architecture) if key not in held
    }
    model.metadata, model.path, model.vae_path = dict(weights.metadata), path, vae
    return model


def save_checkpoint(
    model: StableDiffusion,
    path: Path,
    metadata: Mapping[str, str],
    dtype: torch.dtype = torch.float16,
    layout: Layout = "ldm",
) -> None:
    """Write the single file atomically: every key of its family's, position ids as int64. Or, with the layout
    "diffusers", a folder, which must not exist yet.

    Raises ModelError naming the first tensor with a value that isn't finite in `dtype`.
    """
    tensors = ldm_stored(model, dtype)
    if layout == "ldm":
        write_stored(path, tensors, {**describe(model.architecture), **metadata})
    else:
        save_folder(model.architecture, tensors, path, metadata, path)


def save_folder(
    architecture: Architecture,
    tensors: Mapping[str, Stored],
    path: Path,
    metadata: Mapping[str, str],
    source: Path,
) -> None:
    """Write LDM tensors as a diffusers folder, each read when its turn comes."""
    with torch.device("meta"):
        model = _assemble(architecture)
    parts = {
        part: part_tensors(part, module, tensors, architecture, source)
        for part, module in model.parts().items()
    }
    write_folder(path, architecture, parts, metadata)


def with_unet(model: StableDiffusion, tensors: Mapping[str, Tensor]) -> StableDiffusion:
    """The same model with a U-Net of its own, made of `tensors` by diffusers' names."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**model.architecture.unet_config())
    unet.load_state_dict(tensors, assign=True)
    return replace(model, unet=unet.eval())


def ldm_tensors(model: StableDiffusion, dtype: torch.dtype) -> dict[str, Tensor]:
    """The model's weights under their LDM names, on the CPU.

    Raises ModelError naming the first tensor with a value that isn't finite in `dtype`.
    """
    return {key: stored.read() for key, stored in ldm_stored(model, dtype).items()}


def ldm_stored(model: StableDiffusion, dtype: torch.dtype) -> dict[str, Stored]:
    """The same, each made of the model's own when it is read."""
    architecture = model.architecture
    grouped: dict[str, list[tuple[Place, Tensor]]] = {}
    for part, module in model.parts().items():
        for key, tensor in module.state_dict().items():
            if not key.endswith("position_ids"):
                place = PLACES[part](key, architecture.family)
                grouped.setdefault(place.key, []).append((place, tensor.detach()))
    tensors = unheld(architecture, dtype) | markers(architecture, dtype)
    tensors |= {key: in_memory(tensor.to(dtype)) for key, tensor in model.unheld.items()}
    for key, pieces in grouped.items():
        shape = join([(place, tensor.to("meta")) for place, tensor in pieces]).shape
        tensors[key] = Stored(dtype, tuple(shape), partial(_joined, key, pieces, dtype))
    if architecture.family in POSITIONS:
        tensors[POSITIONS[architecture.family]] = in_memory(torch.arange(CHUNK + 2).unsqueeze(0))
    return tensors


def _joined(key: str, pieces: Sequence[tuple[Place, Tensor]], dtype: torch.dtype) -> Tensor:
    return join([(place, require_finite(tensor, dtype, key).cpu()) for place, tensor in pieces])


def load_vae(
    path: Path,
    device: torch.device | str = "cpu",
    architecture: Architecture | None = None,
    dtype: torch.dtype = torch.float32,
) -> AutoencoderKL:
    """Only the VAE of `path`, in eval mode: from a VAE file, a checkpoint, an artifact or a folder.
    It is the `architecture`'s; without one, what its file says, or of the usual widths.

    Raises FileError and ModelError as `load_checkpoint` does.
    """
    path = resolve_vae(path)
    tensors, metadata = open_vae(path)
    if architecture is None:
        architecture = declared(metadata, str(path))
        if path.is_dir():  # where a configuration tells widths and groups
            architecture = with_vae_of(architecture, path, shapes_of(tensors), metadata)
        check_widths(architecture, shapes_of(tensors), str(path))
    with torch.device("meta"):
        vae = AutoencoderKL(**architecture.vae_config()).eval()
    own = part_tensors("vae", vae, tensors, architecture, path)
    _fill(vae, own, dtype, device, f"{path}: vae.")
    return vae


def require_noise_prediction(model: StableDiffusion, task: str) -> None:
    """Raises ModelError for a model that `task` can't yet use rightly: any but an SD1 that predicts noise."""
    found = model.architecture
    if found.family != "sd1" or found.prediction != "epsilon":
        what = FAMILY_NAMES[found.family] + (" that predicts v" if found.prediction == "v" else "")
        raise ModelError(f"{model.path} is {what}", f"for {task}, an SD1 model that predicts noise")


def _assemble(architecture: Architecture) -> StableDiffusion:
    model = StableDiffusion(
        unet=UNet2DConditionModel(**architecture.unet_config()).eval(),
        text_encoder=CLIPTextModel(CLIPTextConfig(**architecture.text_config())).eval(),
        vae=AutoencoderKL(**architecture.vae_config()).eval(),
        architecture=architecture,
    )
    if architecture.family == "sdxl":
        config = CLIPTextConfig(**architecture.text_2_config())
        model.text_encoder_2 = CLIPTextModelWithProjection(config).eval()
    return model


def vae_shapes(architecture: Architecture) -> dict[str, Sequence[int]]:
    """LDM key -> shape."""
    with torch.device("meta"):
        state = AutoencoderKL(**architecture.vae_config()).state_dict()
    places = {key: PLACES["vae"](key, architecture.family) for key in state}
    return {place.key: place.shape(tuple(state[key].shape)) for key, place in places.items()}


def part_tensors(
    part: str,
    module: torch.nn.Module,
    tensors: Mapping[str, Stored],
    architecture: Architecture,
    source: Path,
) -> dict[str, Stored]:
    """A module's tensors, under its own names and in its shapes, out of those of a single file.

    Raises ModelError naming the first that is missing or of another shape.
    """
    own: dict[str, Stored] = {}
    for key, parameter in module.state_dict().items():
        if key.endswith("position_ids"):
            continue
        place = PLACES[part](key, architecture.family)
        stored = tensors.get(place.key)
        if stored is None:
            whole = f"a whole {FAMILY_NAMES[architecture.family]} checkpoint"
            raise ModelError(f"{source} lacks {place.key}", whole)
        expected = place.shape(tuple(parameter.shape))
        if _matrix(stored.shape) != _matrix(expected):
            raise ModelError(f"{source}: {place.key} has shape {list(stored.shape)}", f"{list(expected)}")
        own[key] = _taken(place, stored, tuple(parameter.shape))
    return own


def _taken(place: Place, stored: Stored, shape: tuple[int, ...]) -> Stored:
    return Stored(stored.dtype, shape, lambda: place.take(stored.read()).reshape(shape))


def _places(part: str, module: torch.nn.Module, architecture: Architecture) -> list[Place]:
    return [PLACES[part](key, architecture.family) for key in module.state_dict()]


def _unheld_keys(tensors: Mapping[str, Stored], architecture: Architecture) -> list[str]:
    """Keys of the text encoders but for the position ids."""
    root, positions = TEXT_ROOT[architecture.family], POSITIONS.get(architecture.family)
    return [key for key in tensors if key.startswith(root) and key != positions]


def _fill(
    module: torch.nn.Module,
    tensors: Mapping[str, Stored],
    dtype: torch.dtype | Callable[[torch.nn.Module, Tensor], torch.dtype],
    device: torch.device | str,
    source: str,
) -> None:
    """Give a module on the meta device its weights, each read when its turn comes. `source` stands before a
    tensor's name where one is refused."""
    state: dict[str, Tensor] = {}
    for key, stored in tensors.items():
        place, _, name = key.rpartition(".")
        layer = module.get_submodule(place)
        kind = dtype if isinstance(dtype, torch.dtype) else dtype(layer, getattr(layer, name))
        read = stored.read().detach()
        there = require_finite(read, kind, source + key).to(device)
        # A copy always: tensors of a pickle may share their storage, and a trained model must not.
        own = read.data_ptr() != there.data_ptr() and there.is_contiguous()
        state[key] = there if own else _copied(there)
    _count_positions(module, device)
    module.load_state_dict(state, strict=False, assign=True)


def _copied(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.contiguous_format)


def _matrix(shape: Sequence[int]) -> tuple[int, ...]:
    """A shape without the ones at its end: a 1x1 convolution is a linear layer."""
    sizes = list(shape)
    while sizes and sizes[-1] == 1:
        sizes.pop()
    return tuple(sizes)


def _count_positions(module: torch.nn.Module, device: torch.device | str) -> None:
    """Fill the text encoder's only buffer, 0 to 76, which files may lack and the meta device can't hold."""
    for part in module.modules():
        if "position_ids" in dict(part.named_buffers(recurse=False)):
            part.position_ids = torch.arange(CHUNK + 2, device=device).unsqueeze(0)
