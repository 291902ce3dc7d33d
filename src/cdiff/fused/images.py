"""Pictures of features (N, C, H, W), channels_last, as rows of channels and back; norms of them."""

from __future__ import annotations

from torch import Tensor, nn


def as_rows(x: Tensor) -> Tensor:
    """(N, C, H, W) or (N, C, L) -> (N, rows, C); no copy where the channels lie together."""
    rows = x.flatten(2).transpose(1, 2) if x.ndim == 3 else x.permute(0, 2, 3, 1).flatten(1, 2)
    return rows.contiguous()


def as_image(rows: Tensor, like: Tensor) -> Tensor:
    return rows.transpose(1, 2).unflatten(2, like.shape[2:]) if like.ndim == 4 else rows.transpose(1, 2)


def norm_of(norm: nn.GroupNorm, x: Tensor, shift: Tensor | None, silu: bool) -> tuple[Tensor, Tensor]:
    """x, and the norm of x + shift (N, C): kernels.group_norm."""
    from cdiff.fused import kernels

    sizes = (norm.num_groups, norm.eps, silu)
    kept, normed = kernels.group_norm(as_rows(x), shift, norm.weight, norm.bias, *sizes)
    return as_image(kept, x), as_image(normed, x)
