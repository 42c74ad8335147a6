"""The one law: verb(settings, inputs, out) -> artifact.

An artifact is a folder with what was made and a lineage.json. It is built in a hidden neighbour and
renamed when whole, so a folder under its own name is always complete. The neighbour survives an
interruption: a verb that can continue finds its own unfinished work there, and one that can't
starts from an empty folder.
"""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

from pydantic import BaseModel, ConfigDict

from aid.core.files import sha256_file, sync_folder, write_text
from aid.core.lineage import LINEAGE_FILE, Lineage, describe, read_lineage
from aid.core.workbench import Workbench
from aid.errors import ArtifactError

SCRATCH = "scratch"  # unfinished work inside a folder under construction; removed before it is released


class Settings(BaseModel):
    """Base of every verb's settings: frozen, unknown fields refused, fields documented where they stand."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Inputs(BaseModel):
    """Base of every verb's inputs: named paths, or lists and tables of them; None where left out."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    def paths(self) -> dict[str, Path]:
        """Every path with its name: `dataset`, `models.detail`, `pictures.0`."""
        named: dict[str, Path] = {}
        for field in type(self).model_fields:
            value = getattr(self, field)
            if isinstance(value, Path):
                named[field] = value
            elif isinstance(value, dict):
                named.update({f"{field}.{name}": path for name, path in value.items()})
            elif isinstance(value, (list, tuple)):
                named.update({f"{field}.{index}": path for index, path in enumerate(value)})
        return named


S = TypeVar("S", bound=Settings, contravariant=True)
I = TypeVar("I", bound=Inputs, contravariant=True)  # noqa: E741


class Verb(Protocol[S, I]):
    """A stage: makes (or finds already made) the artifact `out` and returns its folder."""

    name: str
    resumable: bool

    def __call__(self, settings: S, inputs: I, out: Path, bench: Workbench = ...) -> Path: ...


def verb(
    name: str, *, resumable: bool = False
) -> Callable[[Callable[[S, I, Path, Workbench], None]], Verb[S, I]]:
    """Turn a story `(settings, inputs, folder, bench)` that fills `folder` into a verb.

    The verb does nothing if `out` is already what settings and inputs ask for; otherwise it builds
    beside `out` and renames. With `resumable`, the folder of an interrupted run with the same
    settings and inputs is handed back as it was left; `folder / SCRATCH` is removed at the end.
    """

    def decorate(story: Callable[[S, I, Path, Workbench], None]) -> Verb[S, I]:
        @functools.wraps(story)
        def run(settings: S, inputs: I, out: Path, bench: Workbench | None = None) -> Path:
            lineage = describe(name, settings.model_dump(mode="json"), inputs.paths())
            if not is_current(out, lineage):
                with building(out, lineage, resumable) as folder:
                    story(settings, inputs, folder, bench or Workbench())
            return out

        made = cast(Any, run)
        made.name, made.resumable = name, resumable
        return cast("Verb[S, I]", made)

    return decorate


def is_current(out: Path, lineage: Lineage) -> bool:
    """Whether `out` holds, whole and unchanged, what a run of this lineage would make."""
    if not (out / LINEAGE_FILE).is_file():
        return False
    made = read_lineage(out)
    if made.key != lineage.key:
        return False
    return all((out / name).is_file() and sha256_file(out / name) == sha for name, sha in made.files.items())


@contextmanager
def building(out: Path, lineage: Lineage, resumable: bool = False) -> Iterator[Path]:
    """Yield the folder under construction; release it under its own name once the block has ended well."""
    if out.exists() and not (out.is_dir() and ((out / LINEAGE_FILE).is_file() or not any(out.iterdir()))):
        raise ArtifactError(f"{out} exists and AID did not make it", "a new folder", "Choose another --out.")
    folder = out.with_name(f".{out.name}.building")
    with _locked(out):
        unfinished = folder / LINEAGE_FILE
        if not (resumable and unfinished.is_file() and read_lineage(folder).key == lineage.key):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            write_text(unfinished, lineage.model_dump_json())
        for part in folder.rglob(".*.part"):  # of a file that was being written when a run was killed
            part.unlink()
        try:
            yield folder
        except BaseException:
            if not resumable:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder / SCRATCH, ignore_errors=True)
        _release(folder, out, lineage)


def under_construction(folder: Path) -> Lineage:
    """The lineage of the artifact being built in `folder`: what goes into its files' own metadata."""
    return read_lineage(folder)


def _release(folder: Path, out: Path, lineage: Lineage) -> None:
    files = {
        path.relative_to(folder).as_posix(): sha256_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).as_posix() != LINEAGE_FILE
    }
    whole = lineage.model_copy(update={"files": files})
    write_text(folder / LINEAGE_FILE, whole.model_dump_json(indent=1))
    if out.exists():
        stale = out.with_name(f".{out.name}.stale")
        shutil.rmtree(stale, ignore_errors=True)
        os.replace(out, stale)
        os.replace(folder, out)
        shutil.rmtree(stale, ignore_errors=True)
    else:
        os.replace(folder, out)
    sync_folder(out.parent)


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    out.parent.mkdir(parents=True, exist_ok=True)
    path = out.with_name(f".{out.name}.lock")
    with open(path, "w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ArtifactError(
                f"{out} is being made by another process", "one at a time", "Wait for it to end."
            ) from None
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
