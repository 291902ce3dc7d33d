"""What is computed element by element: GEGLU, quick GELU, and a sum with a bias."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from cdiff.fused.launching import device_of

FLAT = 1024  # elements of a program
WIDEST = 512  # of a tile of GEGLU


@triton.jit
def _add(x_ptr, y_ptr, bias_ptr, out_ptr, count, channels, flat: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * flat + tl.arange(0, flat)
    inside = place < count
    x = tl.load(x_ptr + place, mask=inside, other=0.0).to(tl.float32)
    y = tl.load(y_ptr + place, mask=inside, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + place % channels, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + place, (x + y + bias).to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _quick_gelu(x_ptr, grad_ptr, out_ptr, count, backward: tl.constexpr, flat: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * flat + tl.arange(0, flat)
    inside = place < count
    x = tl.load(x_ptr + place, mask=inside, other=0.0).to(tl.float32)
    share = tl.sigmoid(1.702 * x)
    if backward:
        grad = tl.load(grad_ptr + place, mask=inside, other=0.0).to(tl.float32)
        out = grad * share * (1 + 1.702 * x * (1 - share))
    else:
        out = x * share
    tl.store(out_ptr + place, out.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _halves(both_ptr, count, width, lines: tl.constexpr, block: tl.constexpr):
    """Value and gate of a tile: (places of the values, of the result, which are there, both)."""
    row = tl.program_id(0).to(tl.int64) * lines + tl.arange(0, lines)[:, None]
    column = tl.program_id(1) * block + tl.arange(0, block)[None, :]
    place, inside = row * 2 * width + column, (row < count) & (column < width)
    value = tl.load(both_ptr + place, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(both_ptr + place + width, mask=inside, other=0.0).to(tl.float32)
    return place, row * width + column, inside, value, gate


@triton.jit
def _geglu(both_ptr, out_ptr, count, width, lines: tl.constexpr, block: tl.constexpr):
    _, place, inside, value, gate = _halves(both_ptr, count, width, lines, block)
    gelu = gate * 0.5 * (1 + tl.erf(gate * 0.7071067811865476))
    tl.store(out_ptr + place, (value * gelu).to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _geglu_backward(grad_ptr, both_ptr, out_ptr, count, width, lines: tl.constexpr, block: tl.constexpr):
    place, from_place, inside, value, gate = _halves(both_ptr, count, width, lines, block)
    grad = tl.load(grad_ptr + from_place, mask=inside, other=0.0).to(tl.float32)
    share = 0.5 * (1 + tl.erf(gate * 0.7071067811865476))
    slope = share + gate * tl.exp(-0.5 * gate * gate) * 0.3989422804014327
    tl.store(out_ptr + place, (grad * gate * share).to(out_ptr.dtype.element_ty), mask=inside)
    tl.store(out_ptr + place + width, (grad * value * slope).to(out_ptr.dtype.element_ty), mask=inside)


class _Geglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, both):
        out = both.new_empty((*both.shape[:-1], both.shape[-1] // 2))
        grid, sizes = _tiles(out)
        _geglu[grid](both, out, *sizes)
        ctx.save_for_backward(both)
        return out

    @staticmethod
    def backward(ctx, grad):
        (both,) = ctx.saved_tensors
        out = torch.empty_like(both)
        grid, sizes = _tiles(grad)
        _geglu_backward[grid](grad.contiguous(), both, out, *sizes)
        return out


class _QuickGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        out = torch.empty_like(x)
        _quick_gelu[_flat_grid(x)](x, x, out, x.numel(), False, FLAT)
        ctx.save_for_backward(x)
        return out

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        out = torch.empty_like(x)
        _quick_gelu[_flat_grid(x)](x, grad.contiguous(), out, x.numel(), True, FLAT)
        return out


class _AddBiased(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y, bias):
        out = torch.empty_like(x)
        _add[_flat_grid(x)](x, y, bias, out, x.numel(), x.shape[-1], FLAT)
        return out

    @staticmethod
    def backward(ctx, grad):
        return grad, grad, None


def geglu(both: Tensor) -> Tensor:
    """value * gelu(gate) (arXiv 2002.05202) of the halves of the last dimension: (..., 2 D), contiguous -> (..., D)."""
    with device_of(both):
        return _Geglu.apply(both)


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x), as CLIP's text encoder of Stable Diffusion 1.x has it; x contiguous, of any shape."""
    with device_of(x):
        return _QuickGelu.apply(x)


def add_biased(x: Tensor, y: Tensor, bias: Tensor) -> Tensor:
    """x + y + bias, rounded once. x, y: (images, rows, channels), contiguous; bias (channels,) gets no gradient."""
    with device_of(x):
        return _AddBiased.apply(x, y, bias)


def _flat_grid(x: Tensor) -> tuple[int]:
    return (triton.cdiv(x.numel(), FLAT),)


def _tiles(out: Tensor) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
    """Programs by rows and by columns; rows, width, and a tile's of both. Tiles that fill the width leave no thread
    idle: a width of 1,280 is five tiles of 256."""
    width = out.shape[-1]
    block = min(WIDEST, width & -width)
    if block < 64:
        block = min(WIDEST, triton.next_power_of_2(width))
    lines, count = max(1, FLAT // block), out.numel() // width
    return (triton.cdiv(count, lines), triton.cdiv(width, block)), (count, width, lines, block)
