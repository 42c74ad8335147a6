"""A merge done again from what its result says of itself: the settings, and its parents by their hashes."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from aid.core.known_hash import is_quick
from aid.core.lineage import (
    FILE,
    LINEAGE_FILE,
    Lineage,
    Source,
    embedded_lineage,
    lineage_of,
    read_lineage,
)
from aid.errors import AidError, FileError
from aid.merge.settings import MergeInputs, MergeSettings, file_of

ENDINGS = (".safetensors", ".ckpt", ".pt", ".bin")


def recorded(
    file: Path, given: Mapping[str, Path], folders: Sequence[Path]
) -> tuple[MergeSettings, MergeInputs]:
    """The settings and inputs of the merge that made `file`. Parents are those `given` by name
    (`models.style`, `vae`), or are found by their hashes: in the file's own folder and in `folders`; and
    beside an artifact, or in the current folder, what need not be read to be known or has the right name.

    Raises FileError for a file that no merge made, for a folder that isn't there, for a parent of another
    hash than the one recorded, and, naming each with its hash, for parents that are nowhere.
    """
    for folder in folders:
        if not folder.is_dir():
            raise FileError(f"{folder} is no folder", "one in which parents may lie", "Check --parents.")
    made = lineage_of(file)
    if made.node.verb != "merge":
        raise FileError(f"{file} was not made by merging (its lineage says {made.node.verb})", "a merge")
    paths = {name: _checked(name, path, made) for name, path in given.items()}
    missing = {name: source for name, source in made.node.inputs.items() if name not in paths}
    present = _found(_candidates(file, folders, missing.values(), made), missing.values())
    paths |= {name: present[one.sha256] for name, one in missing.items() if one.sha256 in present}
    if absent := [_told(name, one, made) for name, one in missing.items() if name not in paths]:
        raise FileError(
            f"{file} needs {'; '.join(absent)}, which is nowhere",
            "every parent, beside the file or its folder, here, or in a folder given with --parents",
            "Give a parent's path with --models NAME=PATH.",
        )
    try:
        return MergeSettings.model_validate(made.node.settings), MergeInputs.model_validate(_tree(paths))
    except ValidationError as error:
        raise FileError(
            f"{file} was merged by another version of AID ({error.errors()[0]['msg']})"
        ) from error


def _checked(name: str, path: Path, made: Lineage) -> Path:
    source = made.node.inputs.get(name)
    if source is None:
        raise FileError(f"the merge had no {name}", ", ".join(made.node.inputs))
    if lineage_of(file_of(path)).sha256 != source.sha256:
        raise FileError(f"{path} is not what was merged", _told(name, source, made))
    return path


def _told(name: str, source: Source, made: Lineage) -> str:
    """A parent by name, and by the sha256 of the file where it was a plain one."""
    if plain := _plain(source, made):
        file, sha256 = plain
        return f"{name} ({file}, sha256 {sha256})"
    node = made.nodes.get(source.key)
    return f"{name} (made by {node.verb if node else 'AID'}, content {source.sha256})"


def _plain(source: Source, made: Lineage) -> tuple[str, str] | None:
    """The name and the sha256 of a file that AID hadn't made."""
    node = made.nodes.get(source.key)
    if node is None or node.verb != FILE or len(node.inputs) != 1:
        return None
    [(file, own)] = node.inputs.items()
    return file, own.sha256


def _found(paths: Iterable[Path], sources: Iterable[Source]) -> dict[str, Path]:
    """Content hash -> path. Once all are found, no further file is read."""
    wanted, found = {one.sha256 for one in sources}, dict[str, Path]()
    for path in paths if wanted else ():
        if wanted <= found.keys():
            break
        with suppress(AidError, OSError):  # what can't be read is no parent
            found.setdefault(lineage_of(file_of(path)).sha256, path)
    return found


def _candidates(
    file: Path, folders: Sequence[Path], sources: Collection[Source], made: Lineage
) -> Iterator[Path]:
    """What may be one of the sources, the likeliest first. What is only near, in the folder beside an
    artifact or the current one, may be much: what is unlikely there isn't read."""
    home = file if file.is_dir() else file.parent
    asked = [path for folder in (home, *folders) for path in _models(folder)]
    beside = [home.absolute().parent] if (home / LINEAGE_FILE).is_file() else []
    near = [path for folder in (*beside, Path()) for path in _models(folder)]
    own = {file.absolute(), home.absolute()}
    every = {path.absolute(): path for path in (*asked, *near) if path.absolute() not in own}
    keys = {one.key for one in sources}
    names = {plain[0] for one in sources if (plain := _plain(one, made))}
    likely = {at: path for at, path in every.items() if _is_likely(path, keys, names)}
    yield from likely.values()
    yield from (path for path in asked if path.absolute() in every.keys() - likely.keys())


def _models(folder: Path) -> Iterator[Path]:
    """The files and artifacts in a folder, and the artifacts' files."""
    for path in sorted(folder.iterdir()) if os.access(folder, os.R_OK | os.X_OK) else ():
        if (path / LINEAGE_FILE).is_file():
            yield path
            yield from (inner for inner in sorted(path.iterdir()) if inner.suffix in ENDINGS)
        elif path.suffix in ENDINGS:
            yield path


def _is_likely(path: Path, keys: Collection[str], names: Collection[str]) -> bool:
    """By the run that made it, by its name if no run did, or because its hash costs nothing."""
    with suppress(AidError, OSError):
        key = _key(path)
        return (key in keys if key else path.name in names) or (path.is_file() and is_quick(path))
    return False


def _key(path: Path) -> str:
    """Of the run that made a file or an artifact; empty if none is known. No content is read."""
    home = path if path.is_dir() else path.parent
    if (home / LINEAGE_FILE).is_file():
        made = read_lineage(home)
        if path == home or path.name in made.files:
            return made.key
    own = embedded_lineage(path)
    return own.key if own else ""


def _tree(paths: Mapping[str, Path]) -> dict[str, Any]:
    """`{"models.a": path}` as `{"models": {"a": path}}`."""
    tree: dict[str, Any] = {}
    for name, path in paths.items():
        field, _, inner = name.partition(".")
        if inner:
            tree.setdefault(field, {})[inner] = path
        else:
            tree[field] = path
    return tree
