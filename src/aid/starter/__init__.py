"""The embedded default: a small released model and the pictures its recipe learns from."""

from __future__ import annotations

from pathlib import Path

from aid.errors import FileError

FOLDER = Path(__file__).parent
BASE = FOLDER / "release" / "model.safetensors"  # core.release's MODEL_FILE, which takes a tenth of a second


def shipped(name: str) -> Path:
    """A file or folder that ships with AID: `release` is the starter's, `base` its checkpoint alone, and
    `pictures/...` what its recipe learns from.

    Raises FileError for anything else.
    """
    path = BASE if name == "base" else FOLDER / name
    inside = path.resolve().is_relative_to(FOLDER.resolve())
    if not inside or not path.exists():
        present = sorted(p.name for p in FOLDER.iterdir() if not p.name.startswith(("_", ".")))
        raise FileError(f"aid:{name} is not shipped with AID", f"base, or one of {', '.join(present)}")
    return path
