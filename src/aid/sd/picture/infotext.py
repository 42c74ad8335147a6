"""The `parameters` text that A1111 writes into a picture and reads back.

What the fields mean to a shot stands in `shot_fields`. Source: A1111 modules/processing.py (order of
fields) and infotext_utils.py (quoting, parsing).
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from PIL import Image
from PIL.PngImagePlugin import PngInfo

import aid
from aid.core.lineage import METADATA_KEY
from aid.core.shot import Shot
from aid.sd.picture.shot_fields import read_fields, written_fields

KEY = "parameters"
NEGATIVE = "Negative prompt:"
FIELD = re.compile(r'(\w[\w \-/]{1,99}):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')  # linear: names are short
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
    adapters: Mapping[str, str] = field(default_factory=dict)
    """Name -> 12 digits of the hash of each LoRA's tensors."""


@dataclass(frozen=True)
class Infotext:
    """A parsed text: the prompts, and every other field by its A1111 name."""

    prompt: str
    negative_prompt: str
    fields: dict[str, str]

    @property
    def weights(self) -> Weights:
        """What it says that the picture was drawn with."""
        return Weights(
            self.fields.get("Model hash", ""),
            self.fields.get("Model", ""),
            self.fields.get("VAE hash", ""),
            self.fields.get("VAE", ""),
            _listed(self.fields, "TI hashes"),
            _listed(self.fields, "Lora hashes"),
        )


def write_infotext(shot: Shot, weights: Weights | None = None) -> str:
    """The text for one picture, fields in A1111's order, empty ones left out."""
    weights = weights or Weights()
    before, between, after = written_fields(shot)
    fields = {
        **before,
        "Model hash": weights.model_hash,
        "Model": weights.model,
        "VAE hash": weights.vae_hash,
        "VAE": weights.vae,
        **between,
        "Lora hashes": _list(weights.adapters),
        "TI hashes": _list(weights.embeddings),
        **after,
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
    """The shot that a text describes; what it doesn't say is the default, or what A1111 means by saying
    nothing.

    Raises SettingsError for a value that no picture can have.
    """
    return read_fields(infotext.prompt, infotext.negative_prompt, infotext.fields)


def png_bytes(picture: Image.Image, parameters: str, lineage: str = "") -> bytes:
    """A PNG with its text chunks: Latin-1 where that suffices, else international text, as Pillow does."""
    text = PngInfo()
    text.add_text(KEY, parameters)
    if lineage:
        text.add_text(METADATA_KEY, lineage)
    stream = io.BytesIO()
    picture.save(stream, "png", pnginfo=text)
    return stream.getvalue()


def _list(hashes: Mapping[str, str]) -> str:
    return ", ".join(f"{_bare(name)}: {sha}" for name, sha in hashes.items())


def _listed(fields: Mapping[str, str], key: str) -> dict[str, str]:
    """`a: 1, b: 2` as name -> hash."""
    pairs = (item.rpartition(":") for item in fields.get(key, "").split(","))
    return {name.strip(): sha.strip() for name, colon, sha in pairs if colon and name.strip()}


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
