"""Group norm with what stands around it, for tensors that lie rows x channels (channels_last).

torch's group norm has no kernel for that layout: it copies to the other one and back, between convolutions that want
this one. Here a norm reads its input twice and writes once, with the bias and the time embedding before it and the
SiLU behind it. Every sum is taken in fp32 and in a fixed order, so the same input gives the same bits.

Only the inputs get gradients, not the norms' own weights: what trains them takes torch's kernels (fused.modules).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from cdiff.fused.launching import device_of

CHANNELS = 64  # of a tile; 64 rows of 64 channels are 8 KB in bf16
MOST_CHUNKS = 64  # of an image's rows, each summed by a program of its own
AT_ONCE = 16  # chunks that are read together when their sums are added up
MANY = 64  # programs without any chunks, from which shorter tiles are faster
SMALL = 64  # rows of an image whose groups are a tile each, which is read once; where programs are FEW
FEW = 256
WIDE = 128  # channels of that tile
ONE_FOR_ALL = ("per_group", "tiles")  # compiled once for all values, not again for 1 and for multiples of 16
TOGETHER = 16  # channels of a group, at least, for that: of fewer a row's are read with others'


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


@triton.jit(do_not_specialize=ONE_FOR_ALL)
def _group_sums(
    x_ptr, shift_ptr, shift_row, sums_ptr, size, channels, tiles,
    shifted: tl.constexpr, block: tl.constexpr, rows: tl.constexpr,
):  # fmt: skip
    """Sum and sum of squares of x + shift, of each chunk and channel -> sums (images, chunks, 2, channels)."""
    image, first, last, columns, there = _tile(size, channels, tiles * rows, block)
    start = x_ptr + image.to(tl.int64) * size * channels
    shift = tl.load(shift_ptr + image * shift_row + columns, mask=there, other=0.0).to(tl.float32) if shifted else 0.0
    totals, squares = tl.zeros((rows, block), tl.float32), tl.zeros((rows, block), tl.float32)
    for tile in range(tiles):
        line = first + tile * rows + tl.arange(0, rows)
        inside = (line < last)[:, None] & there[None, :]
        x = tl.load(start + line[:, None] * channels + columns[None, :], mask=inside, other=0.0).to(tl.float32)
        x = tl.where(inside, x + shift, 0.0)
        totals += x
        squares += x * x
    out = sums_ptr + ((image * tl.num_programs(1) + tl.program_id(1)) * 2) * channels + columns
    tl.store(out, tl.sum(totals, axis=0), mask=there)
    tl.store(out + channels, tl.sum(squares, axis=0), mask=there)


@triton.jit(do_not_specialize=ONE_FOR_ALL)
def _group_gather(
    sums_ptr, stats_ptr, chunks, channels, count, per_group, epsilon,
    wide: tl.constexpr, long: tl.constexpr, moments: tl.constexpr,
):  # fmt: skip
    """The two sums of an image's group over chunks and channels -> stats (images, groups, 2): mean and 1 / standard
    deviation (moments), or both divided by the elements there are."""
    image, group = tl.program_id(0), tl.program_id(1)
    column = tl.arange(0, wide)[None, :]
    ones, twos = tl.zeros((long, wide), tl.float32), tl.zeros((long, wide), tl.float32)
    for first in range(0, chunks, long):
        chunk = first + tl.arange(0, long)[:, None]
        inside = (chunk < chunks) & (column < per_group)
        place = sums_ptr + (image * chunks + chunk) * 2 * channels + group * per_group + column
        ones += tl.load(place, mask=inside, other=0.0)
        twos += tl.load(place + channels, mask=inside, other=0.0)
    one = tl.sum(tl.sum(ones, axis=1), axis=0) / count
    two = tl.sum(tl.sum(twos, axis=1), axis=0) / count
    if moments:
        two = tl.rsqrt(tl.maximum(two - one * one, 0.0) + epsilon)
    out = stats_ptr + (image * tl.num_programs(1) + group) * 2
    tl.store(out, one)
    tl.store(out + 1, two)


@triton.jit(do_not_specialize=ONE_FOR_ALL)
def _group_norm(
    x_ptr, shift_ptr, shift_row, weight_ptr, bias_ptr, stats_ptr, out_ptr,
    size, channels, groups, per_group, tiles,
    shifted: tl.constexpr, silu: tl.constexpr, block: tl.constexpr, rows: tl.constexpr,
):  # fmt: skip
    image, first, last, columns, there = _tile(size, channels, tiles * rows, block)
    start = image.to(tl.int64) * size * channels
    stats = stats_ptr + (image * groups + columns // per_group) * 2
    scale = tl.load(stats + 1, mask=there, other=0.0) * tl.load(weight_ptr + columns, mask=there, other=0.0)
    offset = tl.load(bias_ptr + columns, mask=there, other=0.0).to(tl.float32)
    offset -= tl.load(stats, mask=there, other=0.0) * scale
    if shifted:
        offset += tl.load(shift_ptr + image * shift_row + columns, mask=there, other=0.0) * scale
    for tile in range(tiles):
        line = first + tile * rows + tl.arange(0, rows)
        inside = (line < last)[:, None] & there[None, :]
        place = start + line[:, None] * channels + columns[None, :]
        z = tl.load(x_ptr + place, mask=inside, other=0.0).to(tl.float32) * scale[None, :] + offset[None, :]
        if silu:
            z *= tl.sigmoid(z)
        tl.store(out_ptr + place, z.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _slopes(grad_ptr, x_ptr, place, inside, shift, mean, rstd, weight, bias, silu: tl.constexpr):
    """The gradient of the standardized input, and the standardized input."""
    x = tl.load(x_ptr + place, mask=inside, other=0.0).to(tl.float32)
    standard = (x + shift - mean) * rstd
    slope = tl.load(grad_ptr + place, mask=inside, other=0.0).to(tl.float32) * weight
    if silu:
        slope *= _silu_slope(standard * weight + bias)
    return slope, standard


@triton.jit(do_not_specialize=ONE_FOR_ALL)
def _group_norm_backward(
    grad_ptr, along_ptr, x_ptr, shift_ptr, shift_row, weight_ptr, bias_ptr, stats_ptr, sums_ptr, means_ptr, out_ptr,
    size, channels, groups, per_group, tiles,
    summing: tl.constexpr, added: tl.constexpr, shifted: tl.constexpr, silu: tl.constexpr,
    block: tl.constexpr, rows: tl.constexpr,
):  # fmt: skip
    """summing: the slopes' sum and their sum times the standardized input -> sums (as _group_sums). Else the input's
    gradient, from their means over each group, and what reaches the input beside the norm (added)."""
    image, first, last, columns, there = _tile(size, channels, tiles * rows, block)
    start = image.to(tl.int64) * size * channels
    group = (image * groups + columns // per_group) * 2
    mean = tl.load(stats_ptr + group, mask=there, other=0.0)[None, :]
    rstd = tl.load(stats_ptr + group + 1, mask=there, other=0.0)[None, :]
    weight = tl.load(weight_ptr + columns, mask=there, other=0.0).to(tl.float32)[None, :]
    bias = tl.load(bias_ptr + columns, mask=there, other=0.0).to(tl.float32)[None, :]
    shift = (
        tl.load(shift_ptr + image * shift_row + columns, mask=there, other=0.0).to(tl.float32)[None, :]
        if shifted else 0.0
    )  # fmt: skip
    totals, products = tl.zeros((rows, block), tl.float32), tl.zeros((rows, block), tl.float32)
    along = tl.load(means_ptr + group, mask=there, other=0.0)[None, :]
    across = tl.load(means_ptr + group + 1, mask=there, other=0.0)[None, :]
    for tile in range(tiles):
        line = first + tile * rows + tl.arange(0, rows)
        inside = (line < last)[:, None] & there[None, :]
        place = start + line[:, None] * channels + columns[None, :]
        slope, standard = _slopes(grad_ptr, x_ptr, place, inside, shift, mean, rstd, weight, bias, silu)
        if summing:
            totals += slope
            products += slope * standard
        else:
            gradient = rstd * (slope - along - standard * across)
            if added:
                gradient += tl.load(along_ptr + place, mask=inside, other=0.0).to(tl.float32)
            tl.store(out_ptr + place, gradient.to(out_ptr.dtype.element_ty), mask=inside)
    if summing:
        out = sums_ptr + ((image * tl.num_programs(1) + tl.program_id(1)) * 2) * channels + columns
        tl.store(out, tl.sum(totals, axis=0), mask=there)
        tl.store(out + channels, tl.sum(products, axis=0), mask=there)


@triton.jit
def _group(size, channels, per_group, rows: tl.constexpr, wide: tl.constexpr):
    """All of this program's image and group as one tile: (places, which are there)."""
    line, own = tl.arange(0, rows), tl.arange(0, wide)
    inside = (line < size)[:, None] & (own < per_group)[None, :]
    start = tl.program_id(0).to(tl.int64) * size * channels + tl.program_id(1) * per_group
    return start + line[:, None] * channels + own[None, :], inside


@triton.jit
def _of_group(ptr, start, per_group, wide: tl.constexpr):
    """A number for each channel of this program's group, (1, wide)."""
    own = tl.arange(0, wide)
    found = tl.load(ptr + start + tl.program_id(1) * per_group + own, mask=own < per_group, other=0.0)
    return found.to(tl.float32)[None, :]


@triton.jit(do_not_specialize=ONE_FOR_ALL)
def _small_group_norm(
    x_ptr, shift_ptr, shift_row, weight_ptr, bias_ptr, stats_ptr, out_ptr, size, channels, per_group, epsilon,
    shifted: tl.constexpr, silu: tl.constexpr, rows: tl.constexpr, wide: tl.constexpr,
):  # fmt: skip
    """Sums and norm of an image's group."""
    place, inside = _group(size, channels, per_group, rows, wide)
    x = tl.load(x_ptr + place, mask=inside, other=0.0).to(tl.float32)
    if shifted:
        x += _of_group(shift_ptr, tl.program_id(0) * shift_row, per_group, wide)
    count = size * per_group
    x = tl.where(inside, x, 0.0)
    mean = tl.sum(tl.sum(x, axis=1), axis=0) / count
    apart = tl.where(inside, x - mean, 0.0)
    rstd = tl.rsqrt(tl.sum(tl.sum(apart * apart, axis=1), axis=0) / count + epsilon)
    out = stats_ptr + (tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)) * 2
    tl.store(out, mean)
    tl.store(out + 1, rstd)
    z = apart * rstd * _of_group(weight_ptr, 0, per_group, wide) + _of_group(bias_ptr, 0, per_group, wide)
    if silu:
        z *= tl.sigmoid(z)
    tl.store(out_ptr + place, z.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=ONE_FOR_ALL)
def _small_group_norm_backward(
    grad_ptr, along_ptr, x_ptr, shift_ptr, shift_row, weight_ptr, bias_ptr, stats_ptr, out_ptr,
    size, channels, per_group,
    added: tl.constexpr, shifted: tl.constexpr, silu: tl.constexpr, rows: tl.constexpr, wide: tl.constexpr,
):  # fmt: skip
    """The input's gradient, of an image's group."""
    place, inside = _group(size, channels, per_group, rows, wide)
    shift = _of_group(shift_ptr, tl.program_id(0) * shift_row, per_group, wide) if shifted else 0.0
    weight, bias = _of_group(weight_ptr, 0, per_group, wide), _of_group(bias_ptr, 0, per_group, wide)
    stats = stats_ptr + (tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)) * 2
    mean, rstd = tl.load(stats), tl.load(stats + 1)
    slope, standard = _slopes(grad_ptr, x_ptr, place, inside, shift, mean, rstd, weight, bias, silu)
    count = size * per_group
    along = tl.sum(tl.sum(slope, axis=1), axis=0) / count
    across = tl.sum(tl.sum(slope * standard, axis=1), axis=0) / count
    gradient = rstd * (slope - along - standard * across)
    if added:
        gradient += tl.load(along_ptr + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + place, gradient.to(out_ptr.dtype.element_ty), mask=inside)


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, shift, weight, bias, groups, epsilon, silu):
        ctx.set_materialize_grads(False)
        images, size, channels = x.shape
        shifted, out, each = shift is not None, torch.empty_like(x), channels // groups
        moved = (shift, shift.stride(0)) if shifted else (x, 0)
        if (tile := _small_tile(x, groups)) is not None:
            stats = x.new_empty((images, groups, 2), dtype=torch.float32)
            sizes = (size, channels, each, epsilon, shifted, silu)
            _small_group_norm[(images, groups)](x, *moved, weight, bias, stats, out, *sizes, *tile, num_warps=16)
        else:
            grid, tiles, tile = _grid(x)
            sums = x.new_empty((images, grid[1], 2, channels), dtype=torch.float32)
            _group_sums[grid](x, *moved, sums, size, channels, tiles, shifted, *tile)
            stats = _gathered(sums, groups, size, epsilon, moments=True)
            sizes = (size, channels, groups, each, tiles, shifted, silu)
            _group_norm[grid](x, *moved, weight, bias, stats, out, *sizes, *tile)
        ctx.save_for_backward(x, shift, weight, bias, stats)
        ctx.silu = silu
        return x, out

    @staticmethod
    def backward(ctx, along, grad):
        if grad is None:
            return along, None, None, None, None, None, None
        x, shift, weight, bias, stats = ctx.saved_tensors
        images, size, channels = x.shape
        groups = stats.shape[1]
        added, shifted, out, each = along is not None, shift is not None, torch.empty_like(x), channels // groups
        grad = grad.contiguous()
        moved = (shift, shift.stride(0)) if shifted else (x, 0)
        inputs = (grad, along.contiguous() if added else grad, x, *moved, weight, bias, stats)
        if (tile := _small_tile(x, groups)) is not None:
            sizes = (size, channels, each, added, shifted, ctx.silu)
            _small_group_norm_backward[(images, groups)](*inputs, out, *sizes, *tile, num_warps=16)
            return out, None, None, None, None, None, None
        grid, tiles, tile = _grid(x)
        sums = stats.new_empty((images, grid[1], 2, channels))

        def run(summing: bool, means: Tensor) -> None:
            sizes = (size, channels, groups, each, tiles, summing, added and not summing, shifted, ctx.silu)
            _group_norm_backward[grid](*inputs, sums, means, out, *sizes, *tile)

        run(True, stats)
        run(False, _gathered(sums, groups, size, 0.0, moments=False))
        return out, None, None, None, None, None, None


def group_norm(
    x: Tensor, shift: Tensor | None, weight: Tensor, bias: Tensor, groups: int, epsilon: float, silu: bool
) -> tuple[Tensor, Tensor]:
    """x as it is, and group norm (arXiv 1803.08494) of x + shift, and SiLU of it. Who goes on with the x that comes
    back has the gradients of both added up in the norm's own pass.

    x: (images, rows, channels), contiguous; shift: (images, channels), the channels of a row together, added to every
    row, or None; weight, bias: (channels,). Gives x's shape and dtype; gradients reach x alone.
    """
    with device_of(x):
        return _GroupNorm.apply(x, shift, weight, bias, groups, epsilon, silu)


def _small_tile(x: Tensor, groups: int) -> tuple[int, int] | None:
    """Rows and channels of a tile that holds an image's group; None where it would be too large. All widths take one
    tile, so that there is less to compile."""
    size, each = x.shape[1], x.shape[2] // groups
    small = size <= SMALL and TOGETHER <= each <= WIDE and len(x) * groups <= FEW
    return (triton.next_power_of_2(size), WIDE) if small else None


def _grid(x: Tensor) -> tuple[tuple[int, int, int], int, tuple[int, int]]:
    """Programs by image, chunk of rows and block of channels; tiles of a chunk, and a tile's channels and rows."""
    images, size, channels = x.shape
    blocks = triton.cdiv(channels, CHANNELS)
    rows, programs = (32, 1024) if images * blocks >= MANY else (64, 2048)
    chunks = min(MOST_CHUNKS, max(1, programs // (images * blocks)))
    tiles = triton.cdiv(size, chunks * rows)
    return (images, triton.cdiv(size, tiles * rows), blocks), tiles, (CHANNELS, rows)


def _gathered(sums: Tensor, groups: int, size: int, epsilon: float, moments: bool) -> Tensor:
    images, chunks, _, channels = sums.shape
    each = channels // groups
    stats = sums.new_empty((images, groups, 2))
    wide = max(32, triton.next_power_of_2(each))
    sizes = (chunks, channels, size * each, each, epsilon, wide, AT_ONCE, moments)
    _group_gather[(images, groups)](sums, stats, *sizes)
    return stats
