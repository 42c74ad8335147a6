"""manifest.jsonl: one picture a line.

    {"file": "0001.png", "style": "fuzichoco", "tags": "1girl, smile", "licence": "CC0-1.0", "credit": "A"}

Only `file` is needed; what is left out comes from the sidecar, `credit.toml` and the folder's name. Others:
`description` (sentences), `characters`, `score` (0-10), `rating` (g, s, q, e) and `mask` (a picture's path).
kohya's lists are read as well: see kohya.py.
A Gallery's `shots.jsonl` is read too: its pictures are the model's own, so they have no style, and
their tags are those the shot asked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import from_json

from aid.dataset.finding.kohya import METADATA_FILES, metadata_entries, translated
from aid.errors import FileError

MANIFEST_FILE = "manifest.jsonl"
MANIFESTS = (MANIFEST_FILE, "metadata.jsonl", *METADATA_FILES)  # the first of these that a folder has is read
MAXIMUM_MANIFEST_BYTES = 1 << 30


class Entry(BaseModel):
    """One line."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    file: str
    style: str | None = None
    tags: tuple[str, ...] | None = None
    licence: str | None = None
    credit: str | None = None
    description: str = ""
    characters: tuple[str, ...] = ()
    score: float | None = Field(default=None, ge=0, le=10, allow_inf_nan=False)
    rating: str = ""
    mask: str | None = None

    @field_validator("tags", "characters", mode="before")
    @classmethod
    def _one_text(cls, tags: object) -> object:
        return [tags] if isinstance(tags, str) else tags

    @field_validator("file", "mask")
    @classmethod
    def _inside(cls, file: str | None) -> str | None:
        if file is None:
            return None
        parts = PurePosixPath(file).parts
        if not parts or PurePosixPath(file).is_absolute() or PureWindowsPath(file).anchor or ".." in parts:
            raise ValueError(f"{file!r} is not a path inside the folder")
        if any(part.startswith(".") for part in parts) or not file.isprintable():
            raise ValueError(f"{file!r} is a hidden or unprintable name")
        return file


@dataclass(frozen=True)
class Refused:
    """A line that can't be meant, and the style it asked for, if it did."""

    reason: str
    style: str | None = None


def read_manifest(path: Path) -> Iterator[tuple[str, Entry | Refused]]:
    """(label, entry) of every line that isn't blank, in order.

    Raises FileError if the manifest can't be read at all.
    """
    content = _read(path)
    if path.name in METADATA_FILES:
        for label, fields in metadata_entries(path, content):
            yield label, read_entry(json.dumps(fields).encode())
        return
    for number, line in enumerate(content.splitlines(), 1):
        if line.strip():
            yield f"{path.name}:{number}", read_entry(line)


def _read(path: Path) -> bytes:
    try:
        if not path.resolve().is_relative_to(path.parent.resolve()):
            raise FileError(f"{path} is a link that leaves its folder", "a plain file")
        if path.stat().st_size > MAXIMUM_MANIFEST_BYTES:
            raise FileError(f"{path} is over 1 GiB", "one line a picture")
        return path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise FileError(f"{path} could not be read ({error.strerror or error})") from error


def read_entry(line: bytes) -> Entry | Refused:
    """One line's entry, or why it is refused."""
    try:
        fields = from_json(line)
        shot = fields.pop("shot", None) if isinstance(fields, dict) else None
        if isinstance(shot, dict):
            fields |= {"style": "", "tags": shot.get("tags", ())}
        if isinstance(fields, dict) and "file" not in fields:
            fields = translated(fields)
        return Entry.model_validate(fields)
    except (ValueError, RecursionError) as error:
        if not isinstance(error, ValidationError):
            return Refused("is not JSON")
        first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"]))
    return Refused(f"{where}: {first['msg']}" if where else first["msg"], _style(line))


def _style(line: bytes) -> str | None:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return None
    style = fields.get("style") if isinstance(fields, dict) else None
    return style if isinstance(style, str) else None
