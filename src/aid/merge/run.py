"""Merge: checkpoints x block weights -> one checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aid.core.artifact import under_construction, verb
from aid.core.files import write_json
from aid.core.lineage import METADATA_KEY
from aid.core.workbench import Workbench
from aid.errors import ModelError
from aid.merge.blend import Distances, blend
from aid.merge.parent import Parent, open_parent, require_blocks, require_finite, require_one_architecture
from aid.merge.recipe import Recipe, plan
from aid.merge.settings import MergeInputs, MergeSettings
from aid.sd.file.precision import PRECISIONS
from aid.sd.file.tensorfile import write_tensors
from aid.sd.model.architecture import METADATA_KEY as ARCHITECTURE_KEY
from aid.sd.model.blocks import block_of
from aid.sd.model.checkpoint import read_vae
from aid.sd.model.device import torch_device
from aid.sd.model.layouts import POSITION_IDS, VAE

CONVENTION = "sdweb-merge-block-weighted-gui"
STILL_TRUE = ("sai_model_spec", "architecture", "implementation", "prediction_type", "resolution")


@verb("merge")
def merge(settings: MergeSettings, inputs: MergeInputs, out: Path, bench: Workbench) -> None:
    """Blend the models block by block into `model.safetensors`.

    Conventions are those of Merge Block Weighted (bbc-mc): `time_embed` belongs to IN00, `out.` to
    OUT11, text encoder and VAE to BASE. `blocks.json` tells each block's shares, and how far the
    result is from the parents that gave something; a parent that gives a block nothing isn't read.

    Raises SettingsError for weights that can't be meant and ModelError for parents that don't fit.
    """
    torch_device(bench)
    recipe = plan(settings, inputs.models)
    parents = {name: open_parent(name, inputs.models[name]) for name in recipe.order}
    primary, *others = parents.values()
    require_one_architecture(primary, others)
    require_blocks(recipe.shares, parents)
    baked = _read_vae(inputs.vae, primary) if inputs.vae else {}

    tensors: dict[str, Tensor] = {}
    distances = Distances()
    keys = dict.fromkeys(key for parent in parents.values() for key in parent.shapes)
    with bench.progress.task("merge", total=len(keys), unit="tensor") as tick:
        for key in keys:
            holders = [parent for parent in parents.values() if key in parent.shapes]
            dtype = PRECISIONS.get(settings.precision, holders[0].dtypes[key])
            if key in baked:
                tensors[key] = _rounded(key, baked[key], dtype)
            elif _is_copied(key, holders[0]):
                tensors[key] = _copied(key, holders[0], dtype)
            else:
                tensors[key] = _blended(key, holders, recipe.shares[block_of(key)], dtype, distances)
            tick()

    write_tensors(out / "model.safetensors", tensors, _metadata(recipe, parents, inputs, out))
    write_json(out / "blocks.json", _blocks(recipe, distances))


def _blended(
    key: str,
    holders: Sequence[Parent],
    shares: Mapping[str, float],
    dtype: torch.dtype,
    distances: Distances,
) -> Tensor:
    """The first holder takes the shares of models that lack the key: MBW leaves or copies those."""
    present = {parent.name: shares[parent.name] for parent in holders if parent.name in shares}
    if len(present) < len(shares):
        stand_in = holders[0].name
        lent = sum(share for name, share in shares.items() if name not in present)
        present = {stand_in: lent + present.pop(stand_in, 0.0), **present}
    read = {parent.name: parent.read(key) for parent in holders if parent.name in present}
    result = _rounded(key, blend(read, present), dtype)
    distances.add(block_of(key), read, result)
    return result


def _is_copied(key: str, holder: Parent) -> bool:
    """Whole numbers aren't averaged, nor is what is no part of a model (MBW: keys without "model")."""
    return "model" not in key or key == POSITION_IDS or not holder.dtypes[key].is_floating_point


def _copied(key: str, holder: Parent, dtype: torch.dtype) -> Tensor:
    tensor = holder.read(key)
    if key == POSITION_IDS and tensor.is_floating_point():  # a merge of other tools' that lost them
        return torch.arange(tensor.numel()).reshape(tensor.shape)
    return _rounded(key, tensor, dtype) if tensor.is_floating_point() else tensor


def _rounded(key: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return require_finite(f"{key}, in {str(dtype).removeprefix('torch.')},", tensor.to(dtype))


def _read_vae(path: Path, primary: Parent) -> dict[str, Tensor]:
    """The VAE's tensors, exactly those that the primary has. Raises ModelError if they don't fit it."""
    given = read_vae(path)
    own = [key for key in primary.shapes if key.startswith(VAE)]
    for key in own:
        if key not in given or tuple(given[key].shape) != primary.shapes[key]:
            found = f"is {list(given[key].shape)} in" if key in given else "is not in"
            raise ModelError(f"{key} {found} {path}", f"{list(primary.shapes[key])}, as in {primary.name}")
    return {key: given[key] for key in own}


def _metadata(
    recipe: Recipe, parents: Mapping[str, Parent], inputs: MergeInputs, out: Path
) -> dict[str, str]:
    """What stays true of the primary, the recipe, and the parents' titles."""
    kept = parents[recipe.primary].metadata
    names = (ARCHITECTURE_KEY, *(f"modelspec.{name}" for name in STILL_TRUE))
    titles = [parent.metadata.get("modelspec.title") or name for name, parent in parents.items()]
    merge = {
        "convention": CONVENTION,
        "primary": recipe.primary,
        "shares": recipe.by_model(),
        "vae": inputs.vae is not None,
    }
    return {
        **{name: kept[name] for name in names if name in kept},
        "modelspec.merged_from": ", ".join(titles),
        "aid.merge": json.dumps(merge, sort_keys=True),
        METADATA_KEY: under_construction(out).embedded(),
    }


def _blocks(recipe: Recipe, distances: Distances) -> dict[str, Any]:
    """Block -> shares, and relative distance by parent; null where a parent gave nothing and wasn't read."""
    unread = dict.fromkeys(recipe.order)
    return {
        block: {"shares": shares, "distance": {**unread, **distances.relative(block)}}
        for block, shares in recipe.shares.items()
        if block in distances.norms
    }
