"""When a fused layer's kernels apply."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def runs_on(x: Tensor) -> bool:
    """On a GPU, or on a CPU in Triton's interpreter."""
    if x.is_cuda:
        return True
    from cdiff.fused import kernels

    return kernels.INTERPRETED


def trains(module: nn.Module) -> bool:
    return torch.is_grad_enabled() and any(parameter.requires_grad for parameter in module.parameters())


def bare(layer: nn.Module | None) -> bool:
    """A linear layer without a bias that nothing has wrapped."""
    return type(layer) is nn.Linear and layer.bias is None
