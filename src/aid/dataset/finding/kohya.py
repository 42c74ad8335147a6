"""The lists of pictures that kohya-ss/sd-scripts and Hugging Face's `imagefolder` use, as manifest entries.

`meta_*.json` is {"path or stem": {"caption": ..., "tags": ..., "image_size": [w, h]}}; the path is that of
the machine where it was made, so what counts is its place inside the folder, or else its name. A JSONL line
has `image_path` (kohya) or `file_name` (imagefolder) for `file`, and `text` for `caption`. A caption beside
tags is a description; alone, it is what the tags are read from, as a sidecar is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from aid.errors import FileError

METADATA_FILES = ("meta_lat.json", "meta_clean.json", "meta_cap_dd.json", "meta_cap.json")
SUFFIXES = (
    ".png",
    ".jpg",
    ".jpeg",
    ".webp",
    ".bmp",
    ".PNG",
    ".JPG",
    ".JPEG",
    ".WEBP",
    ".BMP",
    ".avif",
    ".gif",
)
NOT_MEANT = ("image_size", "train_resolution", "image_path", "file_name", "caption", "text")


def translated(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A JSONL line's fields under the names that a manifest has."""
    kept = {name: value for name, value in fields.items() if name not in NOT_MEANT}
    file = fields.get("image_path", fields.get("file_name"))
    caption = fields.get("caption", fields.get("text"))
    if file is not None:
        kept["file"] = file
    if caption is not None:
        kept["description" if kept.get("tags") else "tags"] = caption
    return kept


def metadata_entries(path: Path, content: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
    """(label, fields) of every picture in a metadata JSON, in its order.

    Raises FileError if the file is not one.
    """
    try:
        listed = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path} is not JSON", "kohya's metadata, or remove it") from error
    if not isinstance(listed, dict):
        raise FileError(f"{path} is not kohya's metadata", "an object of pictures by path")
    for key, fields in listed.items():
        label = f"{path.name}:{key}"
        given = fields if isinstance(fields, dict) else {"value": fields}
        yield label, {**translated(given), "file": picture_named(key, path.parent)}


def picture_named(key: str, root: Path) -> str:
    """The path inside `root` of the picture that a key means; the key's own name if there is none."""
    told = PureWindowsPath(key) if "\\" in key else PurePosixPath(key)
    places = [PurePosixPath(told.name)]
    if told.is_absolute() and Path(key).is_relative_to(root):
        places.insert(0, PurePosixPath(Path(key).relative_to(root).as_posix()))
    elif not told.is_absolute() and ".." not in told.parts:
        places.insert(0, PurePosixPath(told.as_posix()))
    for place in places:
        for suffix in ("", *SUFFIXES):
            if _is_file(root / f"{place}{suffix}"):
                return f"{place}{suffix}"
    return told.name


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
