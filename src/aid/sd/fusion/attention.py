"""Attention on a GPU whose gradients don't vary from run to run: one program sums each, in order.

torch's quick kernels add to the queries' gradient as they come. Scores are computed again for the backward
pass and never kept. Source: Dao 2023, FlashAttention-2.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

WIDEST = 64  # of a head; wider ones are torch's
FORWARD = {"QUERIES": 128, "KEYS": 64, "num_warps": 8, "num_stages": 3}
BACK_TO_KEYS = {"QUERIES": 32, "KEYS": 128, "num_warps": 4, "num_stages": 4}
BACK_TO_QUERIES = {"QUERIES": 128, "KEYS": 64, "num_warps": 8, "num_stages": 3}
LOG2_E = 1.4426950408889634


@triton.jit
def _tile(x, first, rows, width, ROWS: tl.constexpr, HEAD: tl.constexpr, WIDE: tl.constexpr):
    """Some rows of one head, with zeros where there is nothing."""
    row, lane = first + tl.arange(0, ROWS), tl.arange(0, WIDE)
    return tl.load(
        x + row[:, None] * width + lane[None, :], (row < rows)[:, None] & (lane < HEAD)[None, :], 0.0
    )


@triton.jit
def _keep(x, value, first, rows, width, ROWS: tl.constexpr, HEAD: tl.constexpr, WIDE: tl.constexpr):
    row, lane = first + tl.arange(0, ROWS), tl.arange(0, WIDE)
    inside = (row < rows)[:, None] & (lane < HEAD)[None, :]
    tl.store(x + row[:, None] * width + lane[None, :], value.to(x.dtype.element_ty), inside)


@triton.jit
def _start(tokens, width, heads, HEAD: tl.constexpr):
    """Where a picture's head begins, of a program for each."""
    one = tl.program_id(1).to(tl.int64)
    return one // heads * tokens * width + one % heads * HEAD


@triton.jit
def _attend(
    q, k, v, out, ends, queries, keys, width, heads, scale,
    HEAD: tl.constexpr, WIDE: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * QUERIES
    here, there = _start(queries, width, heads, HEAD), _start(keys, width, heads, HEAD)
    query = _tile(q + here, first, queries, width, QUERIES, HEAD, WIDE)
    most = tl.full((QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    made = tl.zeros((QUERIES, WIDE), tl.float32)
    for start in range(0, keys, KEYS):
        key = _tile(k + there, start, keys, width, KEYS, HEAD, WIDE)
        score = tl.dot(query, tl.trans(key)) * scale
        score = tl.where((start + tl.arange(0, KEYS) < keys)[None, :], score, float("-inf"))
        new = tl.maximum(most, tl.max(score, 1))
        share, fade = tl.exp2(score - new[:, None]), tl.exp2(most - new)
        value = _tile(v + there, start, keys, width, KEYS, HEAD, WIDE)
        made = tl.dot(share.to(value.dtype), value, made * fade[:, None])
        total = total * fade + tl.sum(share, 1)
        most = new
    _keep(out + here, made / total[:, None], first, queries, width, QUERIES, HEAD, WIDE)
    row = first + tl.arange(0, QUERIES)
    tl.store(ends + tl.program_id(1) * queries + row, most + tl.log2(total), row < queries)


@triton.jit
def _even(
    out, grad, even, queries, width, heads,
    HEAD: tl.constexpr, WIDE: tl.constexpr, QUERIES: tl.constexpr,
):  # fmt: skip
    """What a softmax's gradient is lowered by, of each query."""
    first, here = tl.program_id(0) * QUERIES, _start(queries, width, heads, HEAD)
    made = _tile(out + here, first, queries, width, QUERIES, HEAD, WIDE).to(tl.float32)
    given = _tile(grad + here, first, queries, width, QUERIES, HEAD, WIDE).to(tl.float32)
    row = first + tl.arange(0, QUERIES)
    tl.store(even + tl.program_id(1) * queries + row, tl.sum(made * given, 1), row < queries)


@triton.jit
def _back_to_keys(
    q, k, v, grad, ends, even, dk, dv, queries, keys, width, heads, scale, slope,
    HEAD: tl.constexpr, WIDE: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * KEYS
    here, there = _start(queries, width, heads, HEAD), _start(keys, width, heads, HEAD)
    key = _tile(k + there, first, keys, width, KEYS, HEAD, WIDE)
    value = _tile(v + there, first, keys, width, KEYS, HEAD, WIDE)
    to_key, to_value = tl.zeros((KEYS, WIDE), tl.float32), tl.zeros((KEYS, WIDE), tl.float32)
    at = tl.program_id(1) * queries
    for start in range(0, queries, QUERIES):
        row = start + tl.arange(0, QUERIES)
        query = _tile(q + here, start, queries, width, QUERIES, HEAD, WIDE)
        given = _tile(grad + here, start, queries, width, QUERIES, HEAD, WIDE)
        end = tl.load(ends + at + row, row < queries, float("inf"))
        share = tl.exp2(tl.dot(key, tl.trans(query)) * scale - end[None, :])
        to_value = tl.dot(share.to(given.dtype), given, to_value)
        lower = tl.load(even + at + row, row < queries, 0.0)
        back = share * (tl.dot(value, tl.trans(given)) - lower[None, :])
        to_key = tl.dot(back.to(query.dtype), query, to_key)
    _keep(dv + there, to_value, first, keys, width, KEYS, HEAD, WIDE)
    _keep(dk + there, to_key * slope, first, keys, width, KEYS, HEAD, WIDE)


@triton.jit
def _back_to_queries(
    q, k, v, grad, ends, even, dq, queries, keys, width, heads, scale, slope,
    HEAD: tl.constexpr, WIDE: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * QUERIES
    here, there = _start(queries, width, heads, HEAD), _start(keys, width, heads, HEAD)
    query = _tile(q + here, first, queries, width, QUERIES, HEAD, WIDE)
    given = _tile(grad + here, first, queries, width, QUERIES, HEAD, WIDE)
    row = first + tl.arange(0, QUERIES)
    at = tl.program_id(1) * queries + row
    end, lower = tl.load(ends + at, row < queries, float("inf")), tl.load(even + at, row < queries, 0.0)
    to_query = tl.zeros((QUERIES, WIDE), tl.float32)
    for start in range(0, keys, KEYS):
        key = _tile(k + there, start, keys, width, KEYS, HEAD, WIDE)
        value = _tile(v + there, start, keys, width, KEYS, HEAD, WIDE)
        share = tl.exp2(tl.dot(query, tl.trans(key)) * scale - end[:, None])
        share = tl.where((start + tl.arange(0, KEYS) < keys)[None, :], share, 0.0)
        back = share * (tl.dot(given, tl.trans(value)) - lower[:, None])
        to_query = tl.dot(back.to(key.dtype), key, to_query)
    _keep(dq + here, to_query * slope, first, queries, width, QUERIES, HEAD, WIDE)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
        query, key, value = (side.contiguous() for side in (query, key, value))
        (pictures, queries, width), keys = query.shape, key.shape[1]
        head = width // heads
        context.slope = head**-0.5
        context.sizes = queries, keys, width, heads, context.slope * LOG2_E
        context.words = {"HEAD": head, "WIDE": max(16, triton.next_power_of_2(head))}
        out, ends = torch.empty_like(query), query.new_empty((pictures, heads, queries), dtype=torch.float32)
        grid = triton.cdiv(queries, FORWARD["QUERIES"]), pictures * heads
        _attend[grid](query, key, value, out, ends, *context.sizes, **context.words, **FORWARD)
        context.save_for_backward(query, key, value, out, ends)
        return out

    @staticmethod
    @once_differentiable
    def backward(context: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, ends = context.saved_tensors
        grad, (queries, keys, width, heads, _) = grad.contiguous(), context.sizes
        programs, words = len(query) * heads, context.words
        even = torch.empty_like(ends)
        _even[triton.cdiv(queries, 128), programs](
            out, grad, even, queries, width, heads, QUERIES=128, **words
        )
        sides = query, key, value, grad, ends, even
        grads = [torch.empty_like(side) for side in (query, key, value)]
        grid = triton.cdiv(keys, BACK_TO_KEYS["KEYS"]), programs
        _back_to_keys[grid](*sides, *grads[1:], *context.sizes, context.slope, **words, **BACK_TO_KEYS)
        grid = triton.cdiv(queries, BACK_TO_QUERIES["QUERIES"]), programs
        _back_to_queries[grid](*sides, grads[0], *context.sizes, context.slope, **words, **BACK_TO_QUERIES)
        return *grads, None


def is_taken(query: Tensor, heads: int) -> bool:
    """Whether heads are narrow enough and numbers of half the size."""
    return query.shape[-1] // heads <= WIDEST and query.dtype in (torch.bfloat16, torch.float16)


def attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """softmax(Q K^T / √width of a head) V, all [b, tokens, heads * width of a head]."""
    made: Tensor = _Attention.apply(query, key, value, heads)
    return made
