"""A whole SD1 model in memory, and its single file on disk (LDM layout)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from aid.errors import FileError, ModelError
from aid.sd.architecture import (
    METADATA_KEY,
    SD1,
    Architecture,
    check_widths,
    declared,
    detect,
    refuse_other_families,
)
from aid.sd.layouts import POSITION_IDS, VAE, modern_keys, text_key, unet_key, vae_key, vae_shape
from aid.sd.tensorfile import is_pickle, read_header, read_tensors, write_tensors
from aid.sd.tokenizer import CHUNK, load_tokenizer

VAE_SCALE = 0.18215  # latents are multiplied by it before noise is added (Rombach et al. 2022)


@dataclass
class StableDiffusion:
    """U-Net, text encoder and VAE in eval mode, with what the file said about itself."""

    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    vae: AutoencoderKL
    architecture: Architecture
    metadata: dict[str, str] = field(default_factory=dict)
    path: Path | None = None
    vae_path: Path | None = None
    tokenizer: CLIPTokenizer = field(default_factory=load_tokenizer)

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.unet.parameters()).device
        return device

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = next(self.unet.parameters()).dtype
        return dtype

    def modules(self) -> tuple[torch.nn.Module, torch.nn.Module, torch.nn.Module]:
        return self.unet, self.text_encoder, self.vae


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
    dtype: torch.dtype = torch.float32,
    vae: Path | None = None,
) -> StableDiffusion:
    """Read an SD1 single file or an artifact that holds one; `vae` replaces the file's own VAE.

    Raises FileError for a missing, damaged or unsafe file and ModelError for another architecture.
    """
    path = resolve_checkpoint(path)
    tensors, metadata = _read(path)
    architecture = detect(_shapes(tensors), metadata, str(path))
    with torch.device("meta"):
        model = _assemble(architecture)
    if vae is not None:
        tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith(VAE)}
        tensors |= read_vae(vae)
    for module, rename in _parts(model):
        source = vae if vae is not None and module is model.vae else path
        _fill(module, tensors, rename, source, dtype, device)
    model.metadata, model.path, model.vae_path = dict(metadata), path, vae
    return model


def save_checkpoint(
    model: StableDiffusion, path: Path, metadata: Mapping[str, str], dtype: torch.dtype = torch.float16
) -> None:
    """Write the LDM single file atomically: every key of SD1's, position ids as int64."""
    described = {} if model.architecture == SD1 else {METADATA_KEY: model.architecture.model_dump_json()}
    write_tensors(path, ldm_tensors(model, dtype), {**described, **metadata})


def ldm_tensors(model: StableDiffusion, dtype: torch.dtype) -> dict[str, Tensor]:
    """The model's weights under their LDM names.

    Raises ModelError naming the first tensor with a value that isn't finite in `dtype`.
    """
    tensors: dict[str, Tensor] = {POSITION_IDS: torch.arange(CHUNK + 2).unsqueeze(0)}
    for module, rename in _parts(model):
        for key, tensor in module.state_dict().items():
            if not key.endswith("position_ids"):
                name = rename(key)
                tensors[name] = _finite(name, vae_shape(name, tensor.detach()), dtype)
    return tensors


def _finite(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor on the CPU in `dtype`."""
    cast = tensor.to("cpu", dtype)
    if torch.isfinite(cast).all():
        return cast
    if torch.isfinite(tensor).all():
        short = str(dtype).removeprefix("torch.")
        raise ModelError(f"{name} holds values too large for {short}", next_step="Save it as fp32.")
    raise ModelError(f"{name} holds NaN or infinity", "finite weights", "Go back to an earlier checkpoint.")


def resolve_checkpoint(path: Path) -> Path:
    """The single file that `path` names: itself, or the `model.safetensors` of an artifact folder."""
    found = path / "model.safetensors" if path.is_dir() else path
    if not found.is_file():
        raise FileError(f"{found} does not exist", "a checkpoint file or a folder that holds one")
    return found


def resolve_vae(path: Path) -> Path:
    """The file that `path` names: a VAE file, or a checkpoint or artifact that holds one."""
    return resolve_checkpoint(path)


def read_vae(path: Path) -> dict[str, Tensor]:
    """A VAE's tensors under their LDM names, from a VAE file (with or without prefix) or a checkpoint.

    Raises FileError and ModelError as `load_checkpoint` does.
    """
    path = resolve_vae(path)
    tensors, _ = _read(path)
    refuse_other_families(tensors, str(path))
    if any(key.startswith(VAE) for key in tensors):
        return {key: tensor for key, tensor in tensors.items() if key.startswith(VAE)}
    kept = {key: tensor for key, tensor in tensors.items() if not key.startswith(("loss", "model_ema"))}
    if "encoder.down_blocks.0.resnets.0.conv1.weight" in kept:  # diffusers' own names
        kept = {vae_key(key).removeprefix(VAE): vae_shape(vae_key(key), t) for key, t in kept.items()}
    if "encoder.conv_in.weight" not in kept:
        raise ModelError(f"{path} holds no VAE", "an AutoencoderKL in LDM or diffusers layout")
    return {VAE + key: tensor for key, tensor in kept.items()}


def load_vae(path: Path, device: torch.device | str = "cpu") -> AutoencoderKL:
    """Only the VAE of `path`, float32, in eval mode: from a VAE file, a checkpoint or an artifact.

    Raises FileError and ModelError as `load_checkpoint` does.
    """
    path = resolve_vae(path)
    tensors, metadata = read_vae(path), _read_metadata(path)
    architecture = declared(metadata, str(path))
    check_widths(architecture, _shapes(tensors), str(path))
    with torch.device("meta"):
        vae = AutoencoderKL(**architecture.vae_config()).eval()
    _fill(vae, tensors, vae_key, path, torch.float32, device)
    return vae


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in tensors.items()}


def _read_metadata(path: Path) -> dict[str, str]:
    return {} if is_pickle(path) else read_header(path).metadata


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    return modern_keys(read_tensors(path)), _read_metadata(path)


def _assemble(architecture: Architecture) -> StableDiffusion:
    return StableDiffusion(
        unet=UNet2DConditionModel(**architecture.unet_config()).eval(),
        text_encoder=CLIPTextModel(CLIPTextConfig(**architecture.text_config())).eval(),
        vae=AutoencoderKL(**architecture.vae_config()).eval(),
        architecture=architecture,
    )


def _parts(model: StableDiffusion) -> tuple[tuple[torch.nn.Module, Callable[[str], str]], ...]:
    return (model.unet, unet_key), (model.text_encoder, text_key), (model.vae, vae_key)


def _fill(
    module: torch.nn.Module,
    tensors: dict[str, Tensor],
    rename: Callable[[str], str],
    path: Path,
    dtype: torch.dtype,
    device: torch.device | str,
) -> None:
    """Give a module on the meta device its weights, taking each out of `tensors` to free it early."""
    state: dict[str, Tensor] = {}
    for key, parameter in module.state_dict().items():
        if key.endswith("position_ids"):
            continue
        tensor = tensors.pop(rename(key), None)
        if tensor is None:
            raise ModelError(f"{path} lacks {rename(key)}", "a whole SD1 checkpoint")
        if _matrix(tensor.shape) != _matrix(parameter.shape):
            raise ModelError(
                f"{path}: {rename(key)} has shape {list(tensor.shape)}", f"{list(parameter.shape)}"
            )
        # A copy always: tensors of a pickle may share their storage, and a trained model must not.
        own = tensor.detach().to(device, dtype, copy=True, memory_format=torch.contiguous_format)
        state[key] = own.reshape(parameter.shape)
    _count_positions(module, device)
    module.load_state_dict(state, strict=False, assign=True)


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
