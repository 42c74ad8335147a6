"""Where an artifact comes from: the verb, its settings, and the hashes of its inputs, back to the pictures.

A lineage is a small graph. Each node is one run of a verb; its key is the hash of what decided the
result (verb, settings, content of the inputs), so it is known before the work starts and the same
run has the same key everywhere. Plain files and folders from outside are nodes of the verbs `file`
and `pictures`.
"""

from __future__ import annotations

import functools
import json
import struct
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from aid.core.files import sha256_file, sha256_of, write_text
from aid.core.known_hash import Identity, identity_of, known_sha256
from aid.core.xmp import read_xmp
from aid.errors import ArtifactError, FileError

LINEAGE_FILE = "lineage.json"
METADATA_KEY = "aid.lineage"
XMP_NAME = "lineage"  # of the property, in JPEG and WebP
PICTURES, FORMATS = (".png", ".jpg", ".jpeg", ".webp"), ("PNG", "JPEG", "WEBP")
MAX_HEADER_BYTES = 100_000_000
MANY_FILES = 10_000
SETTLED_NS = 2_000_000_000  # clocks of file systems are this coarse: a younger file may yet change unseen
FILE = "file"  # a file is known by its content, not by its name
BYTES = " bytes"


class Source(BaseModel):
    """One input of a run: the hash of its content, and the key of the node that made it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    sha256: str
    key: str = ""


class Node(BaseModel):
    """One run of a verb."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    verb: str
    settings: dict[str, Any]
    inputs: dict[str, Source]

    def key(self) -> str:
        """The hash of what decides the result: not where inputs came from, only what they contain."""
        contents = {name: source.sha256 for name, source in self.inputs.items()}
        return sha256_of({"verb": self.verb, "settings": self.settings, "inputs": contents})


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting by its full name: `caption.keep`."""
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


class Lineage(BaseModel):
    """An artifact's node and all its ancestors; `files`, by path, once the artifact is whole: the sha256 of
    each, or its size (`7 bytes`) if its verb left hashing it to whoever uses it first."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    key: str
    nodes: dict[str, Node]
    files: dict[str, str] = {}

    @model_validator(mode="after")
    def _has_its_node(self) -> Self:
        if self.key not in self.nodes:
            raise ValueError("its own node is missing")
        return self

    @property
    def node(self) -> Node:
        return self.nodes[self.key]

    @property
    def sha256(self) -> str:
        """Of a file its bytes' hash, of a whole artifact that of its files."""
        return self.files[FILE] if self.files.keys() == {FILE} else sha256_of(self.files)

    def embedded(self, ancestors: bool = True) -> str:
        """The text that a file's own metadata carries: the graph without file hashes. Folders of very
        many pictures are summed up by one hash (their Dataset lists them); without `ancestors`, only
        the node itself, which is enough for a picture among many."""
        kept = self.nodes if ancestors else {self.key: self.node}
        nodes = {key: _summed_up(node).model_dump(mode="json") for key, node in kept.items()}
        return json.dumps({"key": self.key, "nodes": nodes}, sort_keys=True, ensure_ascii=False)

    def walk(self) -> Iterator[tuple[int, str, Node, str]]:
        """(depth, key, node, name under which its child uses it), the artifact first, each node once."""
        seen: set[str] = set()
        stack = [(0, self.key, "")]
        while stack:
            depth, key, name = stack.pop()
            node = self.nodes.get(key)
            if node is None or key in seen:
                continue
            seen.add(key)
            yield depth, key, node, name
            stack.extend((depth + 1, source.key, label) for label, source in reversed(node.inputs.items()))


def _summed_up(node: Node) -> Node:
    if node.verb != "pictures" or len(node.inputs) <= MANY_FILES:
        return node
    total = sha256_of({name: source.sha256 for name, source in node.inputs.items()})
    return Node(verb="pictures", settings={"files": len(node.inputs), "sha256": total}, inputs={})


def describe(
    verb: str,
    settings: dict[str, Any],
    inputs: Mapping[str, Path],
    known_by: Callable[[Path], Path] = lambda path: path,
) -> Lineage:
    """The lineage of a run about to start; `known_by` tells which part of an input stands for it.

    Raises ArtifactError if an artifact was changed by hand."""
    nodes: dict[str, Node] = {}
    sources: dict[str, Source] = {}
    for name, path in sorted(inputs.items()):
        _require_unchanged(path)
        ancestry = lineage_of(known_by(path))
        nodes.update(ancestry.nodes)
        sources[name] = Source(sha256=ancestry.sha256, key=ancestry.key)
    node = Node(verb=verb, settings=settings, inputs=sources)
    return Lineage(key=node.key(), nodes={**nodes, node.key(): node})


def _require_unchanged(path: Path) -> None:
    if not (path / LINEAGE_FILE).is_file():
        return
    if changed := changed_files(path, read_lineage(path)):
        raise ArtifactError(
            f"{path / changed} was changed or removed since AID made {path}",
            "the files that its lineage.json lists",
            "Restore the file, or make the artifact again.",
        )


def changed_files(folder: Path, made: Lineage) -> str:
    """The first file of an artifact that is not as it was made; "" if all are."""
    return next((name for name in made.files if not _is_as_made(folder, name, made)), "")


def _is_as_made(folder: Path, name: str, made: Lineage) -> bool:
    """Of a file without a hash: whether it has the size that it had, and names its maker itself."""
    file, told = folder / name, made.files[name]
    if not file.is_file():
        return False
    if not told.endswith(BYTES):
        return content_sha256(file) == told
    own = embedded_lineage(file)
    return size_told(file) == told and own is not None and own.key == made.key


def size_told(file: Path) -> str:
    """What a lineage says of a file that isn't hashed yet."""
    return f"{file.stat().st_size}{BYTES}"


def content_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, which are read once as long as the file stays as it is."""
    identity = _settled(path)
    return _remembered(path.absolute(), identity) if identity else sha256_file(path)


_remembered = functools.lru_cache(maxsize=1_000_000)(known_sha256)


def _settled(path: Path) -> Identity | None:
    """By what it is seen that the file has changed; None of one so young that it may yet change unseen."""
    identity = identity_of(path)
    _, changed_ns, renewed_ns, _ = identity
    return identity if time.time_ns() - max(changed_ns, renewed_ns) >= SETTLED_NS else None


def lineage_of(path: Path) -> Lineage:
    """The lineage of an artifact folder, of a file inside one, of a file that carries its own, or of
    plain pictures and files from outside.

    A file that carries only its own node has its ancestors from the folder that it lies in.

    Raises FileError if nothing is there.
    """
    if path.is_dir():
        return _hashed(path) if (path / LINEAGE_FILE).is_file() else _of_folder(path)
    if not path.is_file():
        raise FileError(f"{path} does not exist", "a file or folder", "Check the path.")
    own, home = embedded_lineage(path), _of_member(path)
    content = {FILE: content_sha256(path)}
    if own is not None and home is not None and own.key in home.nodes:
        whole = Lineage(key=own.key, nodes=home.nodes)
        return Lineage(key=own.key, nodes={key: node for _, key, node, _ in whole.walk()}, files=content)
    if made := home or own:
        return Lineage(key=made.key, nodes=made.nodes, files=content)
    node = Node(verb="file", settings={}, inputs={printable(path.name): Source(sha256=content[FILE])})
    return Lineage(key=node.key(), nodes={node.key(): node}, files=content)


def _hashed(folder: Path) -> Lineage:
    """An artifact's lineage, with the hashes that its verb left out. They are written down, so that whatever
    becomes of the files from then on is noticed."""
    made = read_lineage(folder)
    found = {
        name: content_sha256(folder / name)
        for name, told in made.files.items()
        if told.endswith(BYTES) and _is_as_made(folder, name, made)
    }
    whole = made.model_copy(update={"files": made.files | found})
    if found:
        with suppress(FileError, ArtifactError):  # what lies where nobody may write is hashed again
            if read_lineage(folder) == made:  # and not another, made meanwhile
                write_text(folder / LINEAGE_FILE, whole.model_dump_json(indent=1))
    return whole


def read_lineage(folder: Path, next_step: str = "Restore that file, or move it elsewhere.") -> Lineage:
    """The lineage.json of an artifact folder, which is read once as long as it stays as it is: a large
    dataset's takes long. Raises ArtifactError if it is malformed."""
    file = folder / LINEAGE_FILE
    try:
        identity = _settled(file)
        return _parsed(file.absolute(), identity) if identity else _parse(file)
    except (OSError, ValidationError, UnicodeDecodeError) as error:
        raise ArtifactError(
            f"{folder / LINEAGE_FILE} is not a lineage ({type(error).__name__})",
            "the file that AID wrote",
            next_step,
        ) from error


def _parse(file: Path) -> Lineage:
    return Lineage.model_validate_json(file.read_bytes())


@functools.lru_cache(maxsize=8)
def _parsed(file: Path, _: Identity) -> Lineage:
    return _parse(file)


def embedded_lineage(path: Path) -> Lineage | None:
    """The lineage in a safetensors header, or in a PNG, JPEG or WebP, if it carries one."""
    text = None
    if path.suffix == ".safetensors":
        text = _safetensors_metadata(path).get(METADATA_KEY)
    elif path.suffix.lower() in PICTURES:
        text = _picture_text(path)
    try:
        return Lineage.model_validate_json(text) if text else None
    except ValidationError:
        return None


def _safetensors_metadata(path: Path) -> dict[str, str]:
    with open(path, "rb") as stream:
        prefix = stream.read(8)
        size = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 0 < size <= MAX_HEADER_BYTES:
            return {}
        try:
            metadata = json.loads(stream.read(size)).get("__metadata__", {})
        except (ValueError, AttributeError, RecursionError):
            return {}
    return metadata if isinstance(metadata, dict) else {}


def _picture_text(path: Path) -> str | None:
    from PIL import Image

    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=FORMATS) as picture:
            return lineage_text(picture.info)  # what stands before the pixels; `.text` would decode them
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def lineage_text(info: Mapping[Any, Any]) -> str:
    """What Pillow's `info` of a picture holds: a PNG's text, or an XMP packet's; empty for none."""
    text = info.get(METADATA_KEY)
    return text if isinstance(text, str) else read_xmp(info.get("xmp"), XMP_NAME)


def _of_member(path: Path) -> Lineage | None:
    """The lineage of the artifact that the file is part of as it was made; what is no lineage of AID's is
    none."""
    for folder in path.absolute().parents:
        with suppress(ArtifactError):
            made, name = read_lineage(folder), path.absolute().relative_to(folder).as_posix()
            if name in made.files:
                return made if _is_as_made(folder, name, made) else None
    return None


def _of_folder(folder: Path) -> Lineage:
    files = {
        printable(path.relative_to(folder).as_posix()): content_sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }
    if not files:
        raise FileError(f"{folder} is empty", "a folder with files", "Check the path.")
    node = Node(
        verb="pictures", settings={}, inputs={name: Source(sha256=sha) for name, sha in files.items()}
    )
    return Lineage(key=node.key(), nodes={node.key(): node}, files=files)


def printable(name: str) -> str:
    """A file name as text that every encoding takes: bytes that are not UTF-8 are escaped."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
