"""Modes by the compiled kernel: the bytes that `nonlinear` gives, sooner and, but for DARE, without numpy."""

from __future__ import annotations

import ctypes
import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from aid.merge.arithmetic.source import Operand
from aid.merge.arithmetic.sums import Kernel, pointer, terms_of
from aid.merge.modes import smooth
from aid.merge.modes.mode import PART, Given, Mode, Told
from aid.merge.modes.selection import FINE, place_of, ranked
from aid.merge.modes.slerp import slerp
from aid.sd.file.header import ITEM_BYTES

MANY, FEW = 1 << 16, 1 << 12  # values at a time; a sample is of many places
FLOATS = {"F32": "f", "F64": "d"}
BITS = {"F32": "I", "F64": "Q"}


def by_kernel(kernel: Kernel, name: str) -> Mode | None:
    """None for a mode that it hasn't."""
    own = Native(kernel)
    modes: dict[str, Mode] = {
        "ties": Mode(own.ties, own.least, values=MANY),
        "ties_mass": Mode(own.ties_mass, own.least, values=MANY),
        "train_difference": Mode(own.train_difference, values=MANY, exact=True),
        "dare": Mode(own.dare, values=MANY),
        "slerp": Mode(slerp, own.products, values=MANY),
        "smooth_add": Mode(
            own.smooth_add, grain=smooth.row_of, around=smooth.around, values=smooth.MANY, exact=True
        ),
    }
    return modes.get(name)


@dataclass(frozen=True)
class Native:
    """Models' values are in memory."""

    kernel: Kernel

    def _call(self, name: str, working: str, *given: Any) -> Any:
        return getattr(self.kernel.library, f"aid_{name}_{working}")(*given, self.kernel.plainly)

    def least(self, given: Given, share: float) -> list[float]:
        """The size of each model's smallest difference among its largest, a share of all."""
        return [self._least(given, number, place_of(share, given.size)) for number in range(1, given.models)]

    def _least(self, given: Given, number: int, place: int) -> float:
        def count(lowest: int, shift: int, bin_bits: int, every: int) -> Counts:
            counts = Counts(self.kernel, 1 << bin_bits)
            for values, pair in given.parts((0, number), 1, every, MANY if every == 1 else FEW):
                counts.total += values
                counts.below += self._call(
                    "count_sizes", given.working, ctypes.c_long(values), terms_of(pair),
                    ctypes.c_uint64(lowest), shift, counts.bins, ctypes.c_long(counts.size),
                )  # fmt: skip
            return counts

        bits = ranked(place, given.size, count, 8 * ITEM_BYTES[given.working] - 1)
        packed = struct.pack(f"={BITS[given.working]}", bits)
        return float(struct.unpack(f"={FLOATS[given.working]}", packed)[0])

    def ties(self, models: Sequence[Operand], told: Told) -> memoryview:
        return self._agreed(models, told, by_mass=False)

    def ties_mass(self, models: Sequence[Operand], told: Told) -> memoryview:
        return self._agreed(models, told, by_mass=True)

    def _agreed(self, models: Sequence[Operand], told: Told, by_mass: bool) -> memoryview:
        least = (ctypes.c_double * len(told.measured))(*told.measured)
        return self._made("agree", told, len(models), terms_of(models), least, _double(told.alpha), by_mass)

    def train_difference(self, models: Sequence[Operand], told: Told) -> memoryview:
        return self._made("train", told, terms_of(models), _double(1.8 * told.alpha))

    def smooth_add(self, models: Sequence[Operand], told: Told) -> memoryview:
        shape, row, stages = told.shape, smooth.row_of(told.shape), smooth.stages(told.shape)
        if stages > smooth.MOST_STAGES:
            from aid.merge.modes.nonlinear import NONLINEAR

            return NONLINEAR["smooth_add"].part(models, told)
        assert told.working == "F64"
        networks, weights = smooth.networks(stages), smooth.WEIGHTS
        out = memoryview(bytearray(told.length * ITEM_BYTES["F64"]))
        fault = self.kernel.library.aid_smooth(
            len(shape), (ctypes.c_long * len(shape))(*shape),
            ctypes.c_long(told.start // row), ctypes.c_long(told.length // row), terms_of(models),
            (ctypes.c_uint16 * len(networks))(*networks), (ctypes.c_double * len(weights))(*weights),
            _double(told.alpha), pointer(out), self.kernel.plainly,
        )  # fmt: skip
        if fault:
            raise MemoryError
        return out

    def dare(self, models: Sequence[Operand], told: Told) -> memoryview:
        from aid.merge.modes.nonlinear import dare_scale, states  # numpy's generator is what is drawn from

        words, terms = states(told, len(models)), terms_of(models)
        drawn = (ctypes.c_uint64 * len(words))(*words)
        scale = _double(dare_scale(told, len(models)))
        return self._made("drop", told, len(models), terms, drawn, _double(told.beta), scale)

    def _made(self, name: str, told: Told, *given: Any) -> memoryview:
        out = memoryview(bytearray(told.length * ITEM_BYTES[told.working]))
        self._call(name, told.working, ctypes.c_long(told.length), *given, pointer(out))
        return out

    def products(self, given: Given, beta: float) -> list[float]:
        """A B, A A and B B."""
        found = [0.0] * 3
        for count, pair in given.parts((0, 1), values=PART):
            sums = (ctypes.c_double * 3)()
            self._call("products", given.working, ctypes.c_long(count), terms_of(pair), sums)
            found = [so_far + own for so_far, own in zip(found, sums, strict=True)]
        return found


def _double(number: float) -> ctypes.c_double:
    return ctypes.c_double(number)


class Desk(threading.local):
    """A thread's own memory, 4 MiB where it is used. New memory would cost more than the counting."""

    @cached_property
    def bins(self) -> ctypes.Array[ctypes.c_uint32]:
        return (ctypes.c_uint32 * (1 << FINE))()


DESK = Desk()


class Counts:
    """Of differences' sizes; they hold until the thread's next."""

    def __init__(self, kernel: Kernel, size: int) -> None:
        self._kernel, self.size, self.bins = kernel, size, DESK.bins
        ctypes.memset(self.bins, 0, 4 * size)
        self.below = self.total = 0

    def bin(self, place: int) -> int | None:
        left = ctypes.c_long(place)
        found: int = self._kernel.library.aid_bin(self.bins, ctypes.c_long(self.size), ctypes.byref(left))
        return found if found < self.size else None
