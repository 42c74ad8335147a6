"""What lies there to draw with, by the names that people and clients use."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from aid import starter
from aid.core.release import MODEL_FILE, Release
from aid.core.spelling import did_you_mean
from aid.errors import AidError, FileError, SettingsError
from aid.sd.embedding.folder import find_embeddings
from aid.sd.file.tensorfile import read_header
from aid.sd.model.location import MODEL_INDEX
from aid.studio.settings import StudioSettings

SUFFIXES = (".safetensors", ".ckpt", ".pt")
TITLE = "modelspec.title"
HASHED = re.compile(r"\s*\[[0-9a-f]+\]$")  # A1111 writes one behind a title


@dataclass(frozen=True)
class Shelf:
    """Models and VAEs by title: a file's name, or what a release or folder calls itself."""

    models: Mapping[str, Path]
    vaes: Mapping[str, Path]
    embeddings: tuple[Path, ...] = ()
    loras: tuple[Path, ...] = ()
    wildcards: Path | None = None

    def model(self, name: str) -> str:
        """The title of the model that a client means. Raises SettingsError, with a name like it."""
        return _titled(name, self.models, "a model")

    def vae(self, name: str) -> str:
        """The title of the VAE that a client means; empty for the model's own. Raises SettingsError."""
        own = name.casefold() in ("", "automatic", "none")
        return "" if own else _titled(name, self.vaes, "a VAE")

    def release(self, title: str) -> Release | None:
        """The release that the model is part of, if any."""
        return Release.at(self.models[title])

    def embeddings_of(self, title: str) -> tuple[Path, ...]:
        """All embeddings that its prompts can name."""
        release = self.release(title)
        own = (release.folder / "embeddings",) if release and release.embeddings else ()
        return (*own, *(place for place in self.embeddings if place.is_file() or find_embeddings(place)))

    def filled_wildcards(self) -> Path | None:
        """Their folder, unless it is empty: nothing can be named there, nor hashed."""
        place = self.wildcards
        return None if place and place.is_dir() and not any(place.rglob("*.txt")) else place


def look_around(settings: StudioSettings) -> Shelf:
    """Raises FileError for a place that isn't there, and where no model is found at all."""
    places = settings.models or (starter.shipped("release"),)
    models = _by_title(_found(places))
    if not models:
        raise FileError(f"{', '.join(map(str, places))} holds no model", "a checkpoint, or a folder of them")
    for place in (*settings.embeddings, *settings.loras, *filter(None, [settings.wildcards])):
        _require_there(place)
    vaes = _by_title(_found(settings.vaes))
    return Shelf(models, vaes, settings.embeddings, settings.loras, settings.wildcards)


def title_of(path: Path) -> str:
    """A file's name; of a folder what its model calls itself, or the folder's name."""
    file = path / MODEL_FILE
    if not file.is_file():
        return path.name
    try:
        return read_header(file).metadata.get(TITLE) or path.name
    except AidError:  # told when it is to draw
        return path.name


def bare(title: str) -> str:
    """Without a file's ending."""
    endings = [ending for ending in SUFFIXES if title.endswith(ending)]
    return title.removesuffix(endings[0]) if endings else title


def _by_title(paths: Sequence[Path]) -> dict[str, Path]:
    """In their order. Of several with one title, all but the first have their folder's name before it."""
    titles: dict[str, Path] = {}
    for path in dict.fromkeys(paths):
        title = title_of(path)
        folder = path.parent if title == path.name else path
        unique = (name for name in (title, f"{folder.name}/{title}", str(path)) if name not in titles)
        titles[next(unique)] = path
    return titles


def _found(places: Sequence[Path]) -> list[Path]:
    return [path for place in places for path in _below(place)]


def _below(place: Path) -> Iterator[Path]:
    _require_there(place)
    if place.is_file() or (place / MODEL_FILE).is_file() or (place / MODEL_INDEX).is_file():
        yield place
        return
    for path in sorted(place.iterdir()):
        if path.is_dir() and not path.is_symlink():
            yield from _below(path)
        elif path.is_file() and path.suffix in SUFFIXES:
            yield path


def _require_there(place: Path) -> None:
    if not place.exists():
        raise FileError(f"{place} does not exist", "a file or a folder")


def _titled(name: str, known: Mapping[str, Path], what: str) -> str:
    """By title, or that without A1111's hash, or a file's stem."""
    wanted = HASHED.sub("", name.strip())
    shortened = {bare(title): title for title in [*known][::-1]}
    if found := wanted if wanted in known else shortened.get(wanted):
        return found
    hint = did_you_mean(wanted, [bare(title) for title in known])
    raise SettingsError(f"{name!r} is not {what}", ", ".join(known) or "none", hint)
