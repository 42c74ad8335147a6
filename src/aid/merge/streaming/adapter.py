"""Adapters baked into a merge, each at a weight of its own for every block."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from threading import local
from typing import TYPE_CHECKING, Any

from aid.merge.arithmetic.magnitude import Rows, add_decomposed, add_squares, no_squares, norms_of
from aid.merge.arithmetic.product import Matrix, add_multiplied, add_product
from aid.merge.arithmetic.source import Operand
from aid.merge.arithmetic.sums import arithmetic
from aid.merge.modes.mode import Shape
from aid.sd.adapter.bake import Baking, plan_bake
from aid.sd.adapter.file import Adapter, Change, load_adapter
from aid.sd.adapter.kind import ALL, KINDS, decompose
from aid.sd.adapter.use import Use
from aid.sd.file.header import FLOATING, ITEM_BYTES, Format
from aid.sd.file.raw import Raw
from aid.sd.model.architecture import Architecture
from aid.sd.model.layouts import Place

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

Norms = dict[tuple[Place, int], memoryview]
"""Of the inputs at a place, for the step of that number there."""
Steps = Mapping[tuple[Place, str], Sequence[tuple["Floats", float]]]
ROWS, HEIGHT = 1 << 17, 8  # values baked at once, in that many rows at least, as they share preparations
LOOKED_AT = 1 << 20  # values at once
UP, DOWN = "lora_up.weight", "lora_down.weight"
HALVES = (("hada_w1_a", "hada_w1_b"), ("hada_w2_a", "hada_w2_b"))


class Desk(local):
    """A thread's own: the adapters' tensors for the file's tensor that it is at work on."""

    def __init__(self) -> None:
        self.baking: Baking | None = None
        self.steps: Steps = {}

    def read(self, baking: Baking) -> Steps:
        if self.baking is not baking:
            self.baking, self.steps = None, {}  # memory doesn't hold both
            self.steps = {
                at: [(Floats(change), own) for change, own in steps] for at, steps in baking.items()
            }
            self.baking = baking
        return self.steps


@dataclass(frozen=True, eq=False)
class Bake:
    """What adapters, by name, do to one tensor of a file, some rows at a time where all of them allow
    that."""

    shape: Shape
    baking: Baking
    names: tuple[str, ...]
    desk: Desk
    """Shared by all bakes of a merge."""

    def __str__(self) -> str:
        return " and ".join(self.names)

    @cached_property
    def grain(self) -> int:
        by_rows = not any(place.transposed for place, _ in self.baking)
        return self._row * max(HEIGHT, ROWS // self._row) if by_rows else math.prod(self.shape)

    @property
    def _row(self) -> int:
        return math.prod(self.shape[1:])

    def measure(self, read: Callable[[int, int], memoryview], working: str) -> Norms:
        """What rows alone don't tell: the inputs' norms, where there are magnitudes for these. `read` gives
        so many values from one on."""
        norms: Norms = {}
        for (place, parameter), steps in self.baking.items():
            for number, (change, _) in enumerate(steps):
                if parameter == "weight" and not place.transposed and change.by_inputs(place.own(self.shape)):
                    norms[place, number] = self._norms(read, working, place, number, norms)
        return norms

    def _norms(
        self, read: Callable[[int, int], memoryview], working: str, place: Place, number: int, norms: Norms
    ) -> memoryview:
        """Of what a place holds when the steps before have been taken."""
        squares = no_squares(self.shape[1])
        for start in range(0, math.prod(self.shape), self.grain):
            rows = read(start, min(self.grain, math.prod(self.shape) - start))
            if (own := self._part(rows, working, start // self._row, place)) is not None:
                steps = self.desk.read(self.baking)[place, "weight"]
                for before, (floats, strength) in enumerate(steps[:number]):
                    floats.add("weight", strength, own, norms.get((place, before)))
                add_squares(steps[number][0].on(own), squares)
        return norms_of(squares)

    def __call__(self, values: memoryview, working: str, start: int, measured: Norms) -> None:
        """Always the same rows together, whatever the pieces."""
        item = ITEM_BYTES[working]
        for at in range(0, len(values) // item, self.grain):
            rows = values[at * item : (at + self.grain) * item]
            self._bake(rows, working, (start + at) // self._row, measured)

    def _bake(self, rows: memoryview, working: str, first: int, norms: Norms) -> None:
        for (place, parameter), steps in self.desk.read(self.baking).items():
            if (own := self._part(rows, working, first, place)) is not None:
                for number, (floats, strength) in enumerate(steps):
                    floats.add(parameter, strength, own, norms.get((place, number)))

    def _part(self, rows: memoryview, working: str, first: int, place: Place) -> Part | None:
        """What lies at that place of the file's rows from `first` on."""
        size = self._row * ITEM_BYTES[working]
        height = self.shape[0] // (1 if place.third is None else 3)
        above = height * (place.third or 0)
        here, end = max(first, above), min(first + len(rows) // size, above + height)
        if here >= end:
            return None
        part = rows[(here - first) * size : (end - first) * size]
        return Part(part, working, (end - here, *self.shape[1:]), place.transposed, here - above)


@dataclass(frozen=True)
class Part:
    """Some rows of a module's tensor, from row `first` on; `working` is their format, F32 or F64."""

    values: memoryview
    working: str
    shape: Shape
    transposed: bool
    first: int

    @property
    def rows(self) -> slice:
        """Of the module's outputs; in what is transposed they are all there."""
        return slice(None) if self.transposed else slice(self.first, self.first + self.shape[0])

    def array(self) -> Array:
        """As the module has them."""
        found = _array(self.values, self.shape, self.working)
        return found.T if self.transposed else found


@dataclass(frozen=True)
class Floats:
    """A change; those of its tensors that were asked for whole stay in memory, as floats."""

    change: Change
    whole: dict[str, memoryview] = field(default_factory=dict)

    @property
    def _plain(self) -> bool:
        return self.change.kind == "lora" and self.change.stored.keys() == {UP, DOWN}

    @property
    def _halved(self) -> bool:
        """Whether it is a LoHa of two LoRAs of one rank."""
        stored = self.change.stored
        return (
            stored.keys() == {*HALVES[0], *HALVES[1]}
            and len({stored[right].shape[0] for _, right in HALVES}) == 1
        )

    def add(self, parameter: str, strength: float, to: Part, norms: memoryview | None = None) -> None:
        """`norms` are the inputs', of a change that has magnitudes for them."""
        change = self.change
        if parameter == "weight" and not to.transposed and change.magnitude is not None:
            magnitude = self._values("magnitude")
            if norms is None:
                magnitude = Matrix(magnitude, len(magnitude) // ITEM_BYTES["F32"], 1).cut(to.rows).values
            add_decomposed(self.on(to), strength, magnitude, norms)
            return
        by_rows = parameter == "weight" and not to.transposed
        if by_rows and self._add_delta(to.rows, change.scale, strength, to.values, to.working):
            return
        import numpy as np  # most adapters do without

        with np.errstate(all="ignore"):
            view = to.array()
            if parameter == "bias":
                view += strength * self._array("bias").reshape(-1)[to.rows]
            else:
                difference = self._difference(view, to.rows)
                difference *= strength
                view += difference

    def on(self, to: Part) -> Rows:
        """A part, and what is added to it before magnitudes."""
        outputs, inputs, *edges = to.shape
        delta = memoryview(bytearray(math.prod(to.shape) * ITEM_BYTES["F32"]))
        if not self._add_delta(to.rows, 1.0, 1.0, delta, "F32"):
            _array(delta, to.shape, "F32")[:] = self._delta(to.rows).reshape(to.shape)
        return Rows(to.values, to.working, outputs, inputs, math.prod(edges), delta, self.change.scale)

    def _add_delta(self, rows: slice, scale: float, strength: float, out: memoryview, working: str) -> bool:
        """To some of a module's outputs, if its kind does without numpy."""
        if self._plain:
            up, down = _matrix(self.change.stored[UP].cut(rows)), _matrix(self.change.stored[DOWN])
            add_product(up, down, strength * scale, out, working)
        elif self._halved:
            one, other = ((self._matrix(left).cut(rows), self._matrix(right)) for left, right in HALVES)
            add_multiplied(one, other, scale, strength, out, working)
        else:
            return False
        return True

    def _delta(self, rows: slice) -> Array:
        """Of some of a module's outputs, before any scale: floats."""
        import numpy as np

        assert self.change.kind is not None
        kind, stored = KINDS[self.change.kind], self.change.stored
        if kind.rowwise:
            cut = {name: raw.cut(rows) for name, raw in stored.items()}
            arrays, rows = {name: _array(_widened(raw), raw.shape, "F32") for name, raw in cut.items()}, ALL
        else:
            arrays = {name: self._array(name) for name in stored}
        with np.errstate(all="ignore"):
            delta: Array = kind.delta(arrays, _product, rows)
        return delta

    def _difference(self, view: Array, rows: slice) -> Array:
        """What it adds to some of a module's outputs."""
        delta = self._delta(rows).reshape(view.shape).astype(view.dtype, copy=False)
        delta *= self.change.scale
        if self.change.magnitude is None:
            return delta
        changed: Array = decompose(view, delta, self._array("magnitude"))
        return changed

    def _matrix(self, name: str) -> Matrix:
        rows, *rest = self.change.stored[name].shape
        return Matrix(self._values(name), rows, math.prod(rest))

    def _array(self, name: str) -> Array:
        return _array(self._values(name), _parts(self.change)[name].shape, "F32")

    def _values(self, name: str) -> memoryview:
        if name not in self.whole:
            self.whole[name] = _widened(_parts(self.change)[name])
        return self.whole[name]


def _parts(change: Change) -> dict[str, Raw]:
    """All that it has."""
    others = {"bias": change.bias, "magnitude": change.magnitude}
    return {**change.stored, **{name: raw for name, raw in others.items() if raw is not None}}


def _matrix(raw: Raw) -> Matrix:
    rows, *rest = raw.shape
    return Matrix(_widened(raw), rows, math.prod(rest))


def _widened(raw: Raw) -> memoryview:
    if raw.format.name == "F32":
        return raw.read()
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
    import numpy as np

    return Matrix(np.ascontiguousarray(array).data.cast("B"), *array.shape)


def open_adapter(path: Path) -> Adapter:
    """Out of a file, or an artifact that holds one. Its tensors stay where they are, checked. Raises as
    `adapter_file` and `load_adapter` do."""
    if path.is_dir():
        from aid.sd.adapter.folder import adapter_file  # takes torch

        path = adapter_file(path)
    return load_adapter(path, kept=False, finite=is_finite)


def is_finite(raw: Raw) -> bool:
    """By the kernel, where there is one."""
    count, format = math.prod(raw.shape), raw.format.name
    if format not in FLOATING:
        return True
    item = ITEM_BYTES[format]
    parts = ((at, min(LOOKED_AT, count - at)) for at in range(0, count, LOOKED_AT))
    return all(
        arithmetic([format]).is_finite(Operand(raw.part(at * item, own * item), format), own)
        for at, own in parts
    )


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
                weighed = [(change, weight) for change, _ in steps]
                found.setdefault(key, {}).setdefault(at, []).extend(weighed)
    shapes = {key: formats[key].shape if key in formats else () for key in found}
    desk = Desk()
    return {key: Bake(shapes[key], baking, tuple(names[key]), desk) for key, baking in found.items()}
