"""Matrix products added to a tensor's values: the kernel and numpy both do it, with the same bytes.

Each value is summed in double precision, in the ranks' order, and rounded once: the same on every machine
and for any number of threads.
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple

from aid.merge.arithmetic.sums import Kernel, kernel, pointer
from aid.sd.file.header import ITEM_BYTES


class Matrix(NamedTuple):
    """Floats, row after row."""

    values: memoryview
    rows: int
    columns: int

    def cut(self, rows: slice) -> Matrix:
        """Those rows, one after another."""
        first, end, _ = rows.indices(self.rows)
        size = self.columns * ITEM_BYTES["F32"]
        return Matrix(self.values[first * size : end * size], end - first, self.columns)


Pair = tuple[Matrix, Matrix]
"""Left and right."""


def add_product(left: Matrix, right: Matrix, scale: float, out: memoryview, working: str) -> None:
    """out += scale * left @ right; `working` is out's format, F32 or F64."""
    assert left.columns == right.rows and len(out) == left.rows * right.columns * ITEM_BYTES[working]
    assert all(len(one.values) == one.rows * one.columns * ITEM_BYTES["F32"] for one in (left, right))
    if not left.rows * left.columns * right.columns:
        return
    if (native := kernel()) is None:
        _by_numpy(left, right, scale, out, working)
    else:
        _by_kernel(native, left, right, scale, out, working)


def add_multiplied(
    one: Pair, other: Pair, scale: float, strength: float, out: memoryview, working: str
) -> None:
    """out += scale * strength * (left @ right) * (other left @ other right), value by value: both products
    are rounded to floats, all else to out's format. The two have the same sizes."""
    assert [each[1:] for each in one] == [each[1:] for each in other] and one[0].columns == one[1].rows
    assert len(out) == one[0].rows * one[1].columns * ITEM_BYTES[working]
    if (native := kernel()) is None:
        _multiplied_by_numpy(one, other, scale, strength, out, working)
        return
    sizes = (ctypes.c_long(size) for size in (*one[0][1:], one[1].columns))
    fault = getattr(native.library, f"aid_add_multiplied_{working}")(
        *sizes, _pointers(one[0], other[0]), _pointers(one[1], other[1]), ctypes.c_double(scale),
        ctypes.c_double(strength), pointer(out), native.plainly,
    )  # fmt: skip
    if fault:
        raise MemoryError


def _pointers(*matrices: Matrix) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(matrices))(*(pointer(one.values) for one in matrices))


def _by_kernel(
    native: Kernel, left: Matrix, right: Matrix, scale: float, out: memoryview, working: str
) -> None:
    sizes = (ctypes.c_long(size) for size in (left.rows, left.columns, right.columns))
    fault = getattr(native.library, f"aid_add_product_{working}")(
        *sizes, pointer(left.values), pointer(right.values), ctypes.c_double(scale), pointer(out),
        native.plainly,
    )  # fmt: skip
    if fault:
        raise MemoryError


def _by_numpy(left: Matrix, right: Matrix, scale: float, out: memoryview, working: str) -> None:
    import numpy as np

    high, wide = (
        np.frombuffer(one.values, np.float32).reshape(one.rows, one.columns).astype(np.float64)
        for one in (left, right)
    )
    result = np.frombuffer(out, {"F32": np.float32, "F64": np.float64}[working]).reshape(left.rows, -1)
    total = np.zeros(result.shape)
    with np.errstate(all="ignore"):
        for column, row in zip(high.T, wide, strict=True):
            total += column[:, None] * row
        np.add(result, scale * total, out=result, casting="same_kind")


def _multiplied_by_numpy(
    one: Pair, other: Pair, scale: float, strength: float, out: memoryview, working: str
) -> None:
    import numpy as np

    result = np.frombuffer(out, {"F32": np.float32, "F64": np.float64}[working]).reshape(one[0].rows, -1)
    products = np.zeros((2, *result.shape), np.float32)
    for pair, product in zip((one, other), products, strict=True):
        _by_numpy(*pair, 1.0, product.data.cast("B"), "F32")
    with np.errstate(all="ignore"):
        result += products.prod(axis=0).astype(result.dtype) * scale * strength
