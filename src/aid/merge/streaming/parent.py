"""A model to merge from: its names, formats and shapes at once, its values when they are asked for."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from sys import intern
from typing import TYPE_CHECKING

from aid.core.lineage import content_sha256
from aid.errors import FileError, ModelError
from aid.merge.arithmetic.source import InFile, Source, part_of
from aid.merge.recipe.combination import models_in
from aid.merge.recipe.recipe import Recipe
from aid.sd.file.header import FLOATING, ITEM_BYTES, Format, is_pickle, read_layout
from aid.sd.model.architecture import REAL, Architecture, Family
from aid.sd.model.detection import latent_scale_of, require_scale
from aid.sd.model.layouts import VAE, modern_key, modern_keys
from aid.sd.model.location import ARTIFACT_FILE, resolve_checkpoint

if TYPE_CHECKING:
    from aid.sd.file.tensorfile import Stored

DIFFUSERS_KEY = "encoder.down_blocks.0.resnets.0.conv1.weight"


@dataclass(frozen=True)
class Parent:
    """Formats in file order, under modern LDM names; `source` tells where a tensor's bytes are. Several
    threads may call it."""

    name: str
    path: Path
    formats: Mapping[str, Format]
    metadata: Mapping[str, str]
    source: Callable[[str], Source]

    def __str__(self) -> str:
        return f"{self.name} ({self.path})"

    def content(self) -> str:
        """The sha256 of what it is read from, which is remembered."""
        if self.path.is_file():
            return content_sha256(self.path)
        from aid.sd.model.folder import folder_sha256  # for these alone

        return folder_sha256(self.path)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {key: one.shape for key, one in self.formats.items()}

    def is_floating(self, key: str) -> bool:
        return self.formats[key].name in FLOATING

    def lacks(self, keys: Sequence[str]) -> str:
        """Names it and the first of these tensors."""
        return f"{self} lacks {keys[0]}" + (f" and {len(keys) - 1} more" if keys[1:] else "")

    def values(self, key: str, start: int, room: memoryview) -> memoryview:
        """A tensor's bytes from a given one on, as many as there is room for: there, or where they lie."""
        source = part_of(self.source(key), start, len(room))
        return source.read(room) if isinstance(source, InFile) else source

    def read(self, key: str) -> memoryview:
        """All bytes of a tensor."""
        return self.values(key, 0, memoryview(bytearray(self.formats[key].size)))


def open_parent(name: str, path: Path, open_files: ExitStack, mapped: bool = False) -> Parent:
    """An artifact, file or diffusers folder, the tensors of which stay where they are until they are read,
    which `open_files` allows. A file may hold parts of a model only; pickles and folders need torch.
    `mapped` files aren't copied to be read, which pays where they are read again and again.

    Raises FileError for an unreadable or malformed file."""
    file = resolve_checkpoint(path)
    if file.is_dir() or is_pickle(file):
        return _unpacked(name, file)
    layout = read_layout(file)
    stream = open_files.enter_context(file.open("rb", buffering=0))
    entries = {intern(modern_key(key)): entry for key, entry in layout.entries.items()}
    whole = open_files.enter_context(_mapped(stream.fileno())) if mapped else None

    def source(key: str) -> Source:
        entry = entries[key]
        if whole is not None and entry.start % ITEM_BYTES[entry.format.name] == 0:  # C's numbers are aligned
            _require_length(file, stream.fileno(), entry.end, key)
            return whole[entry.start : entry.end]
        return InFile(file, key, stream.fileno(), entry.start)

    formats = {key: entry.format for key, entry in entries.items()}
    return Parent(name, file, formats, layout.metadata, source)


def _require_length(path: Path, file: int, end: int, key: str) -> None:
    """Raises FileError for a file that has been cut short: to read there what is mapped would end the process
    without a word. What is cut while it is being read still does."""
    if os.fstat(file).st_size < end:
        raise FileError(f"{path} ends inside {key}", "a file that stays as it is while it is read")


def _mapped(file: int) -> memoryview:
    return memoryview(mmap.mmap(file, 0, access=mmap.ACCESS_COPY))


def _unpacked(name: str, path: Path) -> Parent:
    """A pickle or a diffusers folder."""
    from aid.sd.file.tensorfile import open_tensors
    from aid.sd.model.weights import describe, open_weights

    tensors: Mapping[str, Stored]
    if path.is_dir():
        weights = open_weights(path, vae_given=True)  # whether one is missed is seen when all are open
        tensors, metadata = weights.whole(), {**weights.metadata, **describe(weights.architecture)}
    else:
        stored, metadata = open_tensors(path)
        tensors = modern_keys(stored)
    return _of_stored(name, path, tensors, metadata)


def _of_stored(name: str, path: Path, tensors: Mapping[str, Stored], metadata: Mapping[str, str]) -> Parent:
    from aid.sd.file.tensorfile import NAMES, raw_bytes

    @lru_cache(maxsize=2)  # the pieces of a tensor are asked for one after another
    def source(key: str) -> memoryview:
        return raw_bytes(tensors[key].read())

    formats = {key: Format(NAMES[one.dtype], one.shape) for key, one in tensors.items()}
    return Parent(name, path, formats, metadata, source)


def open_vae_parent(path: Path, family: Family, open_files: ExitStack) -> Parent:
    """A VAE under its LDM names, out of a file of its own, a checkpoint or a diffusers folder.

    Raises ModelError for a file without one, or whose latents are scaled otherwise than the family's."""
    file = path / ARTIFACT_FILE if (path / ARTIFACT_FILE).is_file() else path
    if file.is_file() and not is_pickle(file):
        found = open_parent("the VAE", file, open_files)
        own = {key: key for key in found.formats if key.startswith(VAE)}
        names = own or {VAE + key: key for key in found.formats}
        if f"{VAE}{DIFFUSERS_KEY}" not in names:
            require_scale(latent_scale_of(found.shapes(), str(file)), REAL[family].vae_scale, str(file))
            return _renamed(found, names)
    return _unpacked_vae(path, family)


def _renamed(found: Parent, names: Mapping[str, str]) -> Parent:
    formats = {key: found.formats[own] for key, own in names.items()}
    return replace(found, formats=formats, source=lambda key: found.source(names[key]))


def _unpacked_vae(path: Path, family: Family) -> Parent:
    from aid.sd.model.vae_file import open_vae

    return _of_stored("the VAE", path, *open_vae(path, family))


def with_vae(parent: Parent, vae: Parent, architecture: Architecture) -> tuple[Parent, Architecture]:
    """A parent without a VAE, with that one and of its widths. Raises ModelError for one that isn't whole."""
    from aid.sd.model.checkpoint import vae_shapes  # takes seconds to import
    from aid.sd.model.vae_file import with_vae_of
    from aid.sd.model.weights import describe

    architecture = with_vae_of(architecture, vae.path, vae.shapes(), vae.metadata)
    for key, shape in vae_shapes(architecture).items():
        given = vae.formats.get(key)
        if given is None or given.shape != tuple(shape):
            found = f"is {list(given.shape)}" if given else "is missing"
            raise ModelError(f"{vae.path}: {key} {found}", f"{list(shape)}, as {parent} needs it")
    own = {key: vae.formats[key] for key in vae_shapes(architecture)}

    def source(key: str) -> Source:
        return vae.source(key) if key in own else parent.source(key)

    metadata = {**parent.metadata, **describe(architecture)}
    with_it = replace(parent, formats={**parent.formats, **own}, metadata=metadata, source=source)
    return with_it, architecture


def require_one_architecture(primary: Parent, others: Sequence[Parent]) -> None:
    """Raises ModelError naming the first tensor that differs, and both its shapes."""
    for other in others:
        shared = [key for key in primary.formats if key in other.formats]
        if not shared:
            raise ModelError(f"{other} shares no tensor with {primary.name}", "an SD1 checkpoint")
        for key in shared:
            own, theirs = primary.formats[key].shape, other.formats[key].shape
            if own != theirs:
                raise ModelError(
                    f"{key} is {list(own)} in {primary.name} and {list(theirs)} in {other.name}",
                    "models of one architecture",
                )


def require_blocks(recipe: Recipe, parents: Mapping[str, Parent]) -> None:
    """Raises ModelError if a model is to give a block of which its file holds nothing."""
    held = {name: {recipe.block(key) for key in parent.formats} for name, parent in parents.items()}
    present = set[str]().union(*held.values())
    for block in recipe.blocks:
        for name in models_in(recipe.nominal(block)):
            if block in present and block not in held[name]:
                raise ModelError(
                    f"{parents[name]} holds no tensor of {block}", "a model that has the blocks it gives"
                )
