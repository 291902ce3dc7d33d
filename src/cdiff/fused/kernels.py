"""The kernels, for tensors that lie rows x channels (channels_last): group norm with what stands around it, and GEGLU.

torch's group norm has no kernel for that layout: it copies to the other one and back, between convolutions that want
this one. Here a norm reads its input twice and writes once, with the bias and the time embedding before it and the
SiLU behind it. Every sum is taken in fp32 and in a fixed order, so the same input gives the same bits.

Only the inputs get gradients, not the norms' own weights: what trains them takes torch's kernels (fused.modules).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

CHANNELS = 64  # of a tile; 64 rows of 64 channels are 8 KB in bf16
ROWS = 64
MOST_CHUNKS = 64  # of an image's rows, each summed by a program of its own
INTERPRETED = triton.knobs.runtime.interpret  # TRITON_INTERPRET=1: on a CPU, slowly, for tests
FLAT = 1024  # elements of a program where nothing is summed


@triton.jit
def _tile(size, channels, rows_each, block: tl.constexpr):
    """Image, chunk and channels of this program: (image, first row, past its last row, channels, which are there)."""
    image, chunk = tl.program_id(0), tl.program_id(1)
    columns = tl.program_id(2) * block + tl.arange(0, block)
    return image, chunk * rows_each, tl.minimum((chunk + 1) * rows_each, size), columns, columns < channels


@triton.jit
def _silu_slope(z):
    sigmoid = tl.sigmoid(z)
    return sigmoid * (1 + z * (1 - sigmoid))


@triton.jit
def _sums(
    x_ptr, shift_ptr, sums_ptr, size, channels,
    shifted: tl.constexpr, tiles: tl.constexpr, block: tl.constexpr, rows: tl.constexpr,
):  # fmt: skip
    """Sum and sum of squares of x + shift, of each chunk and channel -> sums (images, chunks, 2, channels)."""
    image, first, last, columns, there = _tile(size, channels, tiles * rows, block)
    start = x_ptr + image.to(tl.int64) * size * channels
    shift = tl.load(shift_ptr + image * channels + columns, mask=there, other=0.0).to(tl.float32) if shifted else 0.0
    total, squares = tl.zeros((block,), tl.float32), tl.zeros((block,), tl.float32)
    for tile in range(tiles):
        line = first + tile * rows + tl.arange(0, rows)
        inside = (line < last)[:, None] & there[None, :]
        x = tl.load(start + line[:, None] * channels + columns[None, :], mask=inside, other=0.0).to(tl.float32)
        x = tl.where(inside, x + shift, 0.0)
        total += tl.sum(x, axis=0)
        squares += tl.sum(x * x, axis=0)
    out = sums_ptr + ((image * tl.num_programs(1) + tl.program_id(1)) * 2) * channels + columns
    tl.store(out, total, mask=there)
    tl.store(out + channels, squares, mask=there)


@triton.jit
def _gather(
    sums_ptr, stats_ptr, chunks, channels, count, epsilon,
    per_group: tl.constexpr, wide: tl.constexpr, long: tl.constexpr, moments: tl.constexpr,
):  # fmt: skip
    """The two sums of an image's group over chunks and channels -> stats (images, groups, 2): mean and 1 / standard
    deviation (moments), or both divided by the elements there are."""
    image, group = tl.program_id(0), tl.program_id(1)
    chunk, column = tl.arange(0, long), tl.arange(0, wide)
    inside = (chunk < chunks)[:, None] & (column < per_group)[None, :]
    place = sums_ptr + ((image * chunks + chunk) * 2)[:, None] * channels + (group * per_group + column)[None, :]
    one = tl.sum(tl.sum(tl.load(place, mask=inside, other=0.0), axis=1), axis=0) / count
    two = tl.sum(tl.sum(tl.load(place + channels, mask=inside, other=0.0), axis=1), axis=0) / count
    if moments:
        two = tl.rsqrt(tl.maximum(two - one * one, 0.0) + epsilon)
    out = stats_ptr + (image * tl.num_programs(1) + group) * 2
    tl.store(out, one)
    tl.store(out + 1, two)


@triton.jit
def _normalize(
    x_ptr, shift_ptr, weight_ptr, bias_ptr, stats_ptr, out_ptr, size, channels, groups, per_group,
    shifted: tl.constexpr, silu: tl.constexpr, tiles: tl.constexpr, block: tl.constexpr, rows: tl.constexpr,
):  # fmt: skip
    image, first, last, columns, there = _tile(size, channels, tiles * rows, block)
    start = image.to(tl.int64) * size * channels
    stats = stats_ptr + (image * groups + columns // per_group) * 2
    scale = tl.load(stats + 1, mask=there, other=0.0) * tl.load(weight_ptr + columns, mask=there, other=0.0)
    offset = tl.load(bias_ptr + columns, mask=there, other=0.0).to(tl.float32)
    offset -= tl.load(stats, mask=there, other=0.0) * scale
    if shifted:
        offset += tl.load(shift_ptr + image * channels + columns, mask=there, other=0.0) * scale
    for tile in range(tiles):
        line = first + tile * rows + tl.arange(0, rows)
        inside = (line < last)[:, None] & there[None, :]
        place = start + line[:, None] * channels + columns[None, :]
        z = tl.load(x_ptr + place, mask=inside, other=0.0).to(tl.float32) * scale[None, :] + offset[None, :]
        if silu:
            z *= tl.sigmoid(z)
        tl.store(out_ptr + place, z.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _backward(
    grad_ptr, x_ptr, shift_ptr, weight_ptr, bias_ptr, stats_ptr, sums_ptr, means_ptr, out_ptr,
    size, channels, groups, per_group,
    summing: tl.constexpr, shifted: tl.constexpr, silu: tl.constexpr,
    tiles: tl.constexpr, block: tl.constexpr, rows: tl.constexpr,
):  # fmt: skip
    """summing: the slopes' sum and their sum times the standardized input -> sums (as _sums). Else the input's
    gradient, from their means over each group."""
    image, first, last, columns, there = _tile(size, channels, tiles * rows, block)
    start = image.to(tl.int64) * size * channels
    group = (image * groups + columns // per_group) * 2
    mean = tl.load(stats_ptr + group, mask=there, other=0.0)[None, :]
    rstd = tl.load(stats_ptr + group + 1, mask=there, other=0.0)[None, :]
    weight = tl.load(weight_ptr + columns, mask=there, other=0.0).to(tl.float32)[None, :]
    bias = tl.load(bias_ptr + columns, mask=there, other=0.0).to(tl.float32)[None, :]
    shift = (
        tl.load(shift_ptr + image * channels + columns, mask=there, other=0.0).to(tl.float32)[None, :]
        if shifted else 0.0
    )  # fmt: skip
    total, product = tl.zeros((block,), tl.float32), tl.zeros((block,), tl.float32)
    along = tl.load(means_ptr + group, mask=there, other=0.0)[None, :]
    across = tl.load(means_ptr + group + 1, mask=there, other=0.0)[None, :]
    for tile in range(tiles):
        line = first + tile * rows + tl.arange(0, rows)
        inside = (line < last)[:, None] & there[None, :]
        place = start + line[:, None] * channels + columns[None, :]
        x = tl.load(x_ptr + place, mask=inside, other=0.0).to(tl.float32)
        standard = (x + shift - mean) * rstd
        slope = tl.load(grad_ptr + place, mask=inside, other=0.0).to(tl.float32) * weight
        if silu:
            slope *= _silu_slope(standard * weight + bias)
        if summing:
            total += tl.sum(slope, axis=0)
            product += tl.sum(slope * standard, axis=0)
        else:
            gradient = rstd * (slope - along - standard * across)
            tl.store(out_ptr + place, gradient.to(out_ptr.dtype.element_ty), mask=inside)
    if summing:
        out = sums_ptr + ((image * tl.num_programs(1) + tl.program_id(1)) * 2) * channels + columns
        tl.store(out, total, mask=there)
        tl.store(out + channels, product, mask=there)


@triton.jit
def _add(x_ptr, y_ptr, bias_ptr, out_ptr, count, channels, flat: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * flat + tl.arange(0, flat)
    inside = place < count
    x = tl.load(x_ptr + place, mask=inside, other=0.0).to(tl.float32)
    y = tl.load(y_ptr + place, mask=inside, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + place % channels, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + place, (x + y + bias).to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _halves(both_ptr, width, block: tl.constexpr):
    """Value and gate of a row's block of columns: (place of the value, of the result, which are there, both)."""
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * block + tl.arange(0, block)
    place, inside = row * 2 * width + column, column < width
    value = tl.load(both_ptr + place, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(both_ptr + place + width, mask=inside, other=0.0).to(tl.float32)
    return place, row * width + column, inside, value, gate


@triton.jit
def _geglu(both_ptr, out_ptr, width, block: tl.constexpr):
    _, place, inside, value, gate = _halves(both_ptr, width, block)
    gelu = gate * 0.5 * (1 + tl.erf(gate * 0.7071067811865476))
    tl.store(out_ptr + place, (value * gelu).to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _geglu_backward(grad_ptr, both_ptr, out_ptr, width, block: tl.constexpr):
    place, from_place, inside, value, gate = _halves(both_ptr, width, block)
    grad = tl.load(grad_ptr + from_place, mask=inside, other=0.0).to(tl.float32)
    share = 0.5 * (1 + tl.erf(gate * 0.7071067811865476))
    slope = share + gate * tl.exp(-0.5 * gate * gate) * 0.3989422804014327
    tl.store(out_ptr + place, (grad * gate * share).to(out_ptr.dtype.element_ty), mask=inside)
    tl.store(out_ptr + place + width, (grad * value * slope).to(out_ptr.dtype.element_ty), mask=inside)


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, shift, weight, bias, groups, epsilon, silu):
        images, size, channels = x.shape
        grid, tiles = _grid(x)
        sums = x.new_empty((images, grid[1], 2, channels), dtype=torch.float32)
        shifted = shift is not None
        _sums[grid](x, shift if shifted else x, sums, size, channels, shifted, tiles, CHANNELS, ROWS)
        stats = _gathered(sums, groups, size, epsilon, moments=True)
        out = torch.empty_like(x)
        _normalize[grid](
            x, shift if shifted else x, weight, bias, stats, out, size, channels, groups,
            channels // groups, shifted, silu, tiles, CHANNELS, ROWS,
        )  # fmt: skip
        ctx.save_for_backward(x, shift, weight, bias, stats)
        ctx.silu = silu
        return out

    @staticmethod
    def backward(ctx, grad):
        x, shift, weight, bias, stats = ctx.saved_tensors
        grad = grad.contiguous()
        size, channels, groups = x.shape[1], x.shape[2], stats.shape[1]
        grid, tiles = _grid(x)
        sums, out = stats.new_empty((x.shape[0], grid[1], 2, channels)), torch.empty_like(x)
        shifted = shift is not None

        def run(summing: bool, means: Tensor) -> None:
            _backward[grid](
                grad, x, shift if shifted else x, weight, bias, stats, sums, means, out, size, channels,
                groups, channels // groups, summing, shifted, ctx.silu, tiles, CHANNELS, ROWS,
            )  # fmt: skip

        run(True, stats)
        run(False, _gathered(sums, groups, size, 0.0, moments=False))
        return out, None, None, None, None, None, None


class _Geglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, both):
        *rows, width = both.shape[:-1], both.shape[-1] // 2
        out = both.new_empty((*rows[0], width))
        _geglu[_flat_grid(out)](both, out, width, FLAT)
        ctx.save_for_backward(both)
        return out

    @staticmethod
    def backward(ctx, grad):
        (both,) = ctx.saved_tensors
        out = torch.empty_like(both)
        _geglu_backward[_flat_grid(grad)](grad.contiguous(), both, out, grad.shape[-1], FLAT)
        return out


class _AddBiased(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y, bias):
        out = torch.empty_like(x)
        _add[(triton.cdiv(x.numel(), FLAT),)](x, y, bias, out, x.numel(), x.shape[-1], FLAT)
        return out

    @staticmethod
    def backward(ctx, grad):
        return grad, grad, None


def group_norm(
    x: Tensor, shift: Tensor | None, weight: Tensor, bias: Tensor, groups: int, epsilon: float, silu: bool
) -> Tensor:
    """Group norm (arXiv 1803.08494) of x + shift, and SiLU of it.

    x: (images, rows, channels), contiguous; shift: (images, channels), contiguous, added to every row, or None; weight,
    bias: (channels,). Gives x's shape and dtype; gradients reach x alone.
    """
    with _device_of(x):
        return _GroupNorm.apply(x, shift, weight, bias, groups, epsilon, silu)


def geglu(both: Tensor) -> Tensor:
    """value * gelu(gate) (arXiv 2002.05202) of the halves of the last dimension: (..., 2 D), contiguous -> (..., D)."""
    with _device_of(both):
        return _Geglu.apply(both)


def add_biased(x: Tensor, y: Tensor, bias: Tensor) -> Tensor:
    """x + y + bias, rounded once. x, y: (images, rows, channels), contiguous; bias (channels,) gets no gradient."""
    with _device_of(x):
        return _AddBiased.apply(x, y, bias)


def _device_of(x: Tensor) -> AbstractContextManager:
    """Triton launches on the current GPU, which device=cuda:1 need not be. Autograd sees to the backward pass."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def _grid(x: Tensor) -> tuple[tuple[int, int, int], int]:
    """Programs by image, chunk of rows and block of channels; tiles of a chunk."""
    images, size, channels = x.shape
    tiles = triton.cdiv(size, MOST_CHUNKS * ROWS)
    return (images, triton.cdiv(size, tiles * ROWS), triton.cdiv(channels, CHANNELS)), tiles


def _gathered(sums: Tensor, groups: int, size: int, epsilon: float, moments: bool) -> Tensor:
    images, chunks, _, channels = sums.shape
    per_group = channels // groups
    stats = sums.new_empty((images, groups, 2))
    wide, long = triton.next_power_of_2(per_group), triton.next_power_of_2(chunks)
    _gather[(images, groups)](
        sums, stats, chunks, channels, size * per_group, epsilon, per_group, wide, long, moments
    )
    return stats


def _flat_grid(out: Tensor) -> tuple[int, int]:
    width = out.shape[-1]
    return out.numel() // width, triton.cdiv(width, FLAT)
