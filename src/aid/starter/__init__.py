"""The embedded default: a small released model and the pictures its recipe learns from."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from aid.errors import FileError

FOLDER = Path(__file__).parent
BASE = FOLDER / "base.safetensors"
RECOMMENDED = FOLDER / "recommended.toml"


def shipped(name: str) -> Path:
    """A file or folder that ships with AID: `base` is the checkpoint, `pictures/...` its pictures.

    Raises FileError for anything else.
    """
    path = BASE if name == "base" else FOLDER / name
    inside = path.resolve().is_relative_to(FOLDER.resolve())
    if not inside or not path.exists():
        present = sorted(p.name for p in FOLDER.iterdir() if not p.name.startswith(("_", ".")))
        raise FileError(f"aid:{name} is not shipped with AID", f"base, or one of {', '.join(present)}")
    return path


def recommended() -> dict[str, Any]:
    """The settings of `generate` that suit the starter; embeddings as paths."""
    written = tomllib.loads(RECOMMENDED.read_text())
    return {**written, "embeddings": tuple(FOLDER / name for name in written.get("embeddings", ()))}
