"""What can be chosen from, as A1111's clients list it."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any, get_args

from aid.core.known_hash import identity_of, is_quick, known_sha256
from aid.core.shot import Upscaler
from aid.errors import AidError
from aid.sd.adapter.folder import AdapterFolder
from aid.sd.embedding.folder import embedding_files
from aid.sd.file.tensorfile import is_pickle, read_header
from aid.sd.model.location import resolve_checkpoint
from aid.sd.sampling.samplers import TRAITS
from aid.sd.sampling.schedules import SCHEDULES
from aid.studio.shelf import Shelf, bare

Rows = list[dict[str, Any]]
DIGITS = 10


def models(shelf: Shelf) -> Rows:
    """A title has no hash behind it, so that it stays the same once the file has been hashed."""
    return [
        {"title": title, "model_name": bare(title), **_file(path)} for title, path in shelf.models.items()
    ]


def _file(path: Path) -> dict[str, Any]:
    sha256 = known_hash(path)
    name = resolve_checkpoint(path).name
    return {"hash": sha256 and sha256[:DIGITS], "sha256": sha256, "filename": name, "config": None}


def known_hash(model: Path) -> str | None:
    """A model's sha256, where it is known without reading its file."""
    found = resolve_checkpoint(model)
    quick = found.is_file() and is_quick(found)
    return known_sha256(found, identity_of(found)) if quick else None


def vaes(shelf: Shelf) -> Rows:
    return [{"model_name": title, "filename": path.name} for title, path in shelf.vaes.items()]


def samplers() -> Rows:
    return [
        {"name": name, "aliases": [], "options": {"scheduler": trait.automatic}}
        for name, trait in TRAITS.items()
    ]


def schedules() -> Rows:
    return [
        {
            "name": name.casefold().replace(" ", "_"),
            "label": name,
            "aliases": [],
            "default_rho": {"Karras": 7.0, "Polyexponential": 1.0}.get(name, -1),
            "need_inner_model": False,
        }
        for name in ("Automatic", *SCHEDULES)
    ]


def upscalers() -> Rows:
    """Those that enlarge a decoded picture."""
    names = [name for name in get_args(Upscaler) if not name.startswith("Latent")]
    empty = {"model_name": None, "model_path": None, "model_url": None}
    return [{"name": name, **empty, "scale": 4.0} for name in ("None", *names)]


def latent_upscalers() -> Rows:
    return [{"name": name} for name in get_args(Upscaler) if name.startswith("Latent")]


def adapters(shelf: Shelf) -> Rows:
    found = AdapterFolder(*shelf.loras).paths if shelf.loras else {}
    rows = []
    for name, path in sorted(found.items()):
        metadata = _metadata(path)
        alias = metadata.get("ss_output_name") or name
        rows.append({"name": name, "alias": alias, "path": path.name, "metadata": metadata})
    return rows


def _metadata(path: Path) -> dict[str, str]:
    try:
        return {} if is_pickle(path) else dict(read_header(path).metadata)
    except AidError:  # told when it is called
        return {}


def embeddings(shelf: Shelf, title: str) -> dict[str, Any]:
    """By the word that calls each; A1111's other columns are read where an embedding is loaded."""
    files = [file for place in shelf.embeddings_of(title) for file in embedding_files(place)]
    unknown = {"step": None, "sd_checkpoint": None, "sd_checkpoint_name": None, "shape": 0, "vectors": 0}
    return {"loaded": {file.stem: unknown for file in files}, "skipped": {}}


def styles(shelf: Shelf, title: str) -> Rows:
    """The model's own styles, as prompts that stand ready."""
    release = shelf.release(title)
    names = [style.name for style in release.catalogue.styles] if release else []
    return [{"name": name, "prompt": f"by {name}", "negative_prompt": ""} for name in names]


def memory() -> dict[str, Any]:
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"ram": {"used": used}, "cuda": {}}
