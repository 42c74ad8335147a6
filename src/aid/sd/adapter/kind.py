"""What each kind of adapter adds to a weight: two pure functions per kind, in a dictionary.

One takes the tensors of a module and returns what they add to some of its outputs before any scale, torch's
or numpy's alike; the other says of their shapes what shape that has for all outputs. Sources: LoRA, Hu et
al. 2021 (arXiv 2106.09685); convolutions, CP (Tucker), LoHa and LoKr, Yeh et al. 2023 (arXiv 2309.14859,
LyCORIS); DoRA, Liu et al. 2024 (arXiv 2402.09353). Names of tensors: kohya's."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import matmul
from typing import Any

Array = Any  # torch's or numpy's: nothing is used but what both have
Arrays = Mapping[str, Array]
Shape = tuple[int, ...]
Shapes = Mapping[str, Sequence[int]]
Product = Callable[[Array, Array], Array]
"""Of two matrices."""
EPSILON = 2.0**-23  # a float's
ALL = slice(None)  # outputs


def lora(tensors: Arrays, product: Product = matmul, rows: slice = ALL) -> Array:
    """`up @ down`; with `mid` the CP form of a convolution. [out, in(, kh, kw)]"""
    up, down = _matrix(tensors["lora_up.weight"])[rows], tensors["lora_down.weight"]
    if "lora_mid.weight" in tensors:
        return _tucker(tensors["lora_mid.weight"], up.T, _matrix(down), product)
    return product(up, _matrix(down)).reshape(up.shape[0], *down.shape[1:])


def lora_shape(shapes: Shapes) -> Shape:
    up, down = shapes["lora_up.weight"], shapes["lora_down.weight"]
    if "lora_mid.weight" in shapes:
        return _tucker_shape(shapes["lora_mid.weight"], _matrix_shape(up)[::-1], _matrix_shape(down))
    return (*_product_shape(up, down)[:1], *down[1:])


def loha(tensors: Arrays, product: Product = matmul, rows: slice = ALL) -> Array:
    """The elementwise product of two LoRAs. [out, in * kh * kw], or in the CP form [out, in, kh, kw]"""
    delta = _half_of_loha(tensors, "1", product, rows)
    delta *= _half_of_loha(tensors, "2", product, rows)
    return delta


def loha_shape(shapes: Shapes) -> Shape:
    one, other = (_half_shape(shapes, half) for half in "12")
    if one != other:
        raise ValueError("the halves differ")
    return one


def lokr(tensors: Arrays, product: Product = matmul, rows: slice = ALL) -> Array:
    """The Kronecker product of a small and a large matrix, each whole or itself a LoRA.
    [out, in * kh * kw] or [out, in, kh, kw]"""
    small, large = _factor_of_lokr(tensors, "1", product), _factor_of_lokr(tensors, "2", product)
    small = small.reshape(*small.shape, *[1] * (len(large.shape) - len(small.shape)))
    height = large.shape[0]
    own = range(*rows.indices(small.shape[0] * height))
    small, large = small[[row // height for row in own]], large[[row % height for row in own]]
    (_, *outer), (_, *inner) = small.shape, large.shape
    small = small.reshape(len(own), *chain.from_iterable((size, 1) for size in outer))
    whole = small * large.reshape(len(own), *chain.from_iterable((1, size) for size in inner))
    return whole.reshape(len(own), *(one * other for one, other in zip(outer, inner, strict=True)))


def lokr_shape(shapes: Shapes) -> Shape:
    small, large = _factor_shape(shapes, "1"), _factor_shape(shapes, "2")
    sizes = (*small, *[1] * (len(large) - len(small)))
    return tuple(own * other for own, other in zip(sizes, large, strict=True))


def full(tensors: Arrays, product: Product = matmul, rows: slice = ALL) -> Array:
    """The difference itself."""
    return tensors["diff"][rows]


def norm(tensors: Arrays, product: Product = matmul, rows: slice = ALL) -> Array:
    """The difference of a norm's gains. [width]"""
    return tensors["w_norm"][rows]


@dataclass(frozen=True)
class Kind:
    """`shape` raises ValueError, KeyError or IndexError for tensors that don't fit each other. `needs` lists
    alternatives: of each row, all of at least one tuple. `ranks` names the tensors whose first size is the
    rank that alpha is divided by; where none is there, the scale is 1. `rowwise`: of each output it takes the
    tensors' row of the same number, so that cut tensors do for some outputs."""

    formula: Callable[[Arrays, Product, slice], Array]
    shape: Callable[[Shapes], Shape]
    needs: tuple[tuple[tuple[str, ...], ...], ...]
    ranks: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    rowwise: bool = False

    def delta(self, tensors: Arrays, product: Product = matmul, rows: slice = ALL) -> Array:
        return self.formula(tensors, product, rows)

    @property
    def names(self) -> tuple[str, ...]:
        needed = (name for row in self.needs for group in row for name in group)
        return (*needed, *self.optional)


LOKR_1 = (("lokr_w1",), ("lokr_w1_a", "lokr_w1_b"))
LOKR_2 = (("lokr_w2",), ("lokr_w2_a", "lokr_w2_b"))
KINDS: dict[str, Kind] = {
    "lora": Kind(
        lora,
        lora_shape,
        ((("lora_up.weight", "lora_down.weight"),),),
        ranks=("lora_down.weight",),
        optional=("lora_mid.weight",),
    ),
    "loha": Kind(
        loha,
        loha_shape,
        ((("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),),),
        ranks=("hada_w1_b",),
        optional=("hada_t1", "hada_t2"),
    ),
    "lokr": Kind(lokr, lokr_shape, (LOKR_1, LOKR_2), ranks=("lokr_w2_b", "lokr_w1_b"), optional=("lokr_t2",)),
    "full": Kind(full, lambda shapes: tuple(shapes["diff"]), ((("diff",),),), rowwise=True),
    "norm": Kind(norm, lambda shapes: tuple(shapes["w_norm"]), ((("w_norm",),),), rowwise=True),
}
BIASES = ("diff_b", "b_norm")  # added to the module's bias, whatever the kind


def scale_of(kind: str, shapes: Mapping[str, Sequence[int]], alpha: float | None) -> float:
    """alpha / rank; 1 without alpha, and where nothing has a rank (both of LoKr's factors whole)."""
    rank = next((shapes[name][0] for name in KINDS[kind].ranks if name in shapes), None)
    return 1.0 if alpha is None or rank is None else alpha / rank


def fits(delta: Sequence[int], weight: Sequence[int]) -> bool:
    """Whether a delta of one shape can be added to a weight: a convolution may be flat in the file, and
    a linear layer there a 1x1 convolution."""
    plain, whole = _without_ones(delta), _without_ones(weight)
    return plain == whole or plain == (weight[0], math.prod(weight[1:]))


def decompose(weight: Array, delta: Array, magnitude: Array) -> Array:
    """DoRA: the change from `weight` W to m * (W + delta) / |W + delta|.

    The norm runs over all axes but the one that `magnitude` m has: outputs (PEFT, LyCORIS since 3.0) or
    inputs (the paper's columns; LyCORIS before, and all that A1111 knows). As in A1111 the adapter's
    weight then multiplies this change.
    """
    merged = weight + delta
    axis = magnitude_axis(magnitude.shape, weight.shape)
    others = tuple(place for place in range(len(weight.shape)) if place != axis)
    norms = (merged * merged).sum(axis=others, keepdims=True) ** 0.5
    shape = [-1 if place == axis else 1 for place in range(len(weight.shape))]
    return merged * (magnitude.reshape(shape) / (norms + EPSILON)) - weight


def magnitude_axis(magnitude: Sequence[int], weight: Sequence[int]) -> int:
    """0 for one magnitude per output, 1 per input. Raises ValueError for any other shape."""
    size = math.prod(magnitude)
    for axis in (0, 1):
        rest = [length for place, length in enumerate(magnitude) if place != axis]
        listed = len(magnitude) == 1 or (len(magnitude) > axis and math.prod(rest) == 1)
        if axis < len(weight) and size == weight[axis] and listed:
            return axis
    raise ValueError(f"{list(magnitude)} magnitudes for a weight of shape {list(weight)}")


def _without_ones(shape: Sequence[int]) -> tuple[int, ...]:
    """A 1x1 convolution's shape as a linear layer's."""
    return (*shape[:2], *(size for size in shape[2:] if size != 1))


def _half_of_loha(tensors: Arrays, half: str, product: Product, rows: slice) -> Array:
    left, right = tensors[f"hada_w{half}_a"], tensors[f"hada_w{half}_b"]
    core = tensors.get(f"hada_t{half}")
    if core is not None:
        return _tucker(core, left[:, rows], right, product)
    return product(_matrix(left)[rows], _matrix(right))


def _half_shape(shapes: Shapes, half: str) -> Shape:
    left, right = shapes[f"hada_w{half}_a"], shapes[f"hada_w{half}_b"]
    core = shapes.get(f"hada_t{half}")
    return _product_shape(left, right) if core is None else _tucker_shape(core, left, right)


def _factor_of_lokr(tensors: Arrays, factor: str, product: Product) -> Array:
    if (whole := tensors.get(f"lokr_w{factor}")) is not None:
        return whole
    left, right = tensors[f"lokr_w{factor}_a"], tensors[f"lokr_w{factor}_b"]
    core = tensors.get(f"lokr_t{factor}")
    if core is not None:
        return _tucker(core, left, right, product)
    return product(left, _matrix(right)).reshape(left.shape[0], *right.shape[1:])


def _factor_shape(shapes: Shapes, factor: str) -> Shape:
    if (whole := shapes.get(f"lokr_w{factor}")) is not None:
        return tuple(whole)
    left, right = shapes[f"lokr_w{factor}_a"], shapes[f"lokr_w{factor}_b"]
    core = shapes.get(f"lokr_t{factor}")
    if core is not None:
        return _tucker_shape(core, left, right)
    if len(left) != 2:
        raise ValueError("a matrix has two sizes")
    return (*_product_shape(left, right)[:1], *right[1:])


def _tucker(core: Array, left: Array, right: Array, product: Product) -> Array:
    """core [p, q, kh, kw], left [p, out], right [q, in] -> [out, in, kh, kw]"""
    p, q, *edges = core.shape
    rows = product(left.T, core.reshape(p, -1)).reshape(-1, q, math.prod(edges))
    whole = product(rows.swapaxes(1, 2).reshape(-1, q), right)
    return whole.reshape(left.shape[1], -1, right.shape[1]).swapaxes(1, 2).reshape(left.shape[1], -1, *edges)


def _tucker_shape(core: Sequence[int], left: Sequence[int], right: Sequence[int]) -> Shape:
    (p, q, *edges), (own_p, out), (own_q, into) = core, left, right
    if (p, q) != (own_p, own_q) or len(edges) != 2:
        raise ValueError("the ranks differ")
    return (out, into, *edges)


def _product_shape(left: Sequence[int], right: Sequence[int]) -> Shape:
    (rows, rank), (own_rank, columns) = _matrix_shape(left), _matrix_shape(right)
    if rank != own_rank:
        raise ValueError("the ranks differ")
    return rows, columns


def _matrix(tensor: Array) -> Array:
    return tensor.reshape(tensor.shape[0], -1)


def _matrix_shape(shape: Sequence[int]) -> Shape:
    if len(shape) < 2:
        raise ValueError("a matrix has two sizes")
    return shape[0], math.prod(shape[1:])
