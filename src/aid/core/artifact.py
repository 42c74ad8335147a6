"""The one law: verb(settings, inputs, out) -> artifact.

An artifact is a folder with what was made and a lineage.json. It is built in a hidden neighbour and
renamed when whole, so a folder under its own name is always complete. The neighbour survives an
interruption: a verb that can continue finds its own unfinished work there, and one that can't
starts from an empty folder. Neither leaves anything else behind, however a run ends.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

from pydantic import BaseModel, ConfigDict

from aid.core.files import sha256_file, sync_folder, write_text
from aid.core.lineage import (
    LINEAGE_FILE,
    Lineage,
    Node,
    changed_files,
    describe,
    flat,
    printable,
    read_lineage,
    size_told,
)
from aid.core.workbench import Workbench
from aid.errors import ArtifactError, FileError, SettingsError

SCRATCH = "scratch"  # unfinished work inside a folder under construction; not part of what is released
FULL_DISK = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}
MANY_NAMES = 5  # files named in an error


class Settings(BaseModel):
    """Base of every verb's settings: frozen, unknown fields refused, numbers finite, fields documented where
    they stand."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    def course(self) -> dict[str, Any]:
        """Those that decide what is made: unfinished work goes on where they are the same."""
        return self.model_dump(mode="json")


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

    def known_by(self, path: Path) -> Path:
        """The part of an input that decides the result: all of it, if a verb doesn't say otherwise."""
        return path


S = TypeVar("S", bound=Settings, contravariant=True)
I = TypeVar("I", bound=Inputs, contravariant=True)  # noqa: E741


class Verb(Protocol[S, I]):
    """A stage: makes (or finds already made) the artifact `out` and returns its folder."""

    name: str
    resumable: bool

    def __call__(self, settings: S, inputs: I, out: Path, bench: Workbench = ...) -> Path: ...


def verb(
    name: str,
    *,
    resumable: bool = False,
    together: bool = False,
    unhashed: Collection[str] = (),
    spared: str = "",
    precious: str = "",
) -> Callable[[Callable[[S, I, Path, Workbench], None]], Verb[S, I]]:
    """Turn a story `(settings, inputs, folder, bench)` that fills `folder` into a verb.

    The verb makes nothing if `out` is already what settings and inputs ask for; otherwise it builds
    beside `out` and renames. With `resumable`, the folder of an interrupted run with the same
    settings and inputs is handed back as it was left; `folder / SCRATCH` is removed at the end.
    Where they differ, only files in the scratch named like `spared` stay, which are good for any run; and
    if there is one like `precious`, a path in the folder, it took long to make: the run is refused.
    `unhashed` are large files that are made faster than hashed: whoever uses the artifact first hashes them.

    With `together`, several processes may run the story at once: the first of them as ever, the others in
    the folder that it is building, where they only read.
    """

    def decorate(story: Callable[[S, I, Path, Workbench], None]) -> Verb[S, I]:
        @functools.wraps(story)
        def run(settings: S, inputs: I, out: Path, bench: Workbench | None = None) -> Path:
            lineage = asked(name, settings, inputs)
            if is_current(out, lineage):
                sweep(out, resumable)
                return out
            if bench is not None and bench.ranks > 1 and not together:
                found = f"aid {name} was started as {bench.ranks} processes"
                raise SettingsError(found, "one process; those that train may be many")
            if bench is not None and bench.rank:
                folder = _beside(out, "building")
                if not (_is_whole(folder, lineage) or is_current(out, lineage)):  # released just now
                    story(settings, inputs, folder, bench)
                return out
            _refuse_to_replace(out, lineage)
            if bench is not None and (out / LINEAGE_FILE).is_file():
                bench.progress.say(f"  {out} will be replaced: {_why(out, lineage)}")
            with _full_disk_named(out, resumable), _held(out) as folder:
                if not _is_whole(folder, lineage):
                    with _tidied(folder, resumable):
                        if not (resumable and _continues(folder, settings, lineage)):
                            _refuse_to_discard(folder, lineage, precious)
                            _clear(folder, spared)
                        _begin(folder, lineage)
                        story(settings, inputs, folder, bench or Workbench())
                        _seal(folder, lineage, unhashed)
                _release(folder, out)
            return out

        made = cast(Any, run)
        made.name, made.resumable = name, resumable
        return cast("Verb[S, I]", made)

    return decorate


def asked(name: str, settings: Settings, inputs: Inputs) -> Lineage:
    """The lineage of a run of the verb `name`. Raises ArtifactError if an input was changed by hand."""
    return describe(name, settings.model_dump(mode="json"), inputs.paths(), inputs.known_by)


def is_current(out: Path, lineage: Lineage) -> bool:
    """Whether `out` holds, whole and unchanged, what a run of this lineage would make."""
    if not (out / LINEAGE_FILE).is_file():
        return False
    made = _made(out)
    return made.key == lineage.key and not changed_files(out, made)


def is_littered(out: Path) -> bool:
    """Whether a run left something beside `out`."""
    return any(_beside(out, what).exists() for what in ("building", "stale"))


def sweep(out: Path, resumable: bool = False) -> None:
    """Remove what killed runs left beside a current `out`; work that can be continued stays."""
    folder, stale = _beside(out, "building"), _beside(out, "stale")
    if not folder.is_dir():
        shutil.rmtree(stale, ignore_errors=True)
        return
    with suppress(ArtifactError), _held(out):  # another process at work there sweeps for itself
        shutil.rmtree(stale, ignore_errors=True)
        if not resumable or _is_bare(folder):
            shutil.rmtree(folder, ignore_errors=True)


def under_construction(folder: Path) -> Lineage:
    """The lineage of the artifact being built in `folder`: what goes into its files' own metadata."""
    return read_lineage(folder)


def replaced(folder: Path) -> Path | None:
    """The artifact that the one under construction in `folder` is to replace, if there is one."""
    if not (folder.name.startswith(".") and folder.name.endswith(".building")):
        return None
    out = folder.with_name(folder.name[1 : -len(".building")])
    return out if (out / LINEAGE_FILE).is_file() else None


def _beside(out: Path, what: str) -> Path:
    return out.with_name(f".{out.name}.{what}")


def _made(out: Path) -> Lineage:
    return read_lineage(out, f"Delete {out} and run the same command again, or choose another --out.")


def _refuse_to_replace(out: Path, lineage: Lineage) -> None:
    """Only an artifact of the same verb, with nothing of its owner's in it, is ever replaced."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / LINEAGE_FILE).is_file():
        raise ArtifactError(f"{out} exists and AID did not make it", "a new folder", "Choose another --out.")
    made, asked = _made(out), lineage.node.verb
    if made.node.verb != asked:
        found = f"{out} was made by {made.node.verb}"
        raise ArtifactError(found, f"a new folder or one made by {asked}", "Choose another --out.")
    if foreign := sorted(set(_files(out)) - set(made.files)):
        named = ", ".join(map(printable, foreign[:MANY_NAMES])) + (", ..." if foreign[MANY_NAMES:] else "")
        found = f"{out} holds files that AID did not make: {named}"
        raise ArtifactError(found, "only AID's", "Move them elsewhere or choose another --out.")


def _why(out: Path, lineage: Lineage) -> str:
    """In what the artifact that is there isn't the one asked for."""
    made = _made(out)
    differences = "; ".join(_differences(made.node, lineage.node)[:MANY_NAMES])
    return differences or f"{printable(changed_files(out, made))} was changed or removed"


@contextmanager
def _full_disk_named(out: Path, resumable: bool) -> Iterator[None]:
    try:
        yield
    except (OSError, FileError) as error:
        if not (reason := _full_disk(error)):
            raise
        again = "it continues where it stopped" if resumable else "it starts afresh"
        raise FileError(
            f"{out} could not be written ({reason})",
            next_step=f"Free some disk space, then run the same command again: {again}.",
        ) from error


def _full_disk(error: BaseException | None) -> str:
    """What the system says, if a full disk is what caused the error."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL_DISK:
            return os.strerror(error.errno or 0)
        error = error.__cause__
    return ""


@contextmanager
def _held(out: Path) -> Iterator[Path]:
    """Yield the folder under construction, made if need be, locked against other processes."""
    folder = _beside(out, "building")
    descriptor = _lock(folder, out)
    try:
        yield folder
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # also for children, which share the descriptor
        os.close(descriptor)


def _lock(folder: Path, out: Path) -> int:
    """A descriptor that locks the folder itself: a killed run leaves no lock behind.

    Who held it just before may have renamed or removed it; then the folder that now lies there is locked.
    """
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), folder.stat()):
                return descriptor
        except FileNotFoundError:
            pass
        except BlockingIOError:
            os.close(descriptor)
            busy = f"{out} is being made by another process"
            raise ArtifactError(busy, "one at a time", "Wait for it to end.") from None
        os.close(descriptor)


@contextmanager
def _tidied(folder: Path, resumable: bool) -> Iterator[None]:
    """After an error or interruption, keep only work that can be continued."""
    try:
        yield
    except BaseException:
        if not resumable or _is_bare(folder):
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _continues(folder: Path, settings: Settings, lineage: Lineage) -> bool:
    """Whether the work in the folder is that of a run of the same course from the same inputs."""
    if (begun := _begun(folder)) is None:
        return False
    asked = lineage.node
    sources = [{name: one.sha256 for name, one in inputs.items()} for inputs in (begun.inputs, asked.inputs)]
    try:
        course = type(settings).model_validate(begun.settings).course()
    except ValueError:  # of another version
        return begun == asked
    return begun.verb == asked.verb and course == settings.course() and sources[0] == sources[1]


def _refuse_to_discard(folder: Path, lineage: Lineage, precious: str) -> None:
    begun = _begun(folder)
    if not precious or begun is None or not any(folder.glob(precious)):
        return
    found = "; ".join(_differences(begun, lineage.node)[:MANY_NAMES])
    raise ArtifactError(
        f"{folder} holds an unfinished {begun.verb} of other settings or inputs: {found}",
        "the same, to go on with it",
        f"Run that command again, choose another --out, or delete {folder} to begin anew.",
    )


def _differences(begun: Node, asked: Node) -> list[str]:
    """What two runs don't share: `steps was 60`."""
    sources = [
        {f"inputs.{name}": one.sha256[:12] for name, one in node.inputs.items()} for node in (begun, asked)
    ]
    before, now = (
        {**dict(flat(node.settings)), **inputs} for node, inputs in zip((begun, asked), sources, strict=True)
    )
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return [f"{name} was {before.get(name)}" for name in names]


def _clear(folder: Path, spared: str) -> None:
    """Remove what is in the folder, but for files in its scratch that are `spared`."""
    kept = set((folder / SCRATCH).glob(spared)) if spared else set()
    for path in folder.iterdir():
        if path.name != SCRATCH or not kept:
            _remove(path)
    for path in (folder / SCRATCH).iterdir() if kept else ():
        if path not in kept:
            _remove(path)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _begin(folder: Path, lineage: Lineage) -> None:
    for part in folder.rglob(".*.part"):  # of a file that was being written when a run was killed
        part.unlink()
    write_text(folder / LINEAGE_FILE, lineage.model_dump_json())


def _seal(folder: Path, lineage: Lineage, unhashed: Collection[str]) -> None:
    """Write down the files' hashes: from here on the folder is whole."""
    files = {
        name: (size_told if name in unhashed else sha256_file)(folder / name) for name in _made_files(folder)
    }
    whole = lineage.model_copy(update={"files": files})
    write_text(folder / LINEAGE_FILE, whole.model_dump_json(indent=1))


def _is_whole(folder: Path, lineage: Lineage) -> bool:
    """Whether a run was killed after sealing, so that only the release is missing."""
    if _key_in(folder) != lineage.key:
        return False
    sealed = read_lineage(folder)
    same = bool(sealed.files) and sorted(sealed.files) == _made_files(folder)
    return same and not changed_files(folder, sealed)


def _release(folder: Path, out: Path) -> None:
    """Give the sealed folder its name. Its scratch and what it replaces go last: whenever this is killed,
    nothing that took long to make is lost."""
    stale = _beside(out, "stale")
    shutil.rmtree(stale, ignore_errors=True)
    stale.mkdir()
    if (folder / SCRATCH).exists():
        os.replace(folder / SCRATCH, stale / SCRATCH)
    if out.exists():
        os.replace(out, stale / "replaced")
    os.replace(folder, out)
    sync_folder(out.parent)
    shutil.rmtree(stale, ignore_errors=True)


def _begun(folder: Path) -> Node | None:
    """The run whose work is in a folder, if it can be told."""
    try:
        return read_lineage(folder).node
    except ArtifactError:
        return None


def _key_in(folder: Path) -> str:
    begun = _begun(folder)
    return begun.key() if begun else ""


def _is_bare(folder: Path) -> bool:
    return not _files(folder)


def _files(folder: Path) -> list[str]:
    """Every file by its path within the folder, but for its lineage."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in names if name != LINEAGE_FILE)


def _made_files(folder: Path) -> list[str]:
    return [name for name in _files(folder) if not name.startswith(f"{SCRATCH}/")]
