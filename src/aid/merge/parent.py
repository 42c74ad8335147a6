"""A model to merge from: its names and shapes at once, its tensors one at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from aid.errors import ModelError
from aid.sd.file.tensorfile import is_finite, open_tensors
from aid.sd.model.blocks import block_of
from aid.sd.model.detection import detect
from aid.sd.model.layouts import modern_keys
from aid.sd.model.weights import describe, open_weights, resolve_checkpoint


@dataclass(frozen=True)
class Parent:
    """Shapes and dtypes in file order, under modern LDM names; `fetch` reads one tensor by that name."""

    name: str
    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, torch.dtype]
    metadata: Mapping[str, str]
    fetch: Callable[[str], Tensor]

    def read(self, key: str) -> Tensor:
        """One tensor, as it is in the file. Raises ModelError if it holds NaN or infinity."""
        return require_finite(f"{self.name} ({self.path}): {key}", self.fetch(key))


def require_finite(what: str, tensor: Tensor) -> Tensor:
    """Raises ModelError, naming `what`, if the tensor holds NaN or infinity."""
    if not is_finite(tensor):
        raise ModelError(
            f"{what} holds NaN or infinity", "finite weights", "Use an undamaged copy of this model."
        )
    return tensor


def open_parent(name: str, path: Path) -> Parent:
    """Open an artifact, file or diffusers folder, the tensors of which stay where they are until they are
    read. A file may hold parts of a model only."""
    file = resolve_checkpoint(path)
    if file.is_dir():
        weights = open_weights(file)
        tensors, metadata = weights.whole(), {**weights.metadata, **describe(weights.architecture)}
    else:
        stored, metadata = open_tensors(file)
        tensors = modern_keys(stored)
    return Parent(
        name,
        file,
        shapes={key: one.shape for key, one in tensors.items()},
        dtypes={key: one.dtype for key, one in tensors.items()},
        metadata=metadata,
        fetch=lambda key: tensors[key].read(),
    )


def require_one_architecture(primary: Parent, others: Sequence[Parent]) -> None:
    """Raises ModelError naming the first tensor that differs, and both its shapes."""
    detect(primary.shapes, primary.metadata, f"{primary.name} ({primary.path})")
    for other in others:
        shared = [key for key in primary.shapes if key in other.shapes]
        if not shared:
            raise ModelError(
                f"{other.name} ({other.path}) shares no tensor with {primary.name}", "an SD1 checkpoint"
            )
        for key in shared:
            if other.shapes[key] != primary.shapes[key]:
                raise ModelError(
                    f"{key} is {list(primary.shapes[key])} in {primary.name} "
                    f"and {list(other.shapes[key])} in {other.name}",
                    "models of one architecture",
                )


def require_blocks(shares: Mapping[str, Mapping[str, float]], parents: Mapping[str, Parent]) -> None:
    """Raises ModelError if a model is to give a block of which its file holds nothing."""
    held = {name: {block_of(key) for key in parent.shapes} for name, parent in parents.items()}
    present = set[str]().union(*held.values())
    for block, row in shares.items():
        for name in row:
            if block in present and block not in held[name]:
                raise ModelError(
                    f"{name} ({parents[name].path}) holds no tensor of {block}",
                    "a model that has the blocks it gives",
                )
