"""The arithmetic of one tensor, and how far it ended from its parents."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


def blend(tensors: Mapping[str, Tensor], shares: Mapping[str, float]) -> Tensor:
    """`sum(share * tensor)` in float32, still to be rounded; a single model's tensor as it is."""
    first, *others = shares
    if not others:
        return tensors[first]
    total = tensors[first].float() * shares[first]
    for name in others:
        total.add_(tensors[name].float(), alpha=shares[name])
    return total


@dataclass
class Distances:
    """Squared norms, summed block by block."""

    squares: dict[str, dict[str, float]] = field(default_factory=dict)
    norms: dict[str, float] = field(default_factory=dict)

    def add(self, block: str, parents: Mapping[str, Tensor], result: Tensor) -> None:
        row, final = self.squares.setdefault(block, {}), result.float()
        for name, tensor in parents.items():
            row[name] = row.get(name, 0.0) + _square(tensor.float() - final)
        self.norms[block] = self.norms.get(block, 0.0) + _square(final)

    def relative(self, block: str) -> dict[str, float]:
        """||parent - result|| / ||result||, to six digits: sums in parallel differ beyond that."""
        norm = math.sqrt(self.norms.get(block, 0.0)) or 1.0
        return {
            name: float(f"{math.sqrt(square) / norm:.6g}")
            for name, square in self.squares.get(block, {}).items()
        }


def _square(tensor: Tensor) -> float:
    return float(tensor.square().sum(dtype=torch.float64))
