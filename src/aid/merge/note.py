"""What is noted while a file is written: faults, and how far the result ended from its parents."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from aid.core.workbench import Ticker
from aid.errors import ModelError
from aid.merge.arithmetic import Found
from aid.merge.recipe import Recipe
from aid.merge.stream import Piece, Sum
from aid.sd.model.blocks import is_merged

WORDS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass
class Distances:
    """Squared norms, summed block by block."""

    squares: dict[str, dict[str, float]] = field(default_factory=dict)
    norms: dict[str, float] = field(default_factory=dict)

    def add(self, block: str, parents: Sequence[str], found: Found) -> None:
        row = self.squares.setdefault(block, {})
        for name, square in zip(parents, found.distances, strict=True):
            row[name] = row.get(name, 0.0) + square
        self.norms[block] = self.norms.get(block, 0.0) + found.square

    def relative(self, block: str) -> dict[str, float]:
        """||parent - result|| / ||result||, to six digits."""
        norm = math.sqrt(self.norms.get(block, 0.0)) or 1.0
        return {
            name: float(f"{math.sqrt(square) / norm:.6g}")
            for name, square in self.squares.get(block, {}).items()
        }


@dataclass
class Notes:
    """Looks at each piece, in the file's order."""

    recipe: Recipe
    keeps_broken: bool
    tick: Ticker
    distances: Distances = field(default_factory=Distances)
    broken: dict[str, str] = field(default_factory=dict)
    """Tensor -> where its NaN or infinity comes from."""

    def __call__(self, piece: Piece, found: Found) -> None:
        """Raises ModelError for NaN and infinity, unless they are to be kept."""
        if piece.start == 0:
            self.tick()
        source = piece.output.source
        terms = source.terms if isinstance(source, Sum) else ()
        if found.fault:
            self._fault(piece, str(terms[found.fault - 1][0]) if terms and found.fault > 0 else "")
        names = [parent.name for parent, _ in terms]
        if terms and is_merged(piece.key, self.recipe.convention) and set(names) <= set(self.recipe.order):
            self.distances.add(self.recipe.block(piece.key), names, found)

    def _fault(self, piece: Piece, parent: str) -> None:
        """Raises ModelError for NaN and infinity, unless they are to be kept."""
        format = piece.output.format.name
        where = f"{parent}: {piece.key}" if parent else f"{piece.key}, in {WORDS.get(format, format)},"
        if not self.keeps_broken:
            raise ModelError(
                f"{where} holds NaN or infinity", "finite weights", "Use an undamaged copy of this model."
            )
        self.broken.setdefault(piece.key, parent or "the sum")
