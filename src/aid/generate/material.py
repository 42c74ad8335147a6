"""What a run draws with: the model, the embeddings, and what its pictures' texts call them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from aid.core.files import sha256_file
from aid.core.release import EMBEDDING_FOLDER, MODEL_FILE
from aid.core.shot import Shot
from aid.core.workbench import Workbench
from aid.errors import FileError, SettingsError
from aid.generate.settings import GenerateInputs, GenerateSettings
from aid.sd.checkpoint import StableDiffusion, load_checkpoint, resolve_checkpoint, resolve_vae
from aid.sd.device import torch_device
from aid.sd.embedding import WEIGHTS, Embedding, load_embedding
from aid.sd.infotext import Weights, write_infotext
from aid.sd.pipeline import Texts
from aid.sd.precision import PRECISIONS
from aid.sd.text import embeddings_in

MODEL_DIGITS, EMBEDDING_DIGITS = 10, 12  # of a sha256, in A1111's texts
TITLE = "modelspec.title"


@dataclass(frozen=True)
class Material:
    """A loaded model, its embeddings by name, and their hashes."""

    model: StableDiffusion
    embeddings: dict[str, Embedding]
    hashes: dict[str, str]
    """Of each embedding, 12 digits."""
    weights: Weights

    def infotext(self, shot: Shot, texts: Texts) -> str:
        """The shot's `parameters`, with the embeddings that it uses and no others."""
        used = embeddings_in([*texts.chunks(shot.prompt), *texts.chunks(shot.negative_prompt)])
        hashes = {one.name: self.hashes[one.name] for one in used}
        weights = self.weights
        return write_infotext(
            shot, Weights(weights.model_hash, weights.model, weights.vae_hash, weights.vae, hashes)
        )


def load_material(settings: GenerateSettings, inputs: GenerateInputs, bench: Workbench) -> Material:
    """Load what the inputs name. Raises FileError or ModelError naming the file that doesn't fit."""
    device = torch_device(bench)
    model = load_checkpoint(inputs.checkpoint, device, PRECISIONS[settings.precision], inputs.vae)
    if device.type == "cpu":
        model.unet.to(memory_format=torch.channels_last)
        model.vae.to(memory_format=torch.channels_last)
    files = embedding_files(inputs.embeddings)
    width = model.architecture.text_width
    embeddings = {one.name: (one, path) for path in files for one in [load_embedding(path, width)]}
    return Material(
        model,
        {name: one for name, (one, _) in embeddings.items()},
        {name: sha256_file(path)[:EMBEDDING_DIGITS] for name, (_, path) in embeddings.items()},
        _weights(model, inputs),
    )


def embedding_files(paths: Sequence[Path]) -> list[Path]:
    """The embeddings' files: folders are looked through, and of one name's files the .safetensors counts.

    Raises FileError for a path without embeddings, SettingsError if two answer to one name.
    """
    found: dict[str, Path] = {}
    for path in paths:
        for file in _files_of(path):
            other = found.setdefault(file.stem.lower(), file)
            if other != file:
                raise SettingsError(f"{other} and {file} answer to the same name", "names that differ")
    return list(found.values())


def _files_of(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    folder = path / EMBEDDING_FOLDER if (path / EMBEDDING_FOLDER).is_dir() else path
    if not folder.is_dir():
        raise FileError(f"{path} does not exist", "an embedding or a folder of embeddings")
    by_name: dict[str, Path] = {}
    for suffix in WEIGHTS:
        for file in sorted(folder.glob(f"*{suffix}")):
            by_name.setdefault(file.stem, file)
    by_name.pop(Path(MODEL_FILE).stem, None)
    if not by_name:
        raise FileError(f"{folder} holds no embedding", f"files ending in {', '.join(WEIGHTS)}")
    return [by_name[name] for name in sorted(by_name)]


def _weights(model: StableDiffusion, inputs: GenerateInputs) -> Weights:
    file = resolve_checkpoint(inputs.checkpoint)
    name = file.absolute().parent.name if file.name == MODEL_FILE else file.stem
    vae = resolve_vae(inputs.vae) if inputs.vae else None
    return Weights(
        sha256_file(file)[:MODEL_DIGITS],
        model.metadata.get(TITLE) or name,
        sha256_file(vae)[:MODEL_DIGITS] if vae else "",
        vae.name if vae else "",
    )
