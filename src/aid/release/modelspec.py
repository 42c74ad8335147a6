"""What the released model's file says about itself: ModelSpec 1.0.1 and the hashes that sites look for.

Source: Stability-AI/ModelSpec; kohya-ss/sd-scripts for `sshs_model_hash`.
"""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from aid.core.catalogue import Catalogue
from aid.core.dataset import Record
from aid.core.picture import open_small
from aid.release.settings import ReleaseSettings
from aid.sd.file.tensorfile import hash_tensors
from aid.sd.model.architecture import METADATA_KEY as ARCHITECTURE_KEY
from aid.sd.model.architecture import Architecture
from aid.sd.model.metadata import architecture_name

THUMBNAIL_PX = 256  # ModelSpec advises 256x256
KEPT = (ARCHITECTURE_KEY, "aid.merge", "aid.starter", "modelspec.merged_from")


def describe_model(
    settings: ReleaseSettings,
    catalogue: Catalogue,
    records: Sequence[Record],
    architecture: Architecture,
    tensors: Mapping[str, Tensor],
    kept: Mapping[str, str],
) -> dict[str, str]:
    """The metadata of the model's file; `kept` is the checkpoint's own, of which what is still true stays.

    A model of its family's topology but other widths calls itself `stable-diffusion-v1/narrow`, so that no
    tool takes it for one that it can open.
    """
    hash_sha256 = hash_tensors(tensors)
    spec = {
        "sai_model_spec": "1.0.1",
        "architecture": architecture_name(architecture),
        "implementation": "https://github.com/Stability-AI/generative-models",
        "title": f"{settings.title} {settings.version}",
        "description": settings.description.en,
        "author": settings.author,
        "date": settings.date,
        "license": settings.licence,
        "tags": ", ".join(settings.tags),
        "trigger_phrase": ", ".join(catalogue.triggers()),
        "usage_hint": usage_hint(catalogue, architecture),
        "resolution": training_size(records),
        "prediction_type": architecture.prediction,
        "timestep_range": "0,1000",
        "encoder_layer": str(catalogue.parameters.clip_skip) if architecture.has_clip_skip else "",
        "hash_sha256": f"0x{hash_sha256}",
    }
    return {
        **{key: kept[key] for key in KEPT if key in kept},
        **{f"modelspec.{key}": value for key, value in spec.items() if value},
        "sshs_model_hash": hash_sha256,
    }


def usage_hint(catalogue: Catalogue, architecture: Architecture) -> str:
    """One line: `Euler a, 32 steps, clip skip 1; negative prompt: aid210`."""
    parameters = catalogue.parameters
    drawing = f"{parameters.sampler}, {parameters.steps[0]} steps"
    if architecture.has_clip_skip:
        drawing += f", clip skip {parameters.clip_skip}"
    negative = parameters.negative()
    return f"{drawing}; negative prompt: {negative}" if negative else drawing


def training_size(records: Sequence[Record]) -> str:
    """`WxH` of the most pictures trained on; empty if there were none."""
    sizes = Counter((record.width, record.height) for record in records if record.split == "train")
    if not sizes:
        return ""
    width, height = min(sizes, key=lambda size: (-sizes[size], size))
    return f"{width}x{height}"


def thumbnail(picture: Path) -> str:
    """A data URL of the picture, 256 pixels at most, that model browsers show."""
    small = open_small(picture, THUMBNAIL_PX)
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
