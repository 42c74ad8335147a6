"""The kernel, the kernel without vector instructions, and numpy: one rounding each, and the same bytes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aid.merge.arithmetic.portable import PORTABLE
from aid.merge.arithmetic.source import Operand
from aid.merge.arithmetic.sums import Arithmetic, Kernel, arithmetic, kernel
from aid.sd.file.tensorfile import DTYPES, raw_bytes

COUNT = 2500  # two whole blocks of the kernel's and a part of one
FORMATS = ("F16", "BF16", "F32", "F64")
needs_kernel = pytest.mark.skipif(kernel() is None, reason="the kernel isn't built: python hatch_build.py")


def ways() -> list[Arithmetic]:
    native = kernel()
    assert native is not None
    return [native, Kernel(native.library, plainly=True), PORTABLE]


def values(format: str, seed: int, spread: float) -> torch.Tensor:
    """Normal values of many sizes, subnormal and near the format's largest ones too, none of them NaN."""
    dtype, chance = DTYPES[format], torch.Generator().manual_seed(seed)
    plain = torch.randn(COUNT, generator=chance, dtype=torch.float64)
    scale = torch.pow(10.0, spread * (torch.rand(COUNT, generator=chance, dtype=torch.float64) * 2 - 1))
    info = torch.finfo(dtype)
    extremes = [0.0, -0.0, info.tiny, -info.tiny / 8, info.smallest_normal / 2, 1.0, info.max / 64]
    found = (plain * scale).clamp(-info.max / 64, info.max / 64)
    found[: len(extremes)] = torch.tensor(extremes, dtype=torch.float64)
    return found.to(dtype)


def operand(tensor: torch.Tensor, format: str, weight: float) -> Operand:
    return Operand(memoryview(bytearray(raw_bytes(tensor))), format, weight)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.uint8)


@needs_kernel
@settings(max_examples=40)
@given(
    formats=st.lists(st.sampled_from(FORMATS), min_size=1, max_size=5),
    to=st.sampled_from(FORMATS),
    weights=st.lists(st.floats(-2, 2, width=64), min_size=5, max_size=5),
    seed=st.integers(0, 10**6),
    spread=st.sampled_from([0.0, 2.0, 6.0]),
)
def test_all_ways_give_the_same_bytes(
    formats: list[str], to: str, weights: list[float], seed: int, spread: float
) -> None:
    operands = [
        operand(values(format, seed + number, spread), format, weight)
        for number, (format, weight) in enumerate(zip(formats, weights, strict=False))
    ]
    results = []
    for way in ways():
        out = memoryview(bytearray(COUNT * DTYPES[to].itemsize))
        fault = way.blend(operands, COUNT, to, out)
        squares = [way.square(operands[0], less, COUNT) for less in (None, *operands[1:])]
        results.append((bytes(out), fault, repr(squares)))
    assert results[0] == results[1] == results[2]


@needs_kernel
@pytest.mark.parametrize("format", ["F16", "BF16"])
def test_every_value_is_rounded_once(format: str) -> None:
    """Against numpy and exact fractions: halves of the last place, and what is next to them, included."""
    dtype = DTYPES[format]
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(dtype)
    steps = every[torch.isfinite(every.float()) & (every.float() >= 0)].double().sort().values
    if format == "BF16":
        steps = steps[steps >= 2.0**-120]  # below, float itself loses digits on the way
    middles = (steps[:-1] + steps[1:]) / 2
    exact = torch.cat([middles, torch.nextafter(middles, steps[1:]), torch.nextafter(middles, steps[:-1])])
    even = (bits(steps[:-1].to(dtype)).view(-1, 2)[:, 0] & 1) == 0
    expected = torch.cat([torch.where(even, steps[:-1], steps[1:]), steps[1:], steps[:-1]])
    for way in ways():
        out = torch.zeros(len(exact), dtype=dtype)
        way.blend([operand(exact, "F64", 1.0)], len(exact), format, raw_bytes(out))
        assert torch.equal(out.double(), expected)


@needs_kernel
@pytest.mark.parametrize("to", ["F16", "BF16", "F32"])
def test_a_sum_of_three_is_the_nearest_value(to: str) -> None:
    """Half an ulp from numpy's float128 at most, whatever cancels out."""
    weights, tensors = (0.7, -1.3, 0.6), [values("F32", seed, 1.0) for seed in (1, 2, 3)]
    rows = zip(weights, tensors, strict=True)
    exact = sum(np.longdouble(weight) * tensor.numpy().astype(np.longdouble) for weight, tensor in rows)
    operands = [operand(tensor, "F32", weight) for weight, tensor in zip(weights, tensors, strict=True)]
    for way in ways():
        out = torch.zeros(COUNT, dtype=DTYPES[to])
        way.blend(operands, COUNT, to, raw_bytes(out))
        error = np.abs(out.double().numpy() - exact)
        for end in (-math.inf, math.inf):
            neighbour = torch.nextafter(out, out.new_tensor(end)).double().numpy()
            assert (error <= np.abs(neighbour - exact) * (1 + 1e-6)).all()


@needs_kernel
def test_what_is_not_finite_is_told_by_its_model() -> None:
    good, bad = values("F16", 1, 0.0), values("F16", 2, 0.0)
    bad[2100] = math.inf
    large = torch.full((COUNT,), 40000.0, dtype=torch.float16)
    for way in ways():
        out = memoryview(bytearray(COUNT * 2))
        assert way.blend([operand(good, "F16", 1.0), operand(bad, "F16", 0.5)], COUNT, "F16", out) == 2
        assert way.blend([operand(large, "F16", 1.0)] * 2, COUNT, "F16", out) == -1
        assert not way.is_finite(operand(bad, "F16", 1.0), COUNT)
        assert way.is_finite(operand(good, "F16", 1.0), COUNT)


@needs_kernel
@given(
    format=st.sampled_from(FORMATS),
    size=st.integers(1, 70),
    count=st.integers(0, 70),
    place=st.integers(0, 69),
    broken=st.sampled_from([math.nan, math.inf, -math.inf]),
)
def test_what_is_not_finite_is_found_wherever_it_is(
    format: str, size: int, count: int, place: int, broken: float
) -> None:
    """What stands behind the values that are asked about counts for nothing."""
    count, dtype = min(count, size), DTYPES[format]
    tensor = torch.full((size,), torch.finfo(dtype).max, dtype=dtype)
    tensor[place % size] = broken
    for way in ways():
        assert way.is_finite(operand(tensor, format, 1.0), count) == (place % size >= count)


@pytest.mark.parametrize("format", ["F8_E4M3", "F8_E5M2"])
def test_eight_bit_floats_are_as_torch_has_them(format: str) -> None:
    """Every code; and what numbers next to values, half-way between two and too large become."""
    assert arithmetic([format, "F16"]) is PORTABLE
    dtype, codes = DTYPES[format], torch.arange(256, dtype=torch.int16).to(torch.uint8)
    wide = torch.zeros(256)
    PORTABLE.blend([operand(codes.view(dtype), format, 1.0)], 256, "F32", raw_bytes(wide))
    assert np.array_equal(wide.numpy(), codes.view(dtype).float().numpy(), equal_nan=True)
    steps = wide[torch.isfinite(wide)].sort().values
    middles = (steps[1:] + steps[:-1]) / 2
    near = [torch.nextafter(middles, middles.new_tensor(end)) for end in (-math.inf, math.inf)]
    given = torch.cat([steps, middles, *near, wide * 3, torch.tensor([0.0, -0.0, math.nan])])
    narrow = torch.zeros(len(given), dtype=torch.uint8)
    PORTABLE.blend([operand(given, "F32", 1.0)], len(given), format, raw_bytes(narrow))
    wanted = given.to(dtype).view(torch.uint8)
    number = torch.isfinite(given)
    assert torch.equal(narrow[number], wanted[number])
    assert not torch.isfinite(narrow.view(dtype).float()[torch.isnan(given)]).any()
