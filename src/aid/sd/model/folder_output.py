"""Diffusers folders, written: each part's configuration and weights, a scheduler, tokenizers."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aid.core.files import replacing, sync_folder, write_json
from aid.errors import FileError
from aid.sd.file.tensorfile import Stored, write_stored
from aid.sd.model.architecture import Architecture
from aid.sd.model.folder import FILES, MODEL_INDEX
from aid.sd.model.tokenizer import load_tokenizer

CLASSES = {
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "text_encoder_2": ("transformers", "CLIPTextModelWithProjection"),
    "scheduler": ("diffusers", "EulerAncestralDiscreteScheduler"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
    "tokenizer_2": ("transformers", "CLIPTokenizer"),
}
FORMAT = {"format": "pt"}  # transformers reads no file that doesn't say so
WRITTEN_AS = "0.30.0"  # the version of diffusers whose folders these are; its inpainting pipeline asks
OPEN_CLIP_PAD = "!"  # token 0
UNET_DEFAULTS = {  # what diffusers' converter of single files wants to be told
    "addition_embed_type": None,
    "class_embed_type": None,
    "layers_per_block": 2,
}


def write_folder(
    path: Path,
    architecture: Architecture,
    parts: Mapping[str, Mapping[str, Stored]],
    metadata: Mapping[str, str],
) -> None:
    """Write the folder whole or not at all; `parts` are each module's tensors under its own names. The
    metadata goes into the U-Net's file.

    Raises FileError if `path` exists.
    """
    if path.exists():
        raise FileError(f"{path} is there already", "a new folder", "Remove it or choose another name.")
    building = path.with_name(f".{path.name}.{os.getpid()}.part")
    shutil.rmtree(building, ignore_errors=True)
    try:
        for part, tensors in parts.items():
            told = {**metadata, **FORMAT} if part == "unet" else FORMAT
            _write_json(building / part / "config.json", configuration(part, architecture))
            write_stored(building / part / f"{FILES[part]}.safetensors", _published(part, tensors), told)
        names = ["scheduler", *_write_tokenizers(building, architecture)]
        _write_json(building / "scheduler" / "scheduler_config.json", scheduler(architecture))
        _write_json(building / MODEL_INDEX, _index(architecture, [*parts, *names]))
        building.rename(path)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    sync_folder(path.parent)


def configuration(part: str, architecture: Architecture) -> dict[str, Any]:
    """What a part's `config.json` says."""
    if part == "unet":
        return {"_class_name": CLASSES[part][1], **UNET_DEFAULTS, **architecture.unet_config()}
    if part == "vae":
        return {"_class_name": CLASSES[part][1], **architecture.vae_config()}
    made = architecture.text_config() if part == "text_encoder" else architecture.text_2_config()
    return {"architectures": [CLASSES[part][1]], "model_type": "clip_text_model", **made}


def scheduler(architecture: Architecture) -> dict[str, Any]:
    """Euler a on the levels that k-diffusion visits."""
    return {
        "_class_name": CLASSES["scheduler"][1],
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "prediction_type": "v_prediction" if architecture.prediction == "v" else "epsilon",
        "rescale_betas_zero_snr": architecture.zero_terminal_snr,
        "timestep_spacing": "linspace",
        "steps_offset": 1,
    }


def _index(architecture: Architecture, parts: list[str]) -> dict[str, Any]:
    listed: dict[str, Any] = {part: list(CLASSES[part]) for part in sorted(parts)}
    listed["_diffusers_version"] = WRITTEN_AS
    kind = "InpaintPipeline" if architecture.inpaints else "Pipeline"
    if architecture.family == "sdxl":
        return {"_class_name": f"StableDiffusionXL{kind}", "force_zeros_for_empty_prompt": True, **listed}
    absent = {name: [None, None] for name in ("feature_extractor", "safety_checker")}
    return {"_class_name": f"StableDiffusion{kind}", "requires_safety_checker": False, **absent, **listed}


def _published(part: str, tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """Text encoders under the names that every version of transformers reads."""
    if part != "text_encoder":
        return dict(tensors)
    return {f"text_model.{key.removeprefix('text_model.')}": stored for key, stored in tensors.items()}


def _write_tokenizers(folder: Path, architecture: Architecture) -> list[str]:
    """CLIP's, and with OpenCLIP's padding where that reads: SD2, and SDXL's second."""
    names = ["tokenizer", "tokenizer_2"] if architecture.family == "sdxl" else ["tokenizer"]
    for name in names:
        load_tokenizer().save_pretrained(folder / name)
        config = folder / name / "tokenizer_config.json"
        told = json.loads(config.read_bytes())
        if architecture.family == "sd2" or name == "tokenizer_2":
            told["pad_token"] = OPEN_CLIP_PAD
        _write_json(config, told)
        _write_word_list(folder / name)
    return names


def _write_word_list(folder: Path) -> None:
    """`vocab.json` and `merges.txt`, which older versions of transformers read instead."""
    model = json.loads((folder / "tokenizer.json").read_bytes())["model"]
    _write_json(folder / "vocab.json", dict(sorted(model["vocab"].items(), key=lambda item: item[1])))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    with replacing(folder / "merges.txt") as stream:
        stream.write("\n".join(["#version: 0.2", *merges, ""]).encode())


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, value)
