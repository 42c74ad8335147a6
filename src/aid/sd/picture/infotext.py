"""The `parameters` text that A1111 writes into a picture and reads back.

What the fields mean to a shot stands in `shot_fields`. Source: A1111 modules/processing.py (order of
fields) and infotext_utils.py (quoting, parsing).
"""

from __future__ import annotations

import io
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from json import JSONDecoder

from PIL import Image
from PIL.PngImagePlugin import PngInfo

import aid
from aid.core.lineage import METADATA_KEY
from aid.core.shot import Shot
from aid.sd.picture.shot_fields import NOISE_SCHEDULE, read_fields, written_fields

KEY = "parameters"
NEGATIVE = "Negative prompt:"
ZERO_TERMINAL = "Zero Terminal SNR"  # A1111's value; its "Default" is whichever the model is marked as
HASH = re.compile(r"[0-9A-Fa-f]{8,64}")
ENDING = re.compile(r"\.(?:safetensors|ckpt|pt|bin)$")
FIELD = re.compile(r'(\w[\w \-/]{1,99}):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')  # linear: names are short
JSON_FIELD = re.compile(r"(?:^|(?<=[\s,]))(Hashes|Civitai resources|Civitai metadata): *(?=[{\[])")
"""What other tools add, as bare JSON with commas and quotes of its own."""
JSON_FIELDS = 3  # of one text
FIRST_FIELD = "Steps: "
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
    zero_terminal_snr: bool = False
    """Whether the first step began at pure noise: by a mark on the model, or by A1111's option."""


@dataclass(frozen=True)
class Infotext:
    """A parsed text: the prompts, and every other field by its A1111 name."""

    prompt: str
    negative_prompt: str
    fields: dict[str, str]

    @property
    def weights(self) -> Weights:
        """What it says that the picture was drawn with: in A1111's fields, or else in `Hashes`."""
        others = _hashes(self.fields.get("Hashes", ""))
        return Weights(
            self.fields.get("Model hash") or others.get("model", ""),
            self.fields.get("Model", ""),
            self.fields.get("VAE hash") or others.get("vae", ""),
            self.fields.get("VAE", ""),
            {**_of_kind("embed", others), **_listed(self.fields, "TI hashes")},
            {**_of_kind("lora", others), **_listed(self.fields, "Lora hashes")},
            self.fields.get(NOISE_SCHEDULE) == ZERO_TERMINAL,
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
        NOISE_SCHEDULE: ZERO_TERMINAL if weights.zero_terminal_snr else "",
        "Version": f"AID {aid.__version__}",
    }
    line = ", ".join(f"{key}: {_quote(value)}" for key, value in fields.items() if value)
    negative = [f"{NEGATIVE} {shot.negative_prompt}"] if shot.negative_prompt else []
    return "\n".join([shot.prompt, *negative, line])


def parse_infotext(text: str) -> Infotext:
    """Read A1111's text, or any. Never raises: what can't be a field is part of the prompt."""
    lines = text.strip().split("\n")
    fields: list[tuple[str, str]] = []
    for at in _places_of_fields(lines):
        if len(found := _fields_of(lines[at])) >= FEWEST_FIELDS:
            lines, fields = lines[:at], found
            break
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
    """A PNG with its text chunks: Latin-1 where that suffices, else international text, as Pillow does.

    Pixels are packed by runs alone: drawn pictures repeat little else, and the search takes thrice as long.
    """
    text = PngInfo()
    text.add_text(KEY, parameters)
    if lineage:
        text.add_text(METADATA_KEY, lineage)
    stream = io.BytesIO()
    picture.save(stream, "png", pnginfo=text, compress_type=zlib.Z_RLE)
    return stream.getvalue()


def _list(hashes: Mapping[str, str]) -> str:
    return ", ".join(f"{_bare(name)}: {sha}" for name, sha in hashes.items())


def _listed(fields: Mapping[str, str], key: str) -> dict[str, str]:
    """`a: 1, b: 2` as name -> hash."""
    pairs = (item.rpartition(":") for item in fields.get(key, "").split(","))
    return {name.strip(): sha.strip() for name, colon, sha in pairs if colon and name.strip()}


def _places_of_fields(lines: Sequence[str]) -> Iterator[int]:
    """The last line; or else the last that begins as fields do: extensions wrote lines of their own below."""
    yield len(lines) - 1
    yield from islice((at for at in reversed(range(len(lines))) if lines[at].startswith(FIRST_FIELD)), 1)


def _fields_of(line: str) -> list[tuple[str, str]]:
    bare, others = _without_json(line)
    return [*FIELD.findall(bare), *others.items()]


def _without_json(line: str) -> tuple[str, dict[str, str]]:
    """A line of fields without those that hold bare JSON, and these."""
    pieces, found, end = [], dict[str, str](), 0
    for match in islice(JSON_FIELD.finditer(line), JSON_FIELDS):
        if match.start() < end:
            continue
        try:
            _, after = JSONDecoder().raw_decode(line, match.end())
        except (ValueError, RecursionError):
            continue
        pieces.append(line[end : match.start()])
        found[match[1]] = line[match.end() : after]
        end = after
    return "".join([*pieces, line[end:]]), found


def encodable(text: str) -> str:
    """A question mark for each half of a letter: JSON can tell one (`\\ud800`), which no file takes."""
    return text.encode("utf-8", "replace").decode()


def _hashes(text: str) -> dict[str, str]:
    """`{"model": ..., "vae": ..., "lora:NAME": ..., "embed:NAME": ...}`, as sites and other tools have it."""
    try:
        told = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    pairs = told.items() if isinstance(told, dict) else ()
    return {encodable(key): sha.lower() for key, sha in pairs if isinstance(sha, str) and HASH.fullmatch(sha)}


def _of_kind(kind: str, hashes: Mapping[str, str]) -> dict[str, str]:
    """Name -> hash; a name may come with its folder and its file's ending."""
    named = ((key.partition(":"), sha) for key, sha in hashes.items())
    return {
        _bare(ENDING.sub("", name).replace("\\", "/").rpartition("/")[2]): sha
        for (found, colon, name), sha in named
        if colon and found.lower() == kind and name
    }


def _bare(name: str) -> str:
    return name.replace(":", "").replace(",", "")


def _quote(value: str) -> str:
    """A JSON string where the bare value would be read back as something else."""
    plain = not any(mark in value for mark in ",\n:") and value == value.strip() and value[:1] != '"'
    return value if plain else json.dumps(value, ensure_ascii=False)


def _unquote(value: str) -> str:
    if len(value) > 1 and value[0] == value[-1] == '"':
        try:
            return encodable(json.loads(value))
        except ValueError:
            pass
    return value
