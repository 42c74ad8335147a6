"""The verb `merge extract`: what one checkpoint has learned beyond another, as a LoRA."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from aid.core.artifact import under_construction, verb
from aid.core.files import write_json
from aid.core.lineage import METADATA_KEY
from aid.core.workbench import Workbench
from aid.errors import ModelError
from aid.merge.decomposition import Pair, nearest, one_thread
from aid.merge.settings import ExtractInputs, ExtractSettings
from aid.sd.adapter.file import save_adapter
from aid.sd.adapter.target import Target, Targets, kohya_targets, skeleton
from aid.sd.file.precision import PRECISIONS
from aid.sd.file.tensorfile import Stored
from aid.sd.model.architecture import FAMILY_NAMES, Architecture, Family
from aid.sd.model.blocks import block_of
from aid.sd.model.metadata import ModelSpec, Training, architecture_name, base_version
from aid.sd.model.weights import Weights, open_weights, require_finite

Tensors = Mapping[str, Stored]


@verb("merge extract")
def extract(settings: ExtractSettings, inputs: ExtractInputs, out: Path, bench: Workbench) -> None:
    """Write `NAME.safetensors`, which put on `origin` gives `tuned` as nearly as its rank allows, and
    `kept.json`: for each block the share of the squared difference that it holds.

    Raises ModelError for two models that aren't of one architecture, or that don't differ anywhere.
    """
    tuned, origin = open_weights(inputs.tuned), open_weights(inputs.origin)
    _require_alike(tuned, origin)
    architecture = origin.architecture
    targets = _chosen(architecture, settings)
    tensors: dict[str, Tensor] = {}
    shares: dict[str, list[Pair]] = defaultdict(list)
    with one_thread(), bench.progress.task("extract", total=len(targets), unit="layer") as tick:
        for name, target in sorted(targets.items()):
            difference = _difference(target, tuned, origin)
            if difference.any():
                pair = nearest(difference.flatten(1), _rank(target, settings))
                tensors.update(_kohya(name, target, pair))
                shares[_block(target, architecture.family)].append(pair)
            tick()
    if not tensors:
        raise ModelError(f"{tuned.path} and {origin.path} are the same in every layer", "two models")
    save_adapter(
        out / f"{settings.name}.safetensors",
        tensors,
        {**_metadata(architecture, settings), METADATA_KEY: under_construction(out).embedded()},
        PRECISIONS[settings.precision],
    )
    write_json(out / "kept.json", {block: _kept(shares[block]) for block in sorted(shares)})


def _require_alike(tuned: Weights, origin: Weights) -> None:
    if tuned.architecture != origin.architecture:
        one, other = (FAMILY_NAMES[one.architecture.family] for one in (tuned, origin))
        raise ModelError(
            f"{tuned.path} ({one}) and {origin.path} ({other}) are of two architectures",
            "a model and the one that it was trained from",
        )


def _chosen(architecture: Architecture, settings: ExtractSettings) -> Targets:
    targets = kohya_targets(skeleton(architecture), convolutions=settings.conv_rank > 0)
    return {name: one for name, one in targets.items() if settings.text_encoder or one.part == "unet"}


def _difference(target: Target, tuned: Weights, origin: Weights) -> Tensor:
    """In float32, in the module's shape. Raises ModelError for what is missing, misshapen or not finite."""
    place = target.place("weight", origin.architecture.family)
    found = []
    for weights in (tuned, origin):
        stored = weights.tensors.get(place.key)
        if stored is None:
            raise ModelError(f"{weights.path} lacks {place.key}", "a whole checkpoint")
        whole = require_finite(stored.read(), torch.float32, f"{weights.path}: {place.key}")
        taken = place.take(whole)
        if taken.numel() != math.prod(target.shape):
            raise ModelError(f"{weights.path}: {place.key} has shape {list(whole.shape)}", f"{target.shape}")
        found.append(taken.reshape(target.shape))
    return found[0] - found[1]


def _rank(target: Target, settings: ExtractSettings) -> int:
    return settings.conv_rank if _is_wide(target) else settings.rank


def _is_wide(target: Target) -> bool:
    return len(target.shape) == 4 and target.shape[2:] != (1, 1)


def _kohya(name: str, target: Target, pair: Pair) -> Iterator[tuple[str, Tensor]]:
    """kohya's three tensors; its alpha is the rank, so that the product counts as it is."""
    rank, narrow = pair.up.shape[1], [1] * (len(target.shape) - 2)
    yield f"{name}.lora_down.weight", pair.down.reshape(rank, *target.shape[1:])
    yield f"{name}.lora_up.weight", pair.up.reshape(target.shape[0], rank, *narrow)
    yield f"{name}.alpha", torch.tensor(float(rank))


def _block(target: Target, family: Family) -> str:
    return block_of(target.place("weight", family).key, family)


def _kept(pairs: list[Pair]) -> float:
    return float(f"{sum(pair.kept for pair in pairs) / (sum(pair.total for pair in pairs) or 1.0):.6g}")


def _metadata(architecture: Architecture, settings: ExtractSettings) -> dict[str, str]:
    spec = ModelSpec(
        architecture=f"{architecture_name(architecture)}/lora",
        title=settings.name,
        prediction_type=architecture.prediction,
    )
    conv = {"conv_dim": str(settings.conv_rank), "conv_alpha": str(settings.conv_rank)}
    told = Training(
        output_name=settings.name,
        base_model_version=base_version(architecture),
        v2=architecture.family == "sd2",
        network_module="networks.lora",
        network_dim=settings.rank,
        network_alpha=settings.rank,
        network_args=conv if settings.conv_rank else {},
    )
    return {**spec.written(), **told.written()}
