"""A VAE under its LDM names, out of a file of its own, a checkpoint, or a diffusers folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError
from torch import Tensor

from aid.errors import ModelError
from aid.sd.file.tensorfile import Stored, open_tensors
from aid.sd.model.architecture import METADATA_KEY, REAL, SD1, Architecture, Family
from aid.sd.model.detection import VAE_LEVEL, Shapes, declared, first_fault, latent_scale_of, require_scale
from aid.sd.model.folder import MODEL_INDEX, is_part, open_part, read_json, under_ldm_names
from aid.sd.model.layouts import VAE
from aid.sd.model.weights import require_floating, resolve_checkpoint, shapes_of

TRAINING_ONLY = ("loss", "model_ema")  # beside a VAE's weights in its trainer's files
DIFFUSERS_KEY = "encoder.down_blocks.0.resnets.0.conv1.weight"


def resolve_vae(path: Path) -> Path:
    """What `path` names: a VAE file, a checkpoint or artifact that holds one, or a diffusers folder."""
    return path if is_part(path, "vae") else resolve_checkpoint(path)


def open_vae(path: Path, family: Family | None = None) -> tuple[dict[str, Stored], dict[str, str]]:
    """A VAE's tensors where they lie, under their LDM names, and its file's metadata.

    `family` is the one it is meant for, or else what the file's metadata declares. SD1 and SD2 share theirs.

    Raises FileError for an unreadable file and ModelError for one without a VAE, or whose latents are scaled
    otherwise, as far as it tells.
    """
    path = resolve_vae(path)
    if path.is_dir():
        if family:
            require_scale(latent_scale(path), REAL[family].vae_scale, str(path))
        return open_part(path / "vae" if (path / MODEL_INDEX).is_file() else path, "vae")
    tensors, metadata = open_tensors(path)
    scale = latent_scale_of(shapes_of(tensors), str(path))
    if family is None and METADATA_KEY in metadata:
        family = declared(metadata, str(path)).family
    if family:
        require_scale(scale, REAL[family].vae_scale, str(path))
    if any(key.startswith(VAE) for key in tensors):
        inner = {key.removeprefix(VAE): one for key, one in tensors.items() if key.startswith(VAE)}
    else:
        inner = tensors
    kept = {VAE + key: one for key, one in inner.items() if not key.startswith(TRAINING_ONLY)}
    if DIFFUSERS_KEY in inner:
        kept = under_ldm_names("vae", inner, "sd1", path)
    if f"{VAE}encoder.conv_in.weight" not in kept:
        raise ModelError(f"{path} holds no VAE", "an AutoencoderKL in LDM or diffusers layout")
    require_floating(kept, path)
    return kept, metadata


def latent_scale(path: Path) -> float | None:
    """What latents of this VAE are multiplied by, as a whole checkpoint's family or a folder's configuration
    tells; None for a file of a VAE alone, which doesn't."""
    path = resolve_vae(path)
    if path.is_dir():
        config = read_json((path / "vae" if (path / MODEL_INDEX).is_file() else path) / "config.json")
        scale = config.get("scaling_factor")
        return scale if isinstance(scale, float) else None
    return latent_scale_of(shapes_of(open_tensors(path)[0]), str(path))


def with_vae_of(
    architecture: Architecture, path: Path, shapes: Shapes, metadata: Mapping[str, str]
) -> Architecture:
    """The architecture of a model without a VAE, once `path` gives it one: widths are those of the tensors,
    norm groups what its folder's configuration or its file's metadata says, or else the model's own.

    Raises ModelError for a VAE that can't be built so.
    """
    places = [VAE_LEVEL.format(level) for level in range(len(architecture.vae_widths))]
    widths = [shapes[place][0] for place in places if shapes.get(place)]
    path = resolve_vae(path)
    config = (path / "vae" if (path / MODEL_INDEX).is_file() else path) / "config.json"
    if config.is_file():
        groups = read_json(config).get("norm_num_groups", SD1.vae_groups)
    else:
        groups = (declared(metadata, str(path)) if METADATA_KEY in metadata else architecture).vae_groups
    try:
        return Architecture.model_validate({**dict(architecture), "vae_widths": widths, "vae_groups": groups})
    except ValidationError as error:
        raise ModelError(f"{path} is no VAE that AID knows ({first_fault(error)})") from error


def read_vae(path: Path, family: Family = "sd1") -> dict[str, Tensor]:
    """`open_vae`, with all values read."""
    return {key: stored.read() for key, stored in open_vae(path, family)[0].items()}
