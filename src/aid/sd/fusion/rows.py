"""Rows of numbers, on a GPU: layer norm, the gated GELU, and a sum with a bias, each in one pass.

Sums are made in an order that never varies.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

TILE, WIDEST = 4096, 1024  # numbers of a tile, and of its rows at most
SUMMED = 64  # tiles that one program sums; few enough that all of a GPU is at work


@triton.jit
def _layer_norm(x, weight, bias, out, means, rstds, rows, width, eps, ROWS: tl.constexpr, WIDTH: tl.constexpr):
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


@triton.jit
def _layer_norm_back(
    x, weight, means, rstds, grad, out, products, sums, rows, width, tiles,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    column = tl.arange(0, WIDTH)
    mine = column < width
    scale = tl.load(weight + column, mine, 0.0)
    product, total = tl.zeros((WIDTH,), tl.float32), tl.zeros((WIDTH,), tl.float32)
    for tile in range(tiles):
        row = (program.to(tl.int64) * tiles + tile) * ROWS + tl.arange(0, ROWS)
        there = row < rows
        inside = there[:, None] & mine[None, :]
        at = row[:, None] * width + column[None, :]
        rstd = tl.load(rstds + row, there, 0.0)
        value = tl.load(x + at, inside, 0.0).to(tl.float32)
        normed = tl.where(inside, (value - tl.load(means + row, there, 0.0)[:, None]) * rstd[:, None], 0.0)
        given = tl.load(grad + at, inside, 0.0).to(tl.float32)
        product += tl.sum(given * normed, 0)
        total += tl.sum(given, 0)
        given *= scale[None, :]
        along, even = tl.sum(given * normed, 1) / width, tl.sum(given, 1) / width
        back = rstd[:, None] * (given - even[:, None] - normed * along[:, None])
        tl.store(out + at, back.to(out.dtype.element_ty), inside)
    tl.store(products + program * width + column, product, mine)
    tl.store(sums + program * width + column, total, mine)


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


@triton.jit
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


def column_sums(x: Tensor) -> Tensor:
    """[rows, width] -> [width] in float32."""
    rows, width = x.shape
    tiles = triton.cdiv(triton.cdiv(rows, 64), SUMMED)
    programs = triton.cdiv(rows, 64 * tiles)
    sums = x.new_empty((programs, width), dtype=torch.float32)
    _column_sums[programs, triton.cdiv(width, 64)](x, sums, rows, width, tiles, ROWS=64, COLUMNS=64)
    return sums.sum(0)


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
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
        tiles = triton.cdiv(triton.cdiv(rows, step), 8 * SUMMED)
        programs = triton.cdiv(rows, step * tiles)
        products, sums = x.new_empty((2, programs, width), dtype=torch.float32)
        out = torch.empty_like(x)
        _layer_norm_back[(programs,)](
            x, weight, means, rstds, grad, out, products, sums, rows, width, tiles, **context.words
        )
        return out, products.sum(0), sums.sum(0), None, None


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
        x, y = (side.contiguous(memory_format=torch.channels_last) for side in (x, y))
        out = torch.empty_like(y)
        _plus[(triton.cdiv(x.numel(), TILE),)](x, y, bias, out, x.numel(), len(bias), BLOCK=TILE)
        context.kind = x.dtype
        return out

    @staticmethod
    @once_differentiable
    def backward(context: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad = grad.contiguous(memory_format=torch.channels_last)
        learns = context.needs_input_grad[2]
        bias = column_sums(grad.permute(0, 2, 3, 1).flatten(0, 2)) if learns else None
        return grad.to(context.kind), grad, bias


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """[..., width], the weights in float32; the result in autocast's type where that is at work."""
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    made: Tensor = _LayerNorm.apply(x, weight, bias, eps, dtype)  # type: ignore[no-untyped-call]
    return made


def gate(both: Tensor) -> Tensor:
    """x gelu(y) (Shazeer 2020, GLU variants) of x and y beside each other, [..., 2 width] -> [..., width]."""
    made: Tensor = _Gate.apply(both)  # type: ignore[no-untyped-call]
    return made


def plus(x: Tensor, y: Tensor, bias: Tensor) -> Tensor:
    """x + y + bias of each channel, [n, c, h, w] and [c] in float32, of y's type."""
    made: Tensor = _Plus.apply(x, y, bias)  # type: ignore[no-untyped-call]
    return made
