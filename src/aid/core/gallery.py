"""A Gallery folder: pictures, and `shots.jsonl` with a line `{"file": ..., "shot": {...}}` for each."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from pydantic import BaseModel, ConfigDict, ValidationError

from aid.core.shot import Shot
from aid.errors import ArtifactError

SHOTS_FILE = "shots.jsonl"


class Frame(BaseModel):
    """One picture of a gallery and the shot it was drawn from."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    file: str
    shot: Shot


def read_gallery(folder: Path) -> list[Frame]:
    """The frames in their order. Raises ArtifactError naming a malformed line or a picture not there."""
    path = folder / SHOTS_FILE
    try:
        lines = [line for line in path.read_bytes().splitlines() if line.strip()]
    except OSError as error:
        raise ArtifactError(f"{path} could not be read", "a folder made by `aid generate`") from error
    frames = [_frame(path, number, line) for number, line in enumerate(lines, 1)]
    if not frames:
        raise ArtifactError(f"{path} has no shots", "at least one")
    for frame in frames:
        inside = ".." not in PurePosixPath(frame.file).parts and not PurePosixPath(frame.file).is_absolute()
        if not inside or not (folder / frame.file).is_file():
            raise ArtifactError(f"{path} names {frame.file}, which is not in the gallery", "its own pictures")
    return frames


def _frame(path: Path, number: int, line: bytes) -> Frame:
    try:
        return Frame.model_validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ArtifactError(
            f"{path}, line {number}: {where} {first['msg']}".replace("  ", " "),
            '{"file": ..., "shot": {...}}',
        ) from error
