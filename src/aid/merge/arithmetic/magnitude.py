"""DoRA's magnitudes on rows of a weight: the kernel and numpy both do it, with the same bytes.

Norms are of squares added up in double precision one after another: the same for any pieces.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any, NamedTuple

from aid.merge.arithmetic.sums import kernel, pointer
from aid.sd.file.header import ITEM_BYTES

EPSILON = 2.0**-23  # a float's


class Rows(NamedTuple):
    """Some outputs of a weight, in the format `working`, F32 or F64, and what an adapter adds to them:
    floats, to be multiplied by `scale`."""

    values: memoryview
    working: str
    outputs: int
    inputs: int
    each: int
    """Values of an input."""
    delta: memoryview
    scale: float

    @property
    def sizes(self) -> list[ctypes.c_long]:
        return [ctypes.c_long(size) for size in (self.outputs, self.inputs, self.each)]


def no_squares(inputs: int) -> memoryview:
    return memoryview(bytearray(inputs * ITEM_BYTES["F64"]))


def add_squares(rows: Rows, squares: memoryview) -> None:
    """To the doubles of each input the squares of what the rows become without magnitudes."""
    if (native := kernel()) is None:
        _add_squares_by_numpy(rows, squares)
    else:
        getattr(native.library, f"aid_add_squares_{rows.working}")(
            *rows.sizes, pointer(rows.values), pointer(rows.delta), ctypes.c_double(rows.scale),
            pointer(squares), native.plainly,
        )  # fmt: skip


def norms_of(squares: memoryview) -> memoryview:
    return memoryview(bytearray(b"".join(_double(math.sqrt(one)) for one in squares.cast("d"))))


def _double(value: float) -> bytes:
    return bytes(ctypes.c_double(value))


def add_decomposed(rows: Rows, strength: float, magnitude: memoryview, norms: memoryview | None) -> None:
    """Rows W += strength * (m * (W + delta) / |W + delta| - W). The magnitudes m are floats, of the inputs,
    whose norms are told, or of these rows."""
    if (native := kernel()) is None:
        _add_decomposed_by_numpy(rows, strength, magnitude, norms)
    else:
        getattr(native.library, f"aid_add_decomposed_{rows.working}")(
            *rows.sizes, pointer(rows.values), pointer(rows.delta), ctypes.c_double(rows.scale),
            ctypes.c_double(strength), pointer(magnitude), None if norms is None else pointer(norms),
            native.plainly,
        )  # fmt: skip


def _merged(rows: Rows) -> tuple[Any, Any]:
    """The values, to be changed there, and what they become without magnitudes: [outputs, inputs, each]"""
    import numpy as np

    shape, dtype = (
        (rows.outputs, rows.inputs, rows.each),
        {"F32": np.float32, "F64": np.float64}[rows.working],
    )
    values = np.frombuffer(rows.values, dtype).reshape(shape)
    delta = np.frombuffer(rows.delta, np.float32).reshape(shape).astype(dtype)
    return values, values + delta * dtype(rows.scale)


def _add_squares_by_numpy(rows: Rows, squares: memoryview) -> None:
    import numpy as np

    sums = np.frombuffer(squares, np.float64)
    for row in _merged(rows)[1].astype(np.float64):
        for values in row.T:
            sums += values * values


def _add_decomposed_by_numpy(
    rows: Rows, strength: float, magnitude: memoryview, norms: memoryview | None
) -> None:
    import numpy as np

    values, merged = _merged(rows)
    if norms is None:
        exact = merged.reshape(rows.outputs, -1).astype(np.float64)
        lengths = np.sqrt(np.cumsum(exact * exact, axis=1)[:, -1])[:, None, None]  # one after another
    else:
        lengths = np.frombuffer(norms, np.float64)[None, :, None]
    own = np.frombuffer(magnitude, np.float32).reshape(lengths.shape).astype(values.dtype)
    factor = own / (lengths.astype(values.dtype) + values.dtype.type(EPSILON))
    with np.errstate(all="ignore"):
        values += values.dtype.type(strength) * (merged * factor - values)
