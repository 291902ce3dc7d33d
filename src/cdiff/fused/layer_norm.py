"""A residual sum and the layer norm of it, in one pass; and their gradients, added up in one."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from cdiff.fused.launching import device_of

TILE = 2048  # elements of a program, whole rows


@triton.jit
def _rows(count, width, lines: tl.constexpr, block: tl.constexpr):
    """This program's rows, their columns, the places of both and which are there."""
    line, column = tl.program_id(0) * lines + tl.arange(0, lines), tl.arange(0, block)
    inside = (line < count)[:, None] & (column < width)[None, :]
    return line, column, line[:, None].to(tl.int64) * width + column[None, :], inside


@triton.jit
def _layer_norm(
    x_ptr, y_ptr, weight_ptr, bias_ptr, sum_ptr, out_ptr, stats_ptr, count, width, epsilon,
    added: tl.constexpr, lines: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    line, column, place, inside = _rows(count, width, lines, block)
    x = tl.load(x_ptr + place, mask=inside, other=0.0).to(tl.float32)
    if added:
        x += tl.load(y_ptr + place, mask=inside, other=0.0).to(tl.float32)
        rounded = x.to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + place, rounded, mask=inside)
        x = rounded.to(tl.float32)
    mean = tl.sum(x, axis=1) / width
    apart = tl.where(inside, x - mean[:, None], 0.0)
    rstd = tl.rsqrt(tl.sum(apart * apart, axis=1) / width + epsilon)
    weight = tl.load(weight_ptr + column, mask=column < width, other=0.0).to(tl.float32)[None, :]
    bias = tl.load(bias_ptr + column, mask=column < width, other=0.0).to(tl.float32)[None, :]
    out = apart * rstd[:, None] * weight + bias
    tl.store(out_ptr + place, out.to(out_ptr.dtype.element_ty), mask=inside)
    tl.store(stats_ptr + 2 * line, mean, mask=line < count)
    tl.store(stats_ptr + 2 * line + 1, rstd, mask=line < count)


@triton.jit
def _layer_norm_backward(
    grad_ptr, along_ptr, sum_ptr, weight_ptr, stats_ptr, out_ptr, count, width,
    added: tl.constexpr, lines: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """grad: of the norm's output; along: of the sum itself (added), which comes on top."""
    line, column, place, inside = _rows(count, width, lines, block)
    mean = tl.load(stats_ptr + 2 * line, mask=line < count, other=0.0)[:, None]
    rstd = tl.load(stats_ptr + 2 * line + 1, mask=line < count, other=0.0)[:, None]
    weight = tl.load(weight_ptr + column, mask=column < width, other=0.0).to(tl.float32)[None, :]
    standard = (tl.load(sum_ptr + place, mask=inside, other=0.0).to(tl.float32) - mean) * rstd
    slope = tl.load(grad_ptr + place, mask=inside, other=0.0).to(tl.float32) * weight
    mean_slope = tl.sum(slope, axis=1)[:, None] / width
    mean_product = tl.sum(slope * standard, axis=1)[:, None] / width
    gradient = rstd * (slope - mean_slope - standard * mean_product)
    if added:
        gradient += tl.load(along_ptr + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + place, gradient.to(out_ptr.dtype.element_ty), mask=inside)


class _AddLayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y, weight, bias, epsilon):
        ctx.set_materialize_grads(False)
        added = y is not None
        total = torch.empty_like(x) if added else x
        out, stats = torch.empty_like(x), x.new_empty((x.numel() // x.shape[-1], 2), dtype=torch.float32)
        grid, sizes, tile = _sizes(x)
        _layer_norm[grid](x, y if added else x, weight, bias, total, out, stats, *sizes, epsilon, added, *tile)
        ctx.save_for_backward(total, weight, stats)
        ctx.added = added
        return total, out

    @staticmethod
    def backward(ctx, along, grad):
        total, weight, stats = ctx.saved_tensors
        out = along
        if grad is not None:
            grad = grad.contiguous()
            out = torch.empty_like(total)
            grid, sizes, tile = _sizes(total)
            inputs = (grad, grad if along is None else along.contiguous(), total, weight, stats)
            _layer_norm_backward[grid](*inputs, out, *sizes, along is not None, *tile)
        return out, out if ctx.added else None, None, None, None


def add_layer_norm(x: Tensor, y: Tensor | None, weight: Tensor, bias: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """x + y, and its layer norm (arXiv 1607.06450) over the last dimension.

    x, y: (..., D), contiguous, of one dtype; without y the sum is x itself. weight, bias: (D,), which get no gradient.
    """
    with device_of(x):
        return _AddLayerNorm.apply(x, y, weight, bias, epsilon)


def _sizes(x: Tensor) -> tuple[tuple[int], tuple[int, int], tuple[int, int]]:
    """Programs; rows and width of all; rows and width of a tile."""
    width = x.shape[-1]
    count, block = x.numel() // width, triton.next_power_of_2(width)
    lines = max(1, TILE // block)
    return (triton.cdiv(count, lines),), (count, width), (lines, block)
