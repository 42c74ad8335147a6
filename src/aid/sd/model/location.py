"""Where a checkpoint lies: told without opening it, and without torch."""

from __future__ import annotations

from pathlib import Path

from aid.errors import FileError

MODEL_INDEX = "model_index.json"
ARTIFACT_FILE = "model.safetensors"


def resolve_checkpoint(path: Path) -> Path:
    """What `path` names: a single file, that of an artifact folder, or a diffusers folder."""
    if (path / MODEL_INDEX).is_file():
        return path
    found = path / ARTIFACT_FILE if path.is_dir() else path
    if not found.is_file():
        raise FileError(f"{found} does not exist", "a checkpoint file or a folder that holds one")
    return found
