"""Rows of numbers, on a GPU: layer norm, the gated GELU, sums with a bias, and those
of columns, each in one pass.

Sums are made in an order that never varies.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

TILE, WIDEST = 4096, 256  # numbers of a tile, and of a gate's row in it at most
PROGRAMS = 2048  # about as many as a GPU runs at once; each sums its tiles


@triton.jit
def _layer_norm(
    x, weight, bias, out, means, rstds, rows, width, eps, ROWS: tl.constexpr, WIDTH: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    mine, there = column < width, row < rows
    inside = there[:, None] & mine[None, :]
    at = row[:, None] * width + column[None, :]
    value = tl.load(x + at, inside, 0.0).to(tl.float32)
    mean = tl.sum(value, 1) / width
    off = tl.where(inside, value - mean[:, None], 0.0)
    rstd = 1 / tl.sqrt(tl.sum(off * off, 1) / width + eps)
    made = off * rstd[:, None] * tl.load(weight + column, mine, 0.0)[None, :]
    made += tl.load(bias + column, mine, 0.0)[None, :]
    tl.store(out + at, made.to(out.dtype.element_ty), inside)
    tl.store(means + row, mean, there)
    tl.store(rstds + row, rstd, there)


@triton.jit(do_not_specialize=["tiles"])
def _layer_norm_back(
    x, weight, means, rstds, grad, out, products, sums, rows, width, tiles,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    column = tl.arange(0, WIDTH)
    mine = column < width
    scale = tl.load(weight + column, mine, 0.0)
    product, total = tl.zeros((ROWS, WIDTH), tl.float32), tl.zeros((ROWS, WIDTH), tl.float32)
    for tile in range(tiles):
        row = (program.to(tl.int64) * tiles + tile) * ROWS + tl.arange(0, ROWS)
        there = row < rows
        inside = there[:, None] & mine[None, :]
        at = row[:, None] * width + column[None, :]
        rstd = tl.load(rstds + row, there, 0.0)
        value = tl.load(x + at, inside, 0.0).to(tl.float32)
        normed = tl.where(inside, (value - tl.load(means + row, there, 0.0)[:, None]) * rstd[:, None], 0.0)
        given = tl.load(grad + at, inside, 0.0).to(tl.float32)
        product += given * normed
        total += given
        given *= scale[None, :]
        along, even = tl.sum(given * normed, 1) / width, tl.sum(given, 1) / width
        back = rstd[:, None] * (given - even[:, None] - normed * along[:, None])
        tl.store(out + at, back.to(out.dtype.element_ty), inside)
    tl.store(products + program * width + column, tl.sum(product, 0), mine)
    tl.store(sums + program * width + column, tl.sum(total, 0), mine)


@triton.jit
def _gelu(x):
    """x Φ(x), and its slope Φ(x) + x φ(x)."""
    below = 0.5 * (1 + tl.erf(x * 0.7071067811865476))
    return x * below, below + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)


@triton.jit
def _gate(both, out, rows, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    at, there = both + row * 2 * width + column, row < rows
    value = tl.load(at, there, 0.0).to(tl.float32)
    gelu, _ = _gelu(tl.load(at + width, there, 0.0).to(tl.float32))
    tl.store(out + row * width + column, (value * gelu).to(out.dtype.element_ty), there)


@triton.jit
def _gate_back(both, grad, out, rows, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    at, there = row * 2 * width + column, row < rows
    value = tl.load(both + at, there, 0.0).to(tl.float32)
    gelu, slope = _gelu(tl.load(both + at + width, there, 0.0).to(tl.float32))
    given = tl.load(grad + row * width + column, there, 0.0).to(tl.float32)
    tl.store(out + at, (given * gelu).to(out.dtype.element_ty), there)
    tl.store(out + at + width, (given * value * slope).to(out.dtype.element_ty), there)


@triton.jit
def _plus(x, y, bias, out, count, width, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    value = tl.load(x + at, inside, 0.0).to(tl.float32) + tl.load(y + at, inside, 0.0).to(tl.float32)
    value += tl.load(bias + at % width, inside, 0.0).to(tl.float32)
    tl.store(out + at, value.to(out.dtype.element_ty), inside)


@triton.jit(do_not_specialize=["tiles"])
def _column_sums(x, sums, rows, width, tiles, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    program = tl.program_id(0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mine = column < width
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for tile in range(tiles):
        row = (program.to(tl.int64) * tiles + tile) * ROWS + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & mine[None, :]
        total += tl.load(x + row[:, None] * width + column[None, :], inside, 0.0).to(tl.float32)
    tl.store(sums + program * width + column, tl.sum(total, 0), mine)


@triton.jit
def _copy(x, out, rows, width, pitch, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside = (row < rows) & (column < width)
    tl.store(out + row * width + column, tl.load(x + row * pitch + column, inside, 0.0), inside)


def dense(x: Tensor) -> Tensor:
    """x, [..., width], with its rows behind one another, quicker than torch if they lie evenly apart: so do
    the gradients of what was joined with other channels."""
    if x.is_contiguous():
        return x
    strides, shape = x.stride(), x.shape
    apart = range(x.dim() - 2)
    if strides[-1] != 1 or any(strides[i] != strides[i + 1] * shape[i + 1] for i in apart):
        return x.contiguous()
    out = x.new_empty(shape)
    rows, width = x.numel() // shape[-1], shape[-1]
    _copy[triton.cdiv(rows, 64), triton.cdiv(width, 64)](
        x, out, rows, width, strides[-2], ROWS=64, COLUMNS=64
    )
    return out


def dense_pixels(x: Tensor) -> Tensor:
    """The same for pictures, [n, c, h, w], whose channels are to lie last."""
    return dense(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def column_sums(x: Tensor) -> Tensor:
    """[rows, width] -> [width] in float32."""
    rows, width = x.shape
    blocks = triton.cdiv(width, 64)
    tiles = triton.cdiv(triton.cdiv(rows, 64) * blocks, PROGRAMS)
    programs = triton.cdiv(rows, 64 * tiles)
    sums = x.new_empty((programs, width), dtype=torch.float32)
    _column_sums[programs, blocks](x, sums, rows, width, tiles, ROWS=64, COLUMNS=64)
    return sums.sum(0)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
        context.kinds, context.shape = (x.dtype, weight.dtype), x.shape
        x, weight = x.to(dtype), weight.to(dtype)
        context.save_for_backward(x if context.needs_input_grad[1] else None, weight)
        return F.linear(x, weight, bias.to(dtype))

    @staticmethod
    @once_differentiable
    def backward(context: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = context.saved_tensors
        of_x, of_weight, of_bias, _ = context.needs_input_grad
        rows, (kind, own) = dense(grad).flatten(0, -2), context.kinds
        back = (rows @ weight).view(context.shape).to(kind) if of_x else None
        learnt = (rows.t() @ x.flatten(0, -2)).to(own) if of_weight else None
        return back, learnt, column_sums(rows) if of_bias else None, None


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
    ) -> Tensor:
        x = x.contiguous()
        width = x.shape[-1]
        rows, block = x.numel() // width, triton.next_power_of_2(width)
        out = torch.empty_like(x, dtype=dtype)
        means, rstds = x.new_empty((2, rows), dtype=torch.float32)
        words = {"ROWS": max(1, TILE // block), "WIDTH": block}
        _layer_norm[(triton.cdiv(rows, words["ROWS"]),)](
            x, weight, bias, out, means, rstds, rows, width, eps, **words
        )
        context.save_for_backward(x, weight, means, rstds)
        context.words = words
        return out

    @staticmethod
    @once_differentiable
    def backward(context: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, means, rstds = context.saved_tensors
        grad, width = grad.contiguous(), x.shape[-1]
        rows, step = x.numel() // width, context.words["ROWS"]
        tiles = triton.cdiv(triton.cdiv(rows, step), PROGRAMS)
        programs = triton.cdiv(rows, step * tiles)
        sums, out = x.new_empty((2, programs, width), dtype=torch.float32), torch.empty_like(x)
        _layer_norm_back[(programs,)](
            x, weight, means, rstds, grad, out, *sums, rows, width, tiles, num_warps=8, **context.words
        )
        return out, *sums.sum(1), None, None


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, both: Tensor) -> Tensor:
        both = both.contiguous()
        rows, width = both.numel() // both.shape[-1], both.shape[-1] // 2
        out = both.new_empty((*both.shape[:-1], width))
        columns = min(width & -width, WIDEST)  # a power of two that goes into it
        context.grid = triton.cdiv(rows, TILE // columns), width // columns
        context.words = {"ROWS": TILE // columns, "COLUMNS": columns}
        _gate[context.grid](both, out, rows, width, **context.words)
        context.save_for_backward(both)
        return out

    @staticmethod
    @once_differentiable
    def backward(context: Any, grad: Tensor) -> Tensor:
        (both,) = context.saved_tensors
        rows, out = both.numel() // both.shape[-1], torch.empty_like(both)
        _gate_back[context.grid](both, grad.contiguous(), out, rows, both.shape[-1] // 2, **context.words)
        return out


class _Plus(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, y: Tensor, bias: Tensor) -> Tensor:
        x, y = dense_pixels(x), dense_pixels(y)
        out = torch.empty_like(y)
        _plus[(triton.cdiv(x.numel(), TILE),)](x, y, bias, out, x.numel(), len(bias), BLOCK=TILE)
        context.kind = x.dtype
        return out

    @staticmethod
    @once_differentiable
    def backward(context: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad, learns = dense_pixels(grad), context.needs_input_grad[2]
        bias = column_sums(grad.permute(0, 2, 3, 1).flatten(0, 2)) if learns else None
        return grad.to(context.kind), grad, bias


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x W^T + bias, [..., width] and [n, width] -> [..., n], in autocast's type where that is at work."""
    made: Tensor = _Linear.apply(x, weight, bias, computed_in(x))
    return made


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """[..., width], the weights in float32; the result in autocast's type where that is at work."""
    made: Tensor = _LayerNorm.apply(x, weight, bias, eps, computed_in(x))
    return made


def gate(both: Tensor) -> Tensor:
    """x gelu(y) (Shazeer 2020, GLU variants) of x and y beside each other, [..., 2 width] -> [..., width]."""
    made: Tensor = _Gate.apply(both)
    return made


def plus(x: Tensor, y: Tensor, bias: Tensor) -> Tensor:
    """x + y + bias of each channel, [n, c, h, w] and [c] in float32, of y's type."""
    made: Tensor = _Plus.apply(x, y, bias)
    return made


def computed_in(x: Tensor) -> torch.dtype:
    """The type of what is made of x: autocast's where that is at work."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
