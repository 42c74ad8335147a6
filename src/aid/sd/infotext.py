"""The `parameters` text that A1111 writes into a picture and reads back, and the PNG around it.

Source: A1111 modules/processing.py (order of fields) and infotext_utils.py (quoting, parsing).
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydantic import ValidationError

import aid
from aid.core.lineage import METADATA_KEY
from aid.core.shot import Shot
from aid.errors import SettingsError

KEY = "parameters"
NEGATIVE = "Negative prompt:"
FIELD = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
SIZE = re.compile(r"^(\d+)x(\d+)$")
FEWEST_FIELDS = 3  # a last line with fewer is part of the prompt


@dataclass(frozen=True)
class Weights:
    """What a picture was drawn with, as its text names it: 10 digits of a model's sha256."""

    model_hash: str = ""
    model: str = ""
    vae_hash: str = ""
    vae: str = ""
    embeddings: Mapping[str, str] = field(default_factory=dict)
    """Name -> 12 digits of the sha256 of each embedding that the prompts use."""


@dataclass(frozen=True)
class Infotext:
    """A parsed text: the prompts, and every other field by its A1111 name."""

    prompt: str
    negative_prompt: str
    fields: dict[str, str]


def write_infotext(shot: Shot, weights: Weights | None = None) -> str:
    """The text for one picture, fields in A1111's order, empty ones left out."""
    weights = weights or Weights()
    fields = {
        "Steps": str(shot.steps),
        "Sampler": shot.sampler,
        "Schedule type": "Automatic",
        "CFG scale": repr(shot.cfg_scale).removesuffix(".0"),
        "Seed": str(shot.seed),
        "Size": f"{shot.width}x{shot.height}",
        "Model hash": weights.model_hash,
        "Model": weights.model,
        "VAE hash": weights.vae_hash,
        "VAE": weights.vae,
        "Clip skip": str(shot.clip_skip) if shot.clip_skip > 1 else "",
        "RNG": "CPU",
        "TI hashes": ", ".join(f"{_bare(name)}: {sha}" for name, sha in weights.embeddings.items()),
        "Version": f"AID {aid.__version__}",
    }
    line = ", ".join(f"{key}: {_quote(value)}" for key, value in fields.items() if value)
    negative = [f"{NEGATIVE} {shot.negative_prompt}"] if shot.negative_prompt else []
    return "\n".join([shot.prompt, *negative, line])


def parse_infotext(text: str) -> Infotext:
    """Read A1111's text, or any. Never raises: what can't be a field is part of the prompt."""
    *lines, last = text.strip().split("\n")
    fields = FIELD.findall(last)
    if len(fields) < FEWEST_FIELDS:
        lines, fields = [*lines, last], []
    prompts: tuple[list[str], list[str]] = [], []
    side = 0
    for line in map(str.strip, lines):
        if line.startswith(NEGATIVE):
            side, line = 1, line.removeprefix(NEGATIVE).strip()
        if line or prompts[side]:
            prompts[side].append(line)
    prompt, negative = map("\n".join, prompts)
    return Infotext(prompt, negative, {key: _unquote(value) for key, value in fields})


def shot_of(infotext: Infotext) -> Shot:
    """The shot that a text describes; what it doesn't say is the default.

    Raises SettingsError for a value that no picture can have.
    """
    fields = infotext.fields
    size = SIZE.match(fields.get("Size", ""))
    named = {
        "steps": fields.get("Steps"),
        "sampler": fields.get("Sampler"),
        "cfg_scale": fields.get("CFG scale"),
        "seed": fields.get("Seed"),
        "width": size and size[1],
        "height": size and size[2],
        "clip_skip": fields.get("Clip skip", "1"),
    }
    given = {name: value for name, value in named.items() if value is not None}
    try:
        return Shot.model_validate(
            {"prompt": infotext.prompt, "negative_prompt": infotext.negative_prompt, **given}
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise SettingsError(
            f"the picture's text says {'.'.join(map(str, first['loc']))} = {first['input']!r}", first["msg"]
        ) from error


def png_bytes(picture: Image.Image, parameters: str, lineage: str = "") -> bytes:
    """A PNG with its text chunks: Latin-1 where that suffices, else international text, as Pillow does."""
    text = PngInfo()
    text.add_text(KEY, parameters)
    if lineage:
        text.add_text(METADATA_KEY, lineage)
    stream = io.BytesIO()
    picture.save(stream, "png", pnginfo=text)
    return stream.getvalue()


def _bare(name: str) -> str:
    return name.replace(":", "").replace(",", "")


def _quote(value: str) -> str:
    """A JSON string where the bare value would be read back as something else."""
    plain = not any(mark in value for mark in ",\n:") and value == value.strip() and value[:1] != '"'
    return value if plain else json.dumps(value, ensure_ascii=False)


def _unquote(value: str) -> str:
    if len(value) > 1 and value[0] == value[-1] == '"':
        try:
            return str(json.loads(value))
        except ValueError:
            pass
    return value
