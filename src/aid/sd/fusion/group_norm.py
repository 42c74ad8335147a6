"""Group norm and SiLU in one, on a GPU, for pictures whose channels lie last.

Three passes over the picture forward, five backward; torch's own kernels want the channels first, and in
mixed precision numbers of twice the size. Sums are made in an order that never varies.
Source: Wu and He 2018, Group Normalization; variances of parts joined as Chan et al. 1979 do.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from aid.sd.fusion.rows import computed_in, dense_pixels

ROWS, CHANNELS = 64, 64  # of a tile


@triton.jit
def _place(area, channels, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """A program's picture, its channels and which of them there are, and where its tile lies and is."""
    picture = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    mine = channel < channels
    at = picture * area * channels + row[:, None] * channels + channel[None, :]
    return picture, channel, mine, at, (row < area)[:, None] & mine[None, :]


@triton.jit
def _moments(x, means, squares, area, channels, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """Of each channel in each part of a picture: the mean, and the sum of squares about it."""
    part, parts = tl.program_id(0), tl.num_programs(0)
    picture, channel, mine, at, inside = _place(area, channels, ROWS, CHANNELS)
    value = tl.load(x + at, inside, 0.0).to(tl.float32)
    count = tl.minimum(area - part * ROWS, ROWS)
    mean = tl.sum(value, 0) / count
    off = tl.where(inside, value - mean[None, :], 0.0)
    out = (picture * parts + part) * channels + channel
    tl.store(means + out, mean, mine)
    tl.store(squares + out, tl.sum(off * off, 0), mine)


@triton.jit(do_not_specialize=["width", "parts"])
def _join(
    means, squares, shift, centre, mean_out, rstd_out, area, channels, width, parts, eps,
    SHIFTED: tl.constexpr, ROWS: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Of each group of a picture: mean and 1 / standard deviation, from those of its channels' parts."""
    group, picture = tl.program_id(0), tl.program_id(1).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    channel = group * width + lane
    mine = lane < width
    moved = tl.zeros((BLOCK,), tl.float32)
    if SHIFTED:
        moved = tl.load(shift + picture * channels + channel, mine, 0.0).to(tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, parts, PARTS):
        part = first + tl.arange(0, PARTS)
        inside = (part < parts)[:, None] & mine[None, :]
        count = tl.maximum(tl.minimum(area - part * ROWS, ROWS), 0)[:, None]
        at = (picture * parts + part)[:, None] * channels + channel[None, :]
        total += tl.sum(tl.load(means + at, inside, 0.0) * count, 0)
    own = total / area
    tl.store(centre + picture * channels + channel, own, mine)
    mean = tl.sum(tl.where(mine, own + moved, 0.0), 0) / width
    spread = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, parts, PARTS):
        part = first + tl.arange(0, PARTS)
        inside = (part < parts)[:, None] & mine[None, :]
        count = tl.maximum(tl.minimum(area - part * ROWS, ROWS), 0)[:, None]
        at = (picture * parts + part)[:, None] * channels + channel[None, :]
        off = tl.where(inside, tl.load(means + at, inside, 0.0) + moved[None, :] - mean, 0.0)
        spread += tl.sum(tl.load(squares + at, inside, 0.0) + off * off * count, 0)
    variance = tl.sum(spread, 0) / (area * width)
    out = picture * tl.num_programs(0) + group
    tl.store(mean_out + out, mean)
    tl.store(rstd_out + out, 1 / tl.sqrt(variance + eps))


@triton.jit
def _normed(x, shift, mean, rstd, picture, channel, inside, at, channels, width, SHIFTED: tl.constexpr):
    """A tile as it is normalised, and the 1 / standard deviation of each of its channels."""
    mine, group = channel < channels, (picture * channels + channel) // width
    value = tl.load(x + at, inside, 0.0).to(tl.float32)
    centre = tl.load(mean + group, mine, 0.0)
    if SHIFTED:
        centre -= tl.load(shift + picture * channels + channel, mine, 0.0).to(tl.float32)
    scale = tl.load(rstd + group, mine, 0.0)
    return (value - centre[None, :]) * scale[None, :], scale


@triton.jit(do_not_specialize=["width"])
def _apply(
    x, shift, mean, rstd, weight, bias, out, area, channels, width,
    SHIFTED: tl.constexpr, SILU: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    picture, channel, mine, at, inside = _place(area, channels, ROWS, CHANNELS)
    normed, _ = _normed(x, shift, mean, rstd, picture, channel, inside, at, channels, width, SHIFTED)
    made = (
        normed * tl.load(weight + channel, mine, 0.0)[None, :] + tl.load(bias + channel, mine, 0.0)[None, :]
    )
    if SILU:
        made *= tl.sigmoid(made)
    tl.store(out + at, made.to(out.dtype.element_ty), inside)


@triton.jit
def _before_silu(grad, at, inside, normed, weight, bias, channel, mine, SILU: tl.constexpr):
    """The gradient that comes to a tile's norm."""
    given = tl.load(grad + at, inside, 0.0).to(tl.float32)
    if SILU:
        made = (
            normed * tl.load(weight + channel, mine, 0.0)[None, :]
            + tl.load(bias + channel, mine, 0.0)[None, :]
        )
        gate = tl.sigmoid(made)
        given *= gate * (1 + made * (1 - gate))
    return given


@triton.jit(do_not_specialize=["width"])
def _sums_back(
    x, shift, mean, rstd, weight, bias, grad, sums, products, area, channels, width,
    SHIFTED: tl.constexpr, SILU: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Of each channel in each part of a picture: the gradient's sum, and that of its product with the
    norm."""
    part, parts = tl.program_id(0), tl.num_programs(0)
    picture, channel, mine, at, inside = _place(area, channels, ROWS, CHANNELS)
    normed, _ = _normed(x, shift, mean, rstd, picture, channel, inside, at, channels, width, SHIFTED)
    given = _before_silu(grad, at, inside, normed, weight, bias, channel, mine, SILU)
    out = (picture * parts + part) * channels + channel
    tl.store(sums + out, tl.sum(given, 0), mine)
    tl.store(products + out, tl.sum(given * normed, 0), mine)


@triton.jit(do_not_specialize=["width", "parts"])
def _join_back(
    sums, products, weight, shift, centre, mean, rstd, sum_out, product_out, shift_out, group_sum,
    group_product, channels, width, parts,
    SHIFTED: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Of each group of a picture: the same sums, of its channels and, weighted, of the whole; and the shift's
    gradient."""
    group, picture = tl.program_id(0), tl.program_id(1).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    channel = group * width + lane
    mine = lane < width
    total, product = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for first in range(0, parts, PARTS):
        part = first + tl.arange(0, PARTS)
        inside = (part < parts)[:, None] & mine[None, :]
        at = (picture * parts + part)[:, None] * channels + channel[None, :]
        total += tl.sum(tl.load(sums + at, inside, 0.0), 0)
        product += tl.sum(tl.load(products + at, inside, 0.0), 0)
    own = picture * channels + channel
    tl.store(sum_out + own, total, mine)
    tl.store(product_out + own, product, mine)
    scale = tl.load(weight + channel, mine, 0.0)
    whole, whole_product = tl.sum(total * scale, 0), tl.sum(product * scale, 0)
    out = picture * tl.num_programs(0) + group
    tl.store(group_sum + out, whole)
    tl.store(group_product + out, whole_product)
    if SHIFTED:
        deviation = tl.load(rstd + out)
        moved = tl.load(centre + own, mine, 0.0) + tl.load(shift + own, mine, 0.0).to(tl.float32)
        normed = (moved - tl.load(mean + out)) * deviation  # the channel's mean of it
        back = deviation * (scale * total - (whole + normed * whole_product) / width)
        tl.store(shift_out + own, back.to(shift_out.dtype.element_ty), mine)


@triton.jit(do_not_specialize=["width"])
def _back(
    x, shift, mean, rstd, weight, bias, grad, group_sum, group_product, out, area, channels, width,
    SHIFTED: tl.constexpr, SILU: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    picture, channel, mine, at, inside = _place(area, channels, ROWS, CHANNELS)
    normed, scale = _normed(x, shift, mean, rstd, picture, channel, inside, at, channels, width, SHIFTED)
    given = _before_silu(grad, at, inside, normed, weight, bias, channel, mine, SILU)
    given *= tl.load(weight + channel, mine, 0.0)[None, :]
    group, count = (picture * channels + channel) // width, area * width
    whole = tl.load(group_sum + group, mine, 0.0) / count
    product = tl.load(group_product + group, mine, 0.0) / count
    back = scale[None, :] * (given - whole[None, :] - normed * product[None, :])
    tl.store(out + at, back.to(out.dtype.element_ty), inside)


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any, x: Tensor, weight: Tensor, bias: Tensor, shift: Tensor | None, groups: int, eps: float,
        silu: bool, dtype: torch.dtype,
    ) -> Tensor:  # fmt: skip
        x = dense_pixels(x)
        count, channels, *edges = x.shape
        area = math.prod(edges)
        parts = triton.cdiv(area, ROWS)
        width, words = channels // groups, {"SHIFTED": shift is not None, "ROWS": ROWS}
        means, squares = x.new_empty((2, count, parts, channels), dtype=torch.float32)
        centre = x.new_empty((count, channels), dtype=torch.float32)
        mean, rstd = x.new_empty((2, count, groups), dtype=torch.float32)
        grid = parts, count, triton.cdiv(channels, CHANNELS)
        _moments[grid](x, means, squares, area, channels, ROWS=ROWS, CHANNELS=CHANNELS)
        joined = {"PARTS": 32, "BLOCK": triton.next_power_of_2(width)}
        _join[groups, count](
            means, squares, shift, centre, mean, rstd, area, channels, width, parts, eps, **words, **joined
        )
        out = torch.empty_like(x, dtype=dtype)
        words |= {"SILU": silu, "CHANNELS": CHANNELS}
        _apply[grid](x, shift, mean, rstd, weight, bias, out, area, channels, width, **words)
        context.save_for_backward(x, shift, centre, mean, rstd, weight, bias)
        context.grid, context.groups, context.words, context.joined = grid, groups, words, joined
        return out

    @staticmethod
    @once_differentiable
    def backward(context: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, shift, centre, mean, rstd, weight, bias = context.saved_tensors
        grad = dense_pixels(grad)
        (count, channels, *edges), parts, words = x.shape, context.grid[0], context.words
        area, width = math.prod(edges), channels // context.groups
        sums, products = x.new_empty((2, count, parts, channels), dtype=torch.float32)
        of_channels = product, total = x.new_empty((2, count, channels), dtype=torch.float32)
        group_sum, group_product = torch.empty_like(mean), torch.empty_like(mean)
        shift_back = None if shift is None else torch.empty_like(shift)
        sides = x, shift, mean, rstd, weight, bias, grad
        _sums_back[context.grid](*sides, sums, products, area, channels, width, **words)
        _join_back[context.groups, count](
            sums, products, weight, shift, centre, mean, rstd, total, product, shift_back, group_sum,
            group_product, channels, width, parts, SHIFTED=words["SHIFTED"], **context.joined,
        )  # fmt: skip
        back = torch.empty_like(x)
        _back[context.grid](*sides, group_sum, group_product, back, area, channels, width, **words)
        return back, *of_channels.sum(1), shift_back, None, None, None, None


def group_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    shift: Tensor | None = None,
    silu: bool = False,
) -> Tensor:
    """Group norm of x + `shift`, then SiLU if wanted; x is [n, c, h, w], `shift` [n, c], the weights [c] in
    float32. The result lies with the channels last, in autocast's type where that is at work."""
    made: Tensor = _GroupNorm.apply(x, weight, bias, shift, groups, eps, silu, computed_in(x))
    return made
