"""Diffusers folders, read under LDM names: `model_index.json`, and a folder for each part with its
`config.json` and weights (whole, in shards, as a `.fp16` variant, or pickled).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from aid.core.lineage import LINEAGE_FILE, content_sha256
from aid.errors import FileError, ModelError
from aid.sd.file.tensorfile import Stored, open_tensors
from aid.sd.model.architecture import Architecture, Family
from aid.sd.model.detection import check_widths, first_fault, require_known_inputs
from aid.sd.model.layouts import PLACES, Place, join
from aid.sd.model.location import MODEL_INDEX as MODEL_INDEX

FILES = {  # the usual name of each part's weights, without its ending
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
}
PICKLED = {"diffusion_pytorch_model": "diffusion_pytorch_model", "model": "pytorch_model"}
VARIANTS = ("", ".fp16", ".bf16", ".non_ema")
PIPELINES: dict[str, Family] = {
    "StableDiffusionPipeline": "sd1",
    "StableDiffusionXLPipeline": "sdxl",
    "StableDiffusionInpaintPipeline": "sd1",
    "StableDiffusionXLInpaintPipeline": "sdxl",
}
KEPT = (".json", ".safetensors", ".bin")
MAX_JSON_BYTES = 16 << 20


def open_folder(
    path: Path, vae_given: bool = False
) -> tuple[Architecture, dict[str, Stored], dict[str, str]]:
    """The architecture that the configurations describe, every tensor under its LDM name, and the metadata
    of the U-Net's file. `vae_given`: another VAE takes the place of the folder's, which may have none; the
    usual widths then stand for that one's.

    Raises FileError for a part that is missing or unreadable, ModelError for another family's pipeline.
    """
    bare = not (path / "vae").exists()
    if bare and not vae_given:
        bake = f"`aid convert {path} WHOLE.safetensors --vae VAE` gives it one."
        raise FileError(f"{path} has no VAE (vae/)", "a whole diffusers folder", bake)
    architecture = read_architecture(path, bare)
    parts = ["unet", "text_encoder", *([] if bare else ["vae"])]
    parts += ["text_encoder_2"] * (architecture.family == "sdxl")
    tensors: dict[str, Stored] = {}
    metadata: dict[str, str] = {}
    for part in parts:
        stored, told = open_part(path / part, part, architecture.family)
        tensors |= stored
        metadata |= told if part == "unet" else {}
    check_widths(architecture, {key: stored.shape for key, stored in tensors.items()}, str(path))
    return architecture, tensors, metadata


def read_architecture(path: Path, bare: bool = False) -> Architecture:
    """From the folder's configurations, which are anything until they have been checked; of a `bare` one, all
    but the VAE's."""
    index = read_json(path / MODEL_INDEX)
    family = PIPELINES.get(str(index.get("_class_name")))
    if family is None:
        raise ModelError(f"{path} holds a {index.get('_class_name')}", " or a ".join(PIPELINES))
    unet, text = (read_json(path / part / "config.json") for part in ("unet", "text_encoder"))
    require_known_inputs(unet.get("in_channels", 4), str(path))
    scheduler = path / "scheduler" / "scheduler_config.json"
    fields = {
        **_unet_fields(unet),
        **_text_fields(text, ""),
        **_schedule_fields(read_json(scheduler) if scheduler.is_file() else {}),
        **({} if bare else _vae_fields(read_json(path / "vae" / "config.json"))),
    }
    if family == "sdxl":
        second = _text_fields(read_json(path / "text_encoder_2" / "config.json"), "_2")
        second.pop("text_2_activation")
        fields |= second | {"size_width": unet.get("addition_time_embed_dim")}
    elif fields["text_activation"] != "quick_gelu":
        family = "sd2"  # its OpenCLIP; both families have one pipeline
    try:
        return Architecture.model_validate({"family": family, **fields})
    except ValidationError as error:
        raise ModelError(f"{path} describes no model that AID knows ({first_fault(error)})") from error


def _unet_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    widths = config.get("block_out_channels") or [320, 640, 1280, 1280]
    kinds = _listed(config.get("down_block_types") or ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"])
    depths = config.get("transformer_layers_per_block", 1)
    depths = depths if isinstance(depths, list) else [depths] * len(kinds)
    crossed = [kind == "CrossAttnDownBlock2D" for kind in kinds]
    return {
        "unet_inputs": config.get("in_channels", 4),
        "unet_widths": widths,
        "unet_depths": [depth if one else 0 for one, depth in zip(crossed, depths, strict=False)],
        **_head_fields(config.get("attention_head_dim", 8), _listed(widths)),
        "unet_groups": config.get("norm_num_groups", 32),
        "linear_projection": config.get("use_linear_projection", False),
        "native_edge_px": _pixels(config.get("sample_size")),
    }


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _head_fields(heads: Any, widths: list[Any]) -> dict[str, Any]:
    """diffusers' `attention_head_dim` is the number of heads, one or one a level."""
    if not isinstance(heads, list):
        return {"unet_heads": heads}
    pairs = list(zip(widths, heads, strict=False))
    sound = all(isinstance(one, int) and one > 0 for pair in pairs for one in pair)
    head_widths = {width // count for width, count in pairs} if sound else set()
    return {"unet_head_width": head_widths.pop() if len(head_widths) == 1 else -1}


def _pixels(sample_size: Any) -> Any:
    return sample_size * 8 if isinstance(sample_size, int) else 512


def _text_fields(config: Mapping[str, Any], number: str) -> dict[str, Any]:
    return {
        f"text{number}_width": config.get("hidden_size", 512),
        f"text{number}_layers": config.get("num_hidden_layers", 12),
        f"text{number}_heads": config.get("num_attention_heads", 8),
        f"text{number}_activation": config.get("hidden_act", "quick_gelu"),
    }


def _vae_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "vae_widths": config.get("block_out_channels", (64,)),
        "vae_groups": config.get("norm_num_groups", 32),
    }


def _schedule_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "prediction": "v" if config.get("prediction_type") == "v_prediction" else "epsilon",
        "zero_terminal_snr": config.get("rescale_betas_zero_snr", False),
    }


def read_json(path: Path) -> dict[str, Any]:
    """Raises FileError for a file that is missing, huge, or no JSON object."""
    try:
        with open(path, "rb") as stream:
            content = json.loads(stream.read(MAX_JSON_BYTES))
    except OSError as error:
        raise FileError(
            f"{path} could not be read ({error.strerror or error})", "a diffusers folder"
        ) from error
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path} is not JSON") from error
    if not isinstance(content, dict):
        raise FileError(f"{path} is not a JSON object")
    return content


def _part_files(folder: Path, name: str) -> Iterator[tuple[dict[str, Stored], dict[str, str]]]:
    """Tensors and metadata of each of a part's files; whole fp32 before variants, safetensors first."""
    for variant in VARIANTS:
        for stem, ending in ((name, "safetensors"), (PICKLED[name], "bin")):
            index = folder / f"{stem}.{ending}.index{variant}.json"
            if index.is_file():
                yield from map(open_tensors, _shards(folder, index))
                return
            whole = folder / f"{stem}{variant}.{ending}"
            if whole.is_file():
                yield open_tensors(whole)
                return
    raise FileError(f"{folder} holds no weights", f"{name}.safetensors, as diffusers writes it")


def _shards(folder: Path, index: Path) -> list[Path]:
    names = read_json(index).get("weight_map")
    names = sorted(set(map(str, names.values()))) if isinstance(names, dict) else []
    if not names or any(Path(name).name != name for name in names):
        raise FileError(f"{index} lists no shards of this folder", "a weight_map of file names")
    return [folder / name for name in names]


def folder_sha256(path: Path) -> str:
    """The hash of what makes a folder the model, or the part, that it is: its configurations and weights.
    Pictures and texts beside them don't count."""
    folders = [path, *(path / part for part in (*FILES, "scheduler"))]
    files = [file for folder in folders for ending in KEPT for file in folder.glob(f"*{ending}")]
    digest = hashlib.sha256()
    for file in sorted(file for file in files if file.name != LINEAGE_FILE and not file.name.startswith(".")):
        digest.update(f"{file.relative_to(path).as_posix()} {content_sha256(file)}\n".encode())
    return digest.hexdigest()


def is_part(path: Path, part: str) -> bool:
    """Whether `path` is the folder of one such part, such as a VAE's own."""
    if not (path / "config.json").is_file():
        return False
    return any(path.glob(f"{FILES[part]}*")) or any(path.glob(f"{PICKLED[FILES[part]]}*"))


def open_part(folder: Path, part: str, family: Family = "sd1") -> tuple[dict[str, Stored], dict[str, str]]:
    """One part's tensors under their LDM names, and its files' metadata."""
    tensors, metadata = stored_part(folder, part)
    return under_ldm_names(part, tensors, family, folder), metadata


def stored_part(folder: Path, part: str) -> tuple[dict[str, Stored], dict[str, str]]:
    """One part's tensors under the names that its files give them, and these files' metadata."""
    tensors: dict[str, Stored] = {}
    metadata: dict[str, str] = {}
    for stored, told in _part_files(folder, FILES[part]):
        tensors |= stored
        metadata |= told
    metadata.pop("format", None)
    return tensors, metadata


def under_ldm_names(
    part: str, stored: Mapping[str, Stored], family: Family, source: Path
) -> dict[str, Stored]:
    """A part's tensors as a single file holds them. Raises ModelError, which names the `source`, where thirds
    are missing or differ."""
    grouped: dict[str, list[tuple[Place, Stored]]] = {}
    for key, one in stored.items():
        if not key.endswith("position_ids"):
            place = PLACES[part](key, family)
            grouped.setdefault(place.key, []).append((place, one))
    return {key: _joined(key, parts, source) for key, parts in grouped.items()}


def _joined(key: str, parts: list[tuple[Place, Stored]], source: Path) -> Stored:
    """The LDM tensor of all that lie under one key."""
    place, first = parts[0]
    alike = len({(one.dtype, one.shape) for _, one in parts}) == 1
    thirds = {each.third for each, _ in parts}
    if not alike or not first.shape or thirds != ({None} if place.third is None else {0, 1, 2}):
        found = f"{source}: {key[:80]} is made of {len(parts)} tensors"
        raise ModelError(found, "one, or q, k and v of one shape")
    return Stored(first.dtype, place.shape(first.shape), partial(_read_joined, parts))


def _read_joined(parts: list[tuple[Place, Stored]]) -> Tensor:
    return join([(place, one.read()) for place, one in parts])
