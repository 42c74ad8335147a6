"""Models that stay loaded between requests, those used last, as long as they fit a limit."""

from __future__ import annotations

import gc
from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import torch

from aid.core.known_hash import Identity, identity_of
from aid.core.workbench import Workbench
from aid.generate.material import Material, load_material, pictures_of, with_vae
from aid.generate.settings import DrawingInputs, DrawingSettings
from aid.sd.file.precision import drawing_type
from aid.sd.model.device import torch_device
from aid.sd.model.location import resolve_checkpoint
from aid.sd.model.vae_file import resolve_vae
from aid.sd.model.weights import open_weights

Stamp = tuple[tuple[Path, Identity], ...]
"""Files as they lie there: another one, or another content, has another stamp."""


@dataclass(frozen=True)
class Kept:
    """A loaded model with what its prompts can name."""

    material: Material
    size: int
    """Bytes of its weights."""
    vae: Stamp
    words: Stamp
    """Of the embeddings, adapters and wildcards."""


class Warm:
    """Not for several threads: a model draws for one at a time."""

    def __init__(self, most_bytes: float, bench: Workbench) -> None:
        self.most_bytes, self.bench = most_bytes, bench
        self._kept: dict[tuple[str, Stamp], Kept] = {}  # the last used last

    def material(self, settings: DrawingSettings, inputs: DrawingInputs) -> Material:
        """What the inputs name, loaded as far as it isn't. A file that has changed is read anew; another VAE,
        embedding, adapter or wildcard leaves the rest of the model as it is.

        Raises FileError or ModelError naming the file that doesn't fit.
        """
        key = settings.precision, stamp([resolve_checkpoint(inputs.checkpoint)])
        vae = stamp([resolve_vae(inputs.vae)] if inputs.vae else [])
        words = stamp([*inputs.embeddings, *inputs.loras, *([inputs.wildcards] if inputs.wildcards else [])])
        kept = self._kept.get(key) or self._load(settings, inputs, vae, words)
        material = kept.material
        if kept.words != words:
            material = load_material(settings, inputs, self.bench, material.model)
        if kept.vae != vae:
            material = with_vae(material, inputs.vae)
        if self._held() > self.most_bytes:
            self._forget_adapters()
        self._kept.pop(key, None)
        self._kept[key] = replace(kept, material=material, vae=vae, words=words)
        return replace(material, pictures=pictures_of(inputs))

    def forget(self) -> None:
        """Give all the memory back."""
        self._make_room(self.most_bytes)

    def names(self) -> list[str]:
        """Of the models that are loaded, the one used last at the end."""
        return [kept.material.weights.model for kept in self._kept.values()]

    def _load(self, settings: DrawingSettings, inputs: DrawingInputs, vae: Stamp, words: Stamp) -> Kept:
        size = weight_bytes(inputs.checkpoint, drawing_type(settings.precision, torch_device(self.bench)))
        self._make_room(size)
        return Kept(load_material(settings, inputs, self.bench), size, vae, words)

    def _make_room(self, size: float) -> None:
        before = len(self._kept)
        if size + self._held() > self.most_bytes:
            self._forget_adapters()
        while self._kept and size + self._held() > self.most_bytes:
            del self._kept[next(iter(self._kept))]
        if len(self._kept) < before:
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _held(self) -> int:
        folders = [kept.material.adapters for kept in self._kept.values()]
        adapters = sum(folder.kept_bytes for folder in folders if folder)
        return adapters + sum(kept.size for kept in self._kept.values())

    def _forget_adapters(self) -> None:
        """They are read again much sooner than a model."""
        for kept in self._kept.values():
            if kept.material.adapters:
                kept.material.adapters.forget()


def stamp(places: Iterable[Path]) -> Stamp:
    """The files of these places, folders whole."""
    files = (file for place in places for file in (sorted(place.rglob("*")) if place.is_dir() else [place]))
    return tuple((file, identity_of(file)) for file in files if file.is_file())


def weight_bytes(checkpoint: Path, dtype: torch.dtype) -> int:
    """What a model's weights take in memory, by its header alone."""
    tensors = open_weights(checkpoint).whole().values()
    return sum(prod(stored.shape) for stored in tensors) * dtype.itemsize
