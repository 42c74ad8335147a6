"""A merge done again from what its result says of itself: the settings, and its parents by their hashes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from aid.core.lineage import FILE, LINEAGE_FILE, Lineage, Source, lineage_of
from aid.errors import AidError, FileError
from aid.merge.settings import MergeInputs, MergeSettings, file_of

ENDINGS = (".safetensors", ".ckpt", ".pt", ".bin")


def recorded(
    file: Path, given: Mapping[str, Path], folders: Sequence[Path]
) -> tuple[MergeSettings, MergeInputs]:
    """The settings and inputs of the merge that made `file`. Parents are those `given` by name
    (`models.style`, `vae`), or are found by their hashes beside the file and in `folders`.

    Raises FileError for a file that no merge made, for a parent of another hash than the one recorded, and,
    naming each with its hash, for parents that are nowhere.
    """
    made = lineage_of(file)
    if made.node.verb != "merge":
        raise FileError(f"{file} was not made by merging (its lineage says {made.node.verb})", "a merge")
    paths = {name: _checked(name, path, made) for name, path in given.items()}
    missing = {name: source for name, source in made.node.inputs.items() if name not in paths}
    if missing:
        present = dict(_candidates([file.parent, *folders], {one.sha256 for one in missing.values()}))
        paths |= {name: present[one.sha256] for name, one in missing.items() if one.sha256 in present}
    if absent := [_told(name, one, made) for name, one in missing.items() if name not in paths]:
        raise FileError(
            f"{file} needs {'; '.join(absent)}, which is nowhere",
            "every parent, beside the file or in a folder given with --parents",
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
    node = made.nodes.get(source.key)
    if node is not None and node.verb == FILE and len(node.inputs) == 1:
        [(file, own)] = node.inputs.items()
        return f"{name} ({file}, sha256 {own.sha256})"
    return f"{name} (made by {node.verb if node else 'AID'}, content {source.sha256})"


def _candidates(folders: Sequence[Path], wanted: set[str]) -> Iterator[tuple[str, Path]]:
    """Content hash -> path of the files and artifacts in these folders that are wanted."""
    for folder in folders:
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.suffix in ENDINGS or (path / LINEAGE_FILE).is_file():
                try:
                    found = lineage_of(file_of(path)).sha256
                except AidError:
                    continue  # what can't be read is no parent
                if found in wanted:
                    yield found, path


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
