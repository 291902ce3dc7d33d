"""Attention of many queries to few keys: a picture's to a text's 77.

A kernel for long texts shares out the keys among its programs, and 77 are one program's share: its backward pass
leaves a GPU idle. Here programs share out the queries; all keys fit a tile, so the softmax needs no second look, and
the backward pass keeps nothing but its inputs. Gradients of keys and values are summed over programs at the end.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from cdiff.fused.launching import INTERPRETED, device_of

MOST_KEYS = 128  # what a tile holds
ROWS = 64  # queries of a tile, forward
ENOUGH = 256  # programs: from there more only cost
FORWARD = {"num_warps": 4}
BACKWARD = {"num_warps": 8, "num_stages": 1}  # loads ahead of the tile in work would take half as much memory again
# Backward: the bytes of shared memory that tiles of so many queries and channels take in half precision, as compiled
# for compute capabilities 8.0 to 9.0 the most of them. Data-centre GPUs have 160 KB and more, others 99.
SHARED = {(128, 64): 114688, (64, 64): 81920, (128, 128): 196608, (64, 128): 147456}
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _all_keys(ptr, by_image, by_row, image, head, count, width, keys: tl.constexpr, deep: tl.constexpr):
    """One head's keys or values, (keys, deep); 0 past `count` and `width`."""
    key, column = tl.arange(0, keys)[:, None], tl.arange(0, deep)[None, :]
    place = ptr + image.to(tl.int64) * by_image + key * by_row + head * width + column
    return tl.load(place, mask=(key < count) & (column < width), other=0.0)


@triton.jit
def _shares(query, key, count, scale, keys: tl.constexpr):
    """Softmax of a tile's scores, (rows, keys)."""
    score = tl.dot(query, tl.trans(key), input_precision="ieee") * (scale * LOG2_E)
    score = tl.where((tl.arange(0, keys) < count)[None, :], score, -float("inf"))
    share = tl.exp2(score - tl.max(score, axis=1)[:, None])
    return share / tl.sum(share, axis=1)[:, None]


@triton.jit
def _few_keys(
    q_ptr, k_ptr, v_ptr, out_ptr, size, heads, width, count, scale,
    q_image, q_row, k_image, k_row, v_image, v_row, tiles,
    rows: tl.constexpr, keys: tl.constexpr, deep: tl.constexpr,
):  # fmt: skip
    image, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    key = _all_keys(k_ptr, k_image, k_row, image, head, count, width, keys, deep)
    value = _all_keys(v_ptr, v_image, v_row, image, head, count, width, keys, deep)
    column = tl.arange(0, deep)[None, :]
    for tile in range(tiles):
        line = (tl.program_id(1) * tiles + tile) * rows + tl.arange(0, rows)[:, None]
        inside = (line < size) & (column < width)
        place = image.to(tl.int64) * q_image + line * q_row + head * width + column
        share = _shares(tl.load(q_ptr + place, mask=inside, other=0.0), key, count, scale, keys)
        out = tl.dot(share.to(value.dtype), value, input_precision="ieee")
        place = (image.to(tl.int64) * size + line) * heads * width + head * width + column
        tl.store(out_ptr + place, out.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _few_keys_backward(
    grad_ptr, q_ptr, k_ptr, v_ptr, dq_ptr, parts_ptr, size, heads, width, count, scale,
    q_image, q_row, k_image, k_row, v_image, v_row, tiles, by_chunk,
    rows: tl.constexpr, keys: tl.constexpr, deep: tl.constexpr,
):  # fmt: skip
    """parts (2, chunks, images, keys, heads * width): what this program's queries add to the gradients of keys and of
    values."""
    image, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    key = _all_keys(k_ptr, k_image, k_row, image, head, count, width, keys, deep)
    value = _all_keys(v_ptr, v_image, v_row, image, head, count, width, keys, deep)
    of_keys, of_values = tl.zeros((keys, deep), tl.float32), tl.zeros((keys, deep), tl.float32)
    column = tl.arange(0, deep)[None, :]
    for tile in range(tiles):
        line = (tl.program_id(1) * tiles + tile) * rows + tl.arange(0, rows)[:, None]
        inside = (line < size) & (column < width)
        place = image.to(tl.int64) * q_image + line * q_row + head * width + column
        query = tl.load(q_ptr + place, mask=inside, other=0.0)
        place = (image.to(tl.int64) * size + line) * heads * width + head * width + column
        grad = tl.load(grad_ptr + place, mask=inside, other=0.0)
        share = _shares(query, key, count, scale, keys)
        of_values += tl.dot(tl.trans(share.to(grad.dtype)), grad, input_precision="ieee")
        of_share = tl.dot(grad, tl.trans(value), input_precision="ieee")
        of_score = share * (of_share - tl.sum(share * of_share, axis=1)[:, None])
        of_score = of_score.to(query.dtype)
        of_keys += tl.dot(tl.trans(of_score), query, input_precision="ieee")
        of_query = tl.dot(of_score, key, input_precision="ieee") * scale
        tl.store(dq_ptr + place, of_query.to(dq_ptr.dtype.element_ty), mask=inside)
    number = tl.arange(0, keys)[:, None]
    inside = (number < count) & (column < width)
    chunk = (tl.program_id(1) * (tl.num_programs(0) // heads) + image).to(tl.int64)
    place = parts_ptr + (chunk * count + number) * heads * width + head * width + column
    tl.store(place, of_keys * scale, mask=inside)
    tl.store(place + tl.num_programs(1) * by_chunk, of_values, mask=inside)


@triton.jit
def _fold(parts_ptr, out_ptr, count, chunks, flat: tl.constexpr):
    """parts (2, chunks, count) -> out (2, count), summed in order."""
    place, half = tl.program_id(0) * flat + tl.arange(0, flat), tl.program_id(1).to(tl.int64)
    total = tl.zeros((flat,), tl.float32)
    for chunk in range(chunks):
        total += tl.load(parts_ptr + (half * chunks + chunk) * count + place, mask=place < count, other=0.0)
    tl.store(out_ptr + half * count + place, total.to(out_ptr.dtype.element_ty), mask=place < count)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, heads):
        out = q.new_empty(q.shape)
        grid, sizes, tile = _sizes(q, k, v, heads, ROWS)
        _few_keys[grid](q, k, v, out, *sizes, *tile, **FORWARD)
        ctx.save_for_backward(q, k, v)
        ctx.heads = heads
        return out

    @staticmethod
    def backward(ctx, grad):
        q, k, v = ctx.saved_tensors
        grid, sizes, tile = _sizes(q, k, v, ctx.heads, _rows_back(q, ctx.heads) or ROWS)
        of_query = q.new_empty(q.shape)
        both = k.new_empty((2, *k.shape))
        parts = k.new_empty((2, grid[1], *k.shape), dtype=torch.float32)
        count = k.numel()
        inputs = (grad.contiguous(), q, k, v)
        _few_keys_backward[grid](*inputs, of_query, parts, *sizes, count, *tile, **BACKWARD)
        _fold[(triton.cdiv(count, 256), 2)](parts, both, count, grid[1], 256)
        return of_query, both[0], both[1], None


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """softmax(q k^T / sqrt(d)) v of each head.

    q: (B, N, heads * d); k, v: (B, L, heads * d), of sizes that `few_enough` says yes to; of one dtype, the channels of
    a row together, the rows anywhere. Gives (B, N, heads * d), contiguous.
    """
    with device_of(q):
        return _Attend.apply(q, k, v, heads)


def few_enough(q: Tensor, k: Tensor, heads: int) -> bool:
    """Whether `attend` takes these sizes on the GPU where they lie."""
    return k.shape[1] <= MOST_KEYS and _rows_back(q, heads) is not None


def _rows_back(q: Tensor, heads: int) -> int | None:
    """Queries of a tile of the backward pass; None where no tile fits, or is not known to."""
    if q.element_size() != 2 and not INTERPRETED:
        return None
    deep, there = max(64, triton.next_power_of_2(q.shape[-1] // heads)), _shared_memory(q.device)
    fitting = [rows for (rows, channels), taken in SHARED.items() if channels == deep and taken <= there]
    return max(fitting, default=None)


@cache
def _shared_memory(device: torch.device) -> int:
    """Bytes that a program may have; on a CPU, in the interpreter, as many as it likes."""
    if device.type != "cuda":
        return 2**30
    return getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", 0)


def _sizes(
    q: Tensor, k: Tensor, v: Tensor, heads: int, rows: int
) -> tuple[tuple[int, int], tuple, tuple[int, int, int]]:
    """Programs by image and head, and by chunk of queries; sizes, scale, strides and tiles of a chunk; a tile's rows,
    keys and channels."""
    images, size, inner = q.shape
    width, count = inner // heads, k.shape[1]
    most = triton.cdiv(size, rows)
    tiles = triton.cdiv(most, min(most, max(1, ENOUGH // (images * heads))))
    sizes = (size, heads, width, count, width**-0.5)
    strides = (*q.stride()[:2], *k.stride()[:2], *v.stride()[:2])
    tile = (rows, max(16, triton.next_power_of_2(count)), max(16, triton.next_power_of_2(width)))
    return (images * heads, triton.cdiv(most, tiles)), (*sizes, *strides, tiles), tile
