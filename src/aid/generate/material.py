"""What a run draws with: the model, embeddings, adapters, wildcards, pictures, and what texts call them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from aid.core.files import sha256_file
from aid.core.lineage import content_sha256
from aid.core.release import MODEL_FILE, Release
from aid.core.shot import DrawingPrecision, Shot, Source
from aid.core.workbench import Workbench
from aid.errors import SettingsError
from aid.generate.settings import DrawingInputs, DrawingSettings
from aid.sd.adapter.folder import AdapterFolder
from aid.sd.drawing.pipeline import Texts
from aid.sd.drawing.shot_text import Encodings
from aid.sd.embedding.file import Embedding, load_embedding
from aid.sd.embedding.folder import embedding_files, load_embeddings
from aid.sd.file.hashes import hash_file
from aid.sd.file.precision import drawing_type
from aid.sd.model.checkpoint import (
    StableDiffusion,
    lay_out,
    load_checkpoint,
    load_vae,
    resolve_checkpoint,
    resolve_vae,
)
from aid.sd.model.device import torch_device
from aid.sd.model.folder import folder_sha256
from aid.sd.picture.infotext import Weights, write_infotext
from aid.sd.prompt.explanation import style_notes
from aid.sd.prompt.sugar import Wildcards, read_wildcards

MODEL_DIGITS, EMBEDDING_DIGITS, ADAPTER_DIGITS = 10, 12, 12  # of a sha256, in A1111's texts
TITLE = "modelspec.title"
TENSOR_HASH = "sshs_model_hash"


@dataclass(frozen=True)
class Material:
    """A loaded model, what its prompts can name, and the files of all that."""

    model: StableDiffusion
    embeddings: dict[str, Embedding]
    paths: dict[str, Path]
    """Of each embedding."""
    weights: Weights
    adapters: AdapterFolder | None = None
    wildcards: Wildcards = field(default_factory=dict)
    pictures: Mapping[str, Path] = field(default_factory=dict)
    """sha256 -> path of pictures to draw from."""
    digits: dict[Path, str] = field(default_factory=dict, repr=False)
    """Of the embeddings and adapters used so far: each file is hashed once."""
    encodings: Encodings = field(default_factory=dict, repr=False)
    """Of the texts drawn so far: another VAE changes none."""

    def texts(self) -> Texts:
        return Texts(self.model, self.embeddings, self.adapters, self.wildcards, self.encodings)

    def infotext(self, shot: Shot, texts: Texts) -> str:
        """The shot's `parameters`, with the embeddings and adapters that it uses and no others."""
        named = [one.name for one in texts.named(shot) if one.name in self.paths]
        embeddings = {name: self._digits(self.paths[name], embedding_hash) for name in named}
        passes = (False, True)[: 1 + (shot.hires is not None)]
        called = dict.fromkeys(call.name for second in passes for call in texts.words(shot, second).loras)
        adapters = {name: self._of_adapter(name) for name in called}
        zero = self.model.architecture.zero_terminal_snr
        used = replace(self.weights, embeddings=embeddings, adapters=adapters, zero_terminal_snr=zero)
        return write_infotext(shot, used)

    def _of_adapter(self, name: str) -> str:
        assert self.adapters is not None  # it was called, so it was found
        adapter = self.adapters.load(name)
        return self._digits(adapter.path, lambda path: adapter_hash(path, adapter.metadata))

    def _digits(self, path: Path, hashed: Callable[[Path], str]) -> str:
        if path not in self.digits:
            self.digits[path] = hashed(path)
        return self.digits[path]


def embedding_hash(path: Path) -> str:
    """The digits by which A1111 knows an embedding."""
    return content_sha256(path)[:EMBEDDING_DIGITS]


def adapter_hash(path: Path, metadata: Mapping[str, str]) -> str:
    """The digits by which A1111 knows an adapter: what its file says, or else the hash of its tensors."""
    told = metadata.get(TENSOR_HASH)
    if not told:
        found = hash_file(path)
        told = found.sshs_model_hash or found.sha256
    return told[:ADAPTER_DIGITS]


def load_material(
    settings: DrawingSettings, inputs: DrawingInputs, bench: Workbench, model: StableDiffusion | None = None
) -> Material:
    """Load what the inputs name, but for a model that is there already. Raises FileError or ModelError naming
    the file that doesn't fit."""
    model = model or load_model(inputs.checkpoint, inputs.vae, settings.precision, bench)
    embeddings, paths = named_embeddings(inputs.embeddings, model)
    return Material(
        model,
        embeddings,
        paths,
        _weights(model, inputs),
        AdapterFolder(*inputs.loras) if inputs.loras else None,
        read_wildcards(inputs.wildcards) if inputs.wildcards else {},
        pictures_of(inputs),
    )


def pictures_of(inputs: DrawingInputs) -> dict[str, Path]:
    """sha256 -> path of the pictures to draw from."""
    return {sha256_file(path): path for path in (inputs.init, inputs.mask) if path is not None}


def with_vae(material: Material, path: Path | None) -> Material:
    """The same material with another VAE, or with the checkpoint's own."""
    model, weights = material.model, material.weights
    assert model.path is not None
    vae = load_vae(path or model.path, model.device, model.architecture, model.dtype)
    vae.to(memory_format=torch.channels_last)
    file = resolve_vae(path).absolute() if path else None
    return replace(
        material,
        model=replace(model, vae=vae, vae_path=path),
        weights=replace(
            weights,
            vae_hash=weights_sha256(file)[:MODEL_DIGITS] if file else "",
            vae=file.name if file else "",
        ),
    )


def load_model(
    checkpoint: Path, vae: Path | None, precision: DrawingPrecision, bench: Workbench
) -> StableDiffusion:
    """A checkpoint ready to draw with. Raises FileError or ModelError as `load_checkpoint` does."""
    device = torch_device(bench)
    return lay_out(load_checkpoint(checkpoint, device, drawing_type(precision, device), vae))


def tell_styles(names: Iterable[str], checkpoint: Path, bench: Workbench) -> None:
    """Say which of these the model doesn't know as styles; only a release tells which it knows."""
    if release := Release.at(checkpoint):
        for note in style_notes(names, release.catalogue):
            bench.progress.say(note)


def source_of(settings: DrawingSettings, inputs: DrawingInputs) -> Source | None:
    """The picture to draw from, by its hash and its bare name. Raises SettingsError for a mask alone."""
    if inputs.init is None:
        if inputs.mask is not None:
            raise SettingsError("a mask is given without a picture", "both", "Name the picture with --init.")
        return None
    mask = {"mask": inputs.mask.name, "mask_sha256": sha256_file(inputs.mask)} if inputs.mask else {}
    shared = Source.model_fields.keys() & DrawingSettings.model_fields.keys()
    told = {name: getattr(settings, name) for name in shared}
    return Source(picture=inputs.init.name, sha256=sha256_file(inputs.init), **told, **mask)


def named_embeddings(
    paths: Sequence[Path], model: StableDiffusion
) -> tuple[dict[str, Embedding], dict[str, Path]]:
    """By name, with their files. One named by itself must fit the model; in a folder, others are skipped. A
    copy counts as its original: a release's own often lies in a folder of all, too."""
    width, width_g = model.architecture.text_width, model.architecture.text_2_width or None
    embeddings: dict[str, Embedding] = {}
    found: dict[str, Path] = {}
    words: dict[str, tuple[Embedding, Path]] = {}
    for path in paths:
        if path.is_file():
            one = load_embedding(path, width, width_g)
            made, files = {one.name: one}, {one.name: path}
        else:
            folder = load_embeddings(embedding_files(path), width, width_g)
            made, files = folder.embeddings, folder.paths
        for name, one in made.items():
            other, file = words.setdefault(name.lower(), (one, files[name]))
            if other is one:
                embeddings[name], found[name] = one, file
            elif not one.is_like(other):
                raise SettingsError(f"{file} and {files[name]} answer to the same name", "names that differ")
    return embeddings, found


def _weights(model: StableDiffusion, inputs: DrawingInputs) -> Weights:
    file = resolve_checkpoint(inputs.checkpoint).absolute()
    name = file.parent.name if file.name == MODEL_FILE else file.name if file.is_dir() else file.stem
    vae = resolve_vae(inputs.vae).absolute() if inputs.vae else None
    return Weights(
        weights_sha256(file)[:MODEL_DIGITS],
        model.metadata.get(TITLE) or name,
        weights_sha256(vae)[:MODEL_DIGITS] if vae else "",
        vae.name if vae else "",
    )


def weights_sha256(path: Path) -> str:
    """The hash by which a picture's text knows a model or a VAE: its file's, as A1111 has it; a diffusers
    folder's is that of its parts' files."""
    return folder_sha256(path) if path.is_dir() else content_sha256(path)


def called_files(material: Material, shots: Iterable[Shot]) -> list[Path]:
    """The files of the adapters that shots call. Raises FileError for one that isn't there."""
    if material.adapters is None:
        return []
    texts = material.texts()
    passes = [(shot, second) for shot in shots for second in (False, True)[: 1 + (shot.hires is not None)]]
    names = (call.name for shot, second in passes for call in texts.words(shot, second).loras)
    return [material.adapters.load(name).path for name in dict.fromkeys(names)]


def tell_uncalled(material: Material, inputs: DrawingInputs, shots: Sequence[Shot], bench: Workbench) -> None:
    """Say of each adapter or embedding that was given by itself, not in a folder of several or a release's,
    that no shot calls it."""
    called = set(called_files(material, shots))
    for place in inputs.loras:
        files = AdapterFolder(place).paths
        if len(files) == 1 and not called & {*files.values()}:
            call = f"<lora:{next(iter(files))}:1>"
            bench.progress.say(f"no prompt calls {place}; write {call} to draw with it")
    release, texts = Release.at(inputs.checkpoint), material.texts()
    named = {one.name for shot in shots if inputs.embeddings for one in texts.named(shot)}
    for place in inputs.embeddings:
        names = [name for name, file in material.paths.items() if place in (file, *file.parents)]
        own = release is not None and names == [*release.embeddings]
        if len(names) == 1 and not own and names[0] not in named:
            bench.progress.say(f"no prompt names {place}; write {names[0]} into one to draw with it")
