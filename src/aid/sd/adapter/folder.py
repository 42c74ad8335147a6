"""A folder of adapters, as A1111 keeps one: called by their files' stems, read once."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

from aid.errors import AidError, FileError
from aid.sd.adapter.file import Adapter, load_adapter
from aid.sd.adapter.outline import outline
from aid.sd.adapter.use import Use
from aid.sd.file.tensorfile import is_pickle, read_header
from aid.sd.prompt.adapter_call import LoraCall

SUFFIXES = (".safetensors", ".pt", ".bin", ".ckpt")
ALIAS = "ss_output_name"  # the name it was trained under, which A1111 takes too


class AdapterFolder:
    """Every adapter below some folders, and some files of their own; of one stem's the first counts. A file
    is read when it is first called, and kept until `forget`."""

    def __init__(self, *places: Path) -> None:
        self.folder = " and ".join(map(str, places))
        self.paths: dict[str, Path] = {}
        for place in places:
            found = {place.stem: place} if place.is_file() else find_adapters(place)
            self.paths = {**found, **self.paths}
        self.kept_bytes = 0
        """Of the files that were read."""
        self._loaded: dict[Path, Adapter] = {}
        self._aliases: dict[str, Path] | None = None

    def uses(self, calls: Iterable[LoraCall]) -> list[Use]:
        """What a prompt's calls mean, in their order. Raises FileError for a name that no file has, with
        names like it, and as `load_adapter` does."""
        return [Use(self.load(call.name), call.text_weight, call.unet_weight) for call in calls]

    def load(self, name: str) -> Adapter:
        """The adapter of a file's stem, or else of the name that it was trained under."""
        path = self.paths.get(name) or self._by_alias(name)
        if path is None:
            close = get_close_matches(name, self.paths, 3)
            hint = f"Did you mean {' or '.join(close)}?" if close else f"Put its file into {self.folder}."
            raise FileError(f"{self.folder} holds no adapter called {name}", "a file's stem", hint)
        if path not in self._loaded:
            self._loaded[path] = load_adapter(path)
            self.kept_bytes += path.stat().st_size
        return self._loaded[path]

    def forget(self) -> None:
        """Give the memory back; what is called again is read again."""
        self._loaded.clear()
        self.kept_bytes = 0

    def names(self) -> set[str]:
        """Every name that `load` knows. Reads every file's header."""
        return {*self.paths, *self._by_aliases()} - {""}

    def _by_alias(self, name: str) -> Path | None:
        return self._by_aliases().get(name) if name else None

    def _by_aliases(self) -> dict[str, Path]:
        if self._aliases is None:
            self._aliases = {_alias(path): path for path in reversed(self.paths.values())}
        return self._aliases


def find_adapters(folder: Path) -> dict[str, Path]:
    """Every adapter file below a folder by its stem; of several with one stem, .safetensors, then the
    first path. Raises FileError for a folder that isn't there."""
    return {path.stem: path for path in reversed(_ranked(folder))}


def adapter_file(folder: Path) -> Path:
    """The one that a folder, such as an artifact, holds. Raises FileError for none or several."""
    found = [path for path in find_adapters(folder).values() if not _fault(path)]
    if len(found) != 1:
        names = ", ".join(sorted(path.name for path in found)) or "no adapter"
        raise FileError(f"{folder} holds {names}", "a file, or a folder with one adapter", "Give the file.")
    return found[0]


def skipped_adapters(folder: Path) -> dict[Path, str]:
    """Files of a folder that no call uses, and why. Headers are read; a pickle has its error when called."""
    found = find_adapters(folder)
    faults = {
        path: _fault(path)
        if found[path.stem] == path
        else f"{found[path.stem]} stands for {path.stem} already"
        for path in _ranked(folder)
    }
    return {path: fault for path, fault in faults.items() if fault}


def _ranked(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise FileError(f"{folder} is not a folder", "a folder of adapters")
    paths = [path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()]
    return sorted(paths, key=lambda path: (SUFFIXES.index(path.suffix.lower()), str(path)))


def _fault(path: Path) -> str:
    try:
        if is_pickle(path):
            return ""
        header = read_header(path)
    except AidError as error:
        return str(error)
    shapes = {name: info.shape for name, info in header.tensors.items()}
    return "" if outline(shapes, header.metadata) else f"{path} is no adapter"


def _alias(path: Path) -> str:
    try:
        return "" if is_pickle(path) else read_header(path).metadata.get(ALIAS, "")
    except AidError:
        return ""  # a damaged file has its error when it is called
