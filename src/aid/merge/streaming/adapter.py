"""Adapters baked into a merge, each at a weight of its own for every block."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aid.merge.arithmetic.product import Matrix, add_product
from aid.merge.arithmetic.sums import Operand, arithmetic
from aid.merge.modes.mode import Shape
from aid.sd.adapter.bake import Baking, plan_bake
from aid.sd.adapter.file import Adapter, Change, load_adapter
from aid.sd.adapter.kind import KINDS, decompose
from aid.sd.adapter.use import Use
from aid.sd.file.header import FLOATING, ITEM_BYTES, Format
from aid.sd.file.raw import Raw
from aid.sd.model.architecture import Architecture
from aid.sd.model.layouts import Place

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

ROWS, HEIGHT = 1 << 16, 16  # values baked at once, in that many rows at least, as they share preparations
UP, DOWN = "lora_up.weight", "lora_down.weight"


@dataclass(frozen=True, eq=False)
class Bake:
    """What adapters, by name, do to one tensor of a file, some rows at a time where all of them allow
    that."""

    shape: Shape
    baking: Baking
    names: tuple[str, ...]

    def __str__(self) -> str:
        return " and ".join(self.names)

    @cached_property
    def grain(self) -> int:
        by_rows = all(
            not place.transposed and change.by_rows(place.own(self.shape))
            for (place, _), steps in self.baking.items()
            for change, _ in steps
        )
        return self._row * max(HEIGHT, ROWS // self._row) if by_rows else math.prod(self.shape)

    @property
    def _row(self) -> int:
        return math.prod(self.shape[1:])

    def __call__(self, values: memoryview, working: str, start: int) -> None:
        """Always the same rows together, whatever the pieces."""
        item = ITEM_BYTES[working]
        for at in range(0, len(values) // item, self.grain):
            self._bake(values[at * item : (at + self.grain) * item], working, (start + at) // self._row)

    def _bake(self, rows: memoryview, working: str, first: int) -> None:
        """The file's rows from that one on."""
        size = self._row * ITEM_BYTES[working]
        for (place, parameter), steps in _read(self).items():
            height = self.shape[0] // (1 if place.third is None else 3)
            above = height * (place.third or 0)
            here, end = max(first, above), min(first + len(rows) // size, above + height)
            if here < end:
                part = rows[(here - first) * size : (end - first) * size]
                own = Part(part, working, (end - here, *self.shape[1:]), place.transposed, here - above)
                for floats, strength in steps:
                    floats.add(parameter, strength, own)


@dataclass(frozen=True)
class Part:
    """Some rows of a module's tensor, from row `first` on; `working` is their format, F32 or F64."""

    values: memoryview
    working: str
    shape: Shape
    transposed: bool
    first: int

    def array(self) -> Array:
        """As the module has them."""
        found = _array(self.values, self.shape, self.working)
        return found.T if self.transposed else found


@dataclass(frozen=True)
class Floats:
    """A change, its tensors in memory as floats."""

    change: Change
    tensors: Mapping[str, memoryview]

    def add(self, parameter: str, strength: float, to: Part) -> None:
        change, rows = self.change, slice(None) if to.transposed else slice(to.first, to.first + to.shape[0])
        plain = change.kind == "lora" and change.stored.keys() == {UP, DOWN} and change.magnitude is None
        if parameter == "weight" and plain and not to.transposed:
            up, down = self._matrix(UP).cut(rows), self._matrix(DOWN)
            add_product(up, down, strength * change.scale, to.values, to.working)
            return
        import numpy as np  # most adapters do without

        with np.errstate(all="ignore"):
            view = to.array()
            if parameter == "bias":
                view += strength * self._array("bias").reshape(-1)[rows]
            else:
                view += strength * self._difference(view, rows)

    def _difference(self, view: Array, rows: slice) -> Array:
        """What it adds to some of a module's outputs."""
        change = self.change
        assert change.kind is not None
        arrays = {name: self._array(name) for name in change.stored}
        delta: Array = KINDS[change.kind].delta(arrays, _product, rows).reshape(view.shape)
        delta = delta.astype(view.dtype, copy=False) * change.scale
        if change.magnitude is None:
            return delta
        magnitude = self._array("magnitude")
        if change.by_rows((change.shape[0], *view.shape[1:])):
            magnitude = magnitude.reshape(-1)[rows]
        changed: Array = decompose(view, delta, magnitude)
        return changed

    def _matrix(self, name: str) -> Matrix:
        rows, *rest = self.change.stored[name].shape
        return Matrix(self.tensors[name], rows, math.prod(rest))

    def _array(self, name: str) -> Array:
        return _array(self.tensors[name], _parts(self.change)[name].shape, "F32")


@lru_cache(maxsize=2)  # threads are at work on tensors side by side
def _read(bake: Bake) -> dict[tuple[Place, str], list[tuple[Floats, float]]]:
    return {at: [(_floats(change), own) for change, own in steps] for at, steps in bake.baking.items()}


def _floats(change: Change) -> Floats:
    return Floats(change, {name: _widened(raw) for name, raw in _parts(change).items()})


def _parts(change: Change) -> dict[str, Raw]:
    """All that it has."""
    others = {"bias": change.bias, "magnitude": change.magnitude}
    return {**change.stored, **{name: raw for name, raw in others.items() if raw is not None}}


def _widened(raw: Raw) -> memoryview:
    count = math.prod(raw.shape)
    room = memoryview(bytearray(count * ITEM_BYTES["F32"]))
    if count:
        operand = Operand(raw.read(), raw.format.name)
        arithmetic([operand.format]).blend([operand], count, "F32", room)
    return room


def _array(values: memoryview, shape: Shape, format: str) -> Array:
    import numpy as np

    return np.frombuffer(values, {"F32": np.float32, "F64": np.float64}[format]).reshape(shape)


def _product(left: Array, right: Array) -> Array:
    """In doubles, rounded once."""
    import numpy as np

    result = np.zeros((left.shape[0], right.shape[1]), np.float32)
    add_product(_matrix_of(left), _matrix_of(right), 1.0, result.data.cast("B"), "F32")
    return result


def _matrix_of(array: Array) -> Matrix:
    values = memoryview(bytearray(array.tobytes()))
    return Matrix(values, *array.shape)


def open_adapter(path: Path) -> Adapter:
    """Its tensors stay where they are, checked. Raises as `load_adapter` does."""
    return load_adapter(path, kept=False, finite=is_finite)


def is_finite(raw: Raw) -> bool:
    """By the kernel, where there is one."""
    count, format = math.prod(raw.shape), raw.format.name
    if format not in FLOATING or not count:
        return True
    return arithmetic([format]).is_finite(Operand(raw.read(), format), count)


def plan_adapters(
    adapters: Mapping[str, Adapter],
    weights: Mapping[str, Mapping[str, float]],
    architecture: Architecture,
    block: Callable[[str], str],
    formats: Mapping[str, Format],
) -> dict[str, Bake]:
    """For each tensor that an adapter changes, what becomes of it; `formats` are the file's. Negative weights
    take away.

    Raises ModelError for an adapter or a file that doesn't fit the architecture, before any tensor is read.
    """
    found, names = dict[str, Baking](), dict[str, list[str]]()
    for name, adapter in sorted(adapters.items()):
        for key, baking in plan_bake(architecture, [Use(adapter)], formats).items():
            if not (weight := weights[name][block(key)]):
                continue
            names.setdefault(key, []).append(name)
            for at, steps in baking.items():
                weighed = [(change, strength * weight) for change, strength in steps]
                found.setdefault(key, {}).setdefault(at, []).extend(weighed)
    shapes = {key: formats[key].shape if key in formats else () for key in found}
    return {key: Bake(shapes[key], baking, tuple(names[key])) for key, baking in found.items()}
