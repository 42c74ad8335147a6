"""Tensors that aren't mere sums, computed part by part: modes that don't only weigh, and adapters baked in.

What a mode has to know of a whole tensor is found in a first pass, over all tensors before any is written.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from threading import RLock
from typing import Any, Protocol

from aid.core.workbench import Ticker
from aid.merge.arithmetic.source import Operand
from aid.merge.arithmetic.sums import CODES, arithmetic, in_memory, kernel
from aid.merge.modes.mode import Given, Mode, Told, parts_of
from aid.merge.modes.native import by_kernel
from aid.merge.recipe.combination import Call, Combination
from aid.merge.recipe.recipe import RANGED
from aid.merge.streaming.aside import Aside
from aid.merge.streaming.parent import Parent
from aid.merge.streaming.relay import Relay
from aid.merge.streaming.stream import THE_SUM, Fault, Made
from aid.sd.file.header import ITEM_BYTES, Format

MOST, FEW = 1 << 16, 4  # values at a time, of so many models
Bounds = tuple[float, float]


class Bake(Protocol):
    """What adapters make of a tensor's values, in place, in the `working` format, F32 or F64: of whole grains
    from value `start` on, or of what is left. `measure` is the first pass; `read` gives it so many values
    from one on."""

    @property
    def grain(self) -> int: ...

    def measure(self, read: Callable[[int, int], memoryview], working: str) -> Any: ...

    def __call__(self, values: memoryview, working: str, start: int, measured: Any) -> None: ...


@dataclass
class Evaluation:
    """Reads from `parents`; `calls` are all tensors that need it, by key, some of which `bakes` changes."""

    parents: Mapping[str, Parent]
    calls: Mapping[str, Combination]
    formats: Mapping[str, Format]
    bakes: Mapping[str, Bake] = field(default_factory=dict)
    measured: dict[tuple[object, ...], Any] = field(default_factory=dict)
    bounds: dict[tuple[object, ...], Bounds] = field(default_factory=dict)
    aside: Aside = field(default_factory=Aside)
    lock: RLock = field(default_factory=RLock)

    def made(self, key: str) -> Made:
        """How a tensor is made, each value rounded once."""
        return Made(partial(self._fill, key), self._grain(key))

    def measure(self, threads: int, tick: Ticker) -> None:
        """All first passes, a tensor a thread, of which this is one: its memory will be used again. Of each
        tensor a few numbers are kept."""
        relay = Relay(iter(self.calls))

        def work() -> None:
            for _, key in relay:
                self._measure(key)
                with self.lock:
                    tick()

        relay.run(work, threads)

    def _measure(self, key: str) -> None:
        for call in calls_in(self.calls[key]):
            self._first_pass(key, call)
        if key in self.bakes:
            self._before_baking(key)

    def _working(self, key: str) -> str:
        """What is rounded to fewer bits than floats have is computed with floats, if its modes allow that."""
        exact = self.formats[key].name in ("F32", "F64") or any(mode.exact for mode in self._modes(key))
        return "F64" if exact else "F32"

    def _grain(self, key: str) -> int:
        """The largest, a multiple of the smaller ones: of a value, the last axis, rows and everything."""
        grains = [mode.grain(self.formats[key].shape) for mode in self._modes(key)]
        return max(1, *grains, self.bakes[key].grain if key in self.bakes else 1)

    def _step(self, key: str) -> int:
        """Values at a time, the fewer the more models there are."""
        values = min((mode.values for mode in self._modes(key)), default=MOST)
        models = max((len(call.operands) for call in calls_in(self.calls[key])), default=1)
        return parts_of(self._grain(key), values * FEW // max(FEW, models))

    def _modes(self, key: str) -> list[Mode]:
        return [self._mode(key, call) for call in calls_in(self.calls[key])]

    def _mode(self, key: str, call: Call) -> Mode:
        if (own := kernel()) is not None and (mode := by_kernel(own, call.mode)) is not None:
            return mode
        from aid.merge.modes.nonlinear import NONLINEAR  # numpy is needed for these alone

        return NONLINEAR[call.mode]

    def _fill(self, key: str, start: int, room: memoryview) -> Fault:
        """Values from `start` on."""
        format, fault = self.formats[key].name, ""
        item = ITEM_BYTES[format]
        total, step = len(room) // item, self._step(key)
        for at in range(0, total, step):
            count = min(step, total - at)
            own = self._blend(key, start + at, count, format, room[at * item : (at + count) * item])
            fault = fault or own
        return fault

    def _blend(self, key: str, start: int, count: int, format: str, out: memoryview) -> Fault:
        broken = list[Fault]()
        operands = self._operands(key, self.calls[key], start, count, broken)
        source = THE_SUM
        if (bake := self.bakes.get(key)) is not None:
            working = self._working(key)
            values = memoryview(bytearray(count * ITEM_BYTES[working]))
            if not _blend(operands, count, working, values):
                source = str(bake)
            bake(values, working, start, self._before_baking(key))
            operands = [Operand(values, working)]
        fault = _blend(operands, count, format, out)
        return broken[0] if broken else source if fault else ""

    def _operands(
        self, key: str, combination: Combination, start: int, count: int, broken: list[Fault] | None
    ) -> list[Operand]:
        """`broken`, if given, is told of parents whose values aren't finite: a mode may leave these out."""
        return [self._operand(key, leaf, weight, start, count, broken) for leaf, weight in combination]

    def _operand(
        self, key: str, leaf: str | Call, weight: float, start: int, count: int, broken: list[Fault] | None
    ) -> Operand:
        if isinstance(leaf, Call):
            return Operand(self._called(key, leaf, start, count, broken), self._working(key), weight)
        format = self.parents[leaf].formats[key].name
        item = ITEM_BYTES[format]
        room = memoryview(bytearray(count * item))
        operand = Operand(self.parents[leaf].values(key, start * item, room), format, weight)
        if broken is not None and not arithmetic([format]).is_finite(operand, count):
            broken.append(str(self.parents[leaf]))
        return operand

    def _called(self, key: str, call: Call, start: int, count: int, broken: list[Fault] | None) -> memoryview:
        mode, bounds = self._mode(key, call), self._range(call) if call.mode in RANGED else (0.0, 1.0)
        shape, working = self.formats[key].shape, self._working(key)
        grain = max(1, mode.grain(shape))
        first, last = start // grain * grain, min(-(-(start + count) // grain) * grain, math.prod(shape))
        told = Told(
            call.alpha, call.beta, call.gamma, call.seed, key, shape, first, last - first, working,
            self._first_pass(key, call), bounds, mode.around(shape),
        )  # fmt: skip
        made = mode.part([self._model(key, one, *told.given, broken) for one in call.operands], told)
        item = ITEM_BYTES[working]
        return made[(start - first) * item : (start - first + count) * item]

    def _model(
        self, key: str, combination: Combination, start: int, count: int, broken: list[Fault] | None
    ) -> Operand:
        """As it is stored, where it is one parent alone."""
        operands = self._operands(key, combination, start, count, broken)
        if len(operands) == 1 and operands[0].weight == 1.0 and operands[0].format in CODES:
            return operands[0]
        return _blended(operands, count, self._working(key))

    def _first_pass(self, key: str, call: Call) -> Any:
        """What the mode measures of a tensor; it doesn't hang on alpha."""
        measure, same = self._mode(key, call).measure, (key, *_same(call), call.beta)
        shape, working = self.formats[key].shape, self._working(key)
        if measure is not None and same not in self.measured:

            def read(number: int, start: int, count: int) -> Operand:
                return self._model(key, call.operands[number], start, count, None)

            self.measured[same] = measure(
                Given(shape, len(call.operands), working, read, self.aside.keep), call.beta
            )
        return self.measured.get(same)

    def _before_baking(self, key: str) -> Any:
        """What adapters measure of a tensor."""
        working, same = self._working(key), (key, "adapters")

        def read(start: int, count: int) -> memoryview:
            return in_memory(
                _blended(self._operands(key, self.calls[key], start, count, None), count, working)
            )

        if same not in self.measured:
            self.measured[same] = self.bakes[key].measure(read, working)
        return self.measured[same]

    def _range(self, call: Call) -> Bounds:
        """The range of similarities over all tensors of this mode, without the outermost hundredths."""
        from aid.merge.modes.nonlinear import range_of

        same = _same(call)
        with self.lock:
            if same not in self.bounds:
                alike = [
                    self._mode(key, one).ranged(self._first_pass(key, one))
                    for key, combination in self.calls.items()
                    for one in {_same(own): own for own in calls_in(combination)}.values()
                    if _same(one) == same
                ]
                self.bounds[same] = range_of(alike)
        return self.bounds[same]


def calls_in(combination: Combination) -> Iterator[Call]:
    """All, the innermost first."""
    for leaf, _ in combination:
        if isinstance(leaf, Call):
            for operand in leaf.operands:
                yield from calls_in(operand)
            yield leaf


def _same(call: Call) -> tuple[object, ...]:
    return (call.mode, call.operands)


def _blended(operands: Sequence[Operand], count: int, working: str) -> Operand:
    values = memoryview(bytearray(count * ITEM_BYTES[working]))
    _blend(operands, count, working, values)
    return Operand(values, working)


def _blend(operands: Sequence[Operand], count: int, format: str, out: memoryview) -> int:
    if not operands:  # everything cancelled out
        out[:] = bytes(len(out))
        return 0
    return arithmetic([*(one.format for one in operands), format]).blend(operands, count, format, out)
