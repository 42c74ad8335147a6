"""Tensors that aren't mere sums, computed one at a time: modes of `whole`, and adapters baked in."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aid.merge.arithmetic import Operand, arithmetic
from aid.merge.combination import Call, Combination
from aid.merge.parent import Parent
from aid.merge.whole import LIKENESS, WHOLE, Numbers
from aid.sd.file.header import ITEM_BYTES, Format

Array = NDArray[Any]
Bounds = tuple[float, float]
Bake = Callable[[Array], Array]
"""What adapters make of a tensor's values, in float32."""


@dataclass
class Evaluation:
    """Reads from `parents`; `calls` are all tensors that need it, by key, some of which `bakes` changes."""

    parents: Mapping[str, Parent]
    calls: Mapping[str, Combination]
    bakes: Mapping[str, Bake] = field(default_factory=dict)
    bounds: dict[tuple[str, tuple[Combination, ...]], Bounds] = field(default_factory=dict)

    def make(self, key: str, format: Format) -> tuple[memoryview, int]:
        """A tensor's bytes, rounded once, and its fault."""
        result = memoryview(bytearray(format.size))
        if not self.calls[key] and key not in self.bakes:
            return result, 0  # everything cancelled out
        if key in self.bakes:
            baked = self.bakes[key](self.array(key, self.calls[key], "F32"))
            values = Operand(_bytes_of(np.ascontiguousarray(baked)), "F32")
            count = len(result) // ITEM_BYTES[format.name]
            return result, arithmetic(["F32", format.name]).blend([values], count, format.name, result)
        working = "F64" if format.name in ("F32", "F64") else "F32"
        return result, self._blend(key, self.calls[key], working, format.name, result)

    def _blend(
        self, key: str, combination: Combination, working: str, format: str, result: memoryview
    ) -> int:
        operands = [self._operand(key, leaf, weight, working) for leaf, weight in combination]
        way = arithmetic([*(one.format for one in operands), format])
        return way.blend(operands, len(result) // ITEM_BYTES[format], format, result)

    def array(self, key: str, combination: Combination, working: str) -> Array:
        """A combination's values in float32 or float64."""
        shape = next(parent.formats[key].shape for parent in self.parents.values() if key in parent.formats)
        values = np.zeros(shape, _dtype(working))
        if combination and values.size:
            self._blend(key, combination, working, working, _bytes_of(values))
        return values

    def _operand(self, key: str, leaf: str | Call, weight: float, working: str) -> Operand:
        if isinstance(leaf, str):
            parent = self.parents[leaf]
            return Operand(parent.read(key), parent.formats[key].name, weight)
        values = np.ascontiguousarray(self._called(key, leaf, working), dtype=_dtype(working))
        return Operand(_bytes_of(values), working, weight)

    def _called(self, key: str, call: Call, working: str) -> Array:
        models = [self.array(key, operand, working) for operand in call.operands]
        bounds = self._bounds(call) if call.mode in LIKENESS else (0.0, 1.0)
        told = Numbers(call.alpha, call.beta, call.gamma, _chance(call.seed, key), bounds)
        return WHOLE[call.mode](models, told)

    def _bounds(self, call: Call) -> Bounds:
        """The range of similarities over all tensors of this mode, without the outermost hundredths."""
        same = (call.mode, call.operands)
        if same not in self.bounds:
            alike = LIKENESS[call.mode]
            keys = [key for key, combination in self.calls.items() if _meets(combination, same)]
            found = [alike([self.array(key, one, "F32") for one in call.operands]) for key in keys]
            self.bounds[same] = _range(found)
        return self.bounds[same]


def _meets(combination: Combination, same: tuple[str, tuple[Combination, ...]]) -> bool:
    return any(isinstance(leaf, Call) and (leaf.mode, leaf.operands) == same for leaf, _ in combination)


def _range(found: Sequence[Array]) -> Bounds:
    """As supermerger takes it: what lies below the first percentile goes, then what is above the last."""
    values = np.concatenate([one.reshape(-1) for one in found])
    values = values[~np.isnan(values)]
    values = values[values >= np.percentile(values, 1, method="midpoint")]
    values = values[values <= np.percentile(values, 99, method="midpoint")]
    return float(values.min()), float(values.max())


def _chance(seed: int, key: str) -> np.random.Generator:
    """Of each tensor's own, whatever the order in which they come."""
    digest = hashlib.sha256(f"{seed} {key}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))


def _dtype(format: str) -> type[np.floating[Any]]:
    return np.float64 if format == "F64" else np.float32


def _bytes_of(values: Array) -> memoryview:
    return memoryview(values.reshape(-1).view(np.uint8).data)
