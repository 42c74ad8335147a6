"""What each kind of adapter adds to a weight: one pure function per kind, in a dictionary.

Each takes the tensors of one module and returns what they add before any scale, float32 where they are.
Sources: LoRA, Hu et al. 2021 (arXiv 2106.09685); convolutions, CP (Tucker), LoHa and LoKr, Yeh et al.
2023 (arXiv 2309.14859, LyCORIS); DoRA, Liu et al. 2024 (arXiv 2402.09353). Names of tensors: kohya's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]


def lora(tensors: Tensors) -> Tensor:
    """`up @ down`; with `mid` the CP form of a convolution. [out, in(, kh, kw)]"""
    up, down = _matrix(tensors["lora_up.weight"]), tensors["lora_down.weight"]
    if "lora_mid.weight" in tensors:
        return _tucker(tensors["lora_mid.weight"], up.T, _matrix(down))
    return (up @ _matrix(down)).reshape(up.shape[0], *down.shape[1:])


def lora_shape(shapes: Mapping[str, Sequence[int]]) -> tuple[int, ...] | None:
    """What `lora` makes of tensors of these shapes, unless it's the CP form. Raises ValueError if they don't
    fit each other."""
    if "lora_mid.weight" in shapes:
        return None
    up, down = shapes["lora_up.weight"], shapes["lora_down.weight"]
    if min(len(up), len(down)) < 2 or math.prod(up[1:]) != down[0]:
        raise ValueError("the ranks differ")
    return (up[0], *down[1:])


def loha(tensors: Tensors) -> Tensor:
    """The elementwise product of two LoRAs. [out, in * kh * kw], or in the CP form [out, in, kh, kw]"""
    return _half_of_loha(tensors, "1") * _half_of_loha(tensors, "2")


def lokr(tensors: Tensors) -> Tensor:
    """The Kronecker product of a small and a large matrix, each whole or itself a LoRA.
    [out, in * kh * kw] or [out, in, kh, kw]"""
    small, large = _factor_of_lokr(tensors, "1"), _factor_of_lokr(tensors, "2")
    aligned = small.reshape(*small.shape, *[1] * (large.dim() - small.dim()))
    return torch.kron(aligned, large.contiguous())


def full(tensors: Tensors) -> Tensor:
    """The difference itself."""
    return tensors["diff"]


def norm(tensors: Tensors) -> Tensor:
    """The difference of a norm's gains. [width]"""
    return tensors["w_norm"]


@dataclass(frozen=True)
class Kind:
    """`needs` lists alternatives: of each row, all of at least one tuple. `ranks` names the tensors whose
    first size is the rank that alpha is divided by; where none is there, the scale is 1. `rows` names those
    that have a row for each output, all others being the same for every output, as long as none of `optional`
    is there; empty, if that isn't so."""

    delta: Callable[[Tensors], Tensor]
    needs: tuple[tuple[tuple[str, ...], ...], ...]
    ranks: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()

    def by_rows(self, tensors: Mapping[str, object]) -> bool:
        return bool(self.rows) and not tensors.keys() & set(self.optional)

    @property
    def names(self) -> tuple[str, ...]:
        needed = (name for row in self.needs for group in row for name in group)
        return (*needed, *self.optional)


LOKR_1 = (("lokr_w1",), ("lokr_w1_a", "lokr_w1_b"))
LOKR_2 = (("lokr_w2",), ("lokr_w2_a", "lokr_w2_b"))
KINDS: dict[str, Kind] = {
    "lora": Kind(
        lora,
        ((("lora_up.weight", "lora_down.weight"),),),
        ranks=("lora_down.weight",),
        optional=("lora_mid.weight",),
        rows=("lora_up.weight",),
    ),
    "loha": Kind(
        loha,
        ((("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),),),
        ranks=("hada_w1_b",),
        optional=("hada_t1", "hada_t2"),
        rows=("hada_w1_a", "hada_w2_a"),
    ),
    "lokr": Kind(lokr, (LOKR_1, LOKR_2), ranks=("lokr_w2_b", "lokr_w1_b"), optional=("lokr_t2",)),
    "full": Kind(full, ((("diff",),),), rows=("diff",)),
    "norm": Kind(norm, ((("w_norm",),),), rows=("w_norm",)),
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


def decompose(weight: Tensor, delta: Tensor, magnitude: Tensor) -> Tensor:
    """DoRA: the change from `weight` W to m * (W + delta) / |W + delta|.

    The norm runs over all axes but the one that `magnitude` m has: outputs (PEFT, LyCORIS since 3.0) or
    inputs (the paper's columns; LyCORIS before, and all that A1111 knows). As in A1111 the adapter's
    weight then multiplies this change.
    """
    merged = weight + delta
    axis = magnitude_axis(magnitude.shape, weight.shape)
    others = [place for place in range(weight.dim()) if place != axis]
    norms: Tensor = torch.linalg.vector_norm(merged, dim=others, keepdim=True)
    shape = [-1 if place == axis else 1 for place in range(weight.dim())]
    return merged * (magnitude.reshape(shape) / (norms + torch.finfo(merged.dtype).eps)) - weight


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


def _half_of_loha(tensors: Tensors, half: str) -> Tensor:
    left, right = tensors[f"hada_w{half}_a"], tensors[f"hada_w{half}_b"]
    core = tensors.get(f"hada_t{half}")
    return _matrix(left) @ _matrix(right) if core is None else _tucker(core, left, right)


def _factor_of_lokr(tensors: Tensors, factor: str) -> Tensor:
    if (whole := tensors.get(f"lokr_w{factor}")) is not None:
        return whole
    left, right = tensors[f"lokr_w{factor}_a"], tensors[f"lokr_w{factor}_b"]
    core = tensors.get(f"lokr_t{factor}")
    if core is not None:
        return _tucker(core, left, right)
    return (left @ _matrix(right)).reshape(left.shape[0], *right.shape[1:])


def _tucker(core: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """core [r, r, kh, kw], left [r, out], right [r, in] -> [out, in, kh, kw]"""
    return torch.einsum("pqhw,po,qi->oihw", core, left, right)


def _matrix(tensor: Tensor) -> Tensor:
    return tensor.flatten(1)
