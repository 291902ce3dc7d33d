"""What all kernels need to be started."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
from torch import Tensor

INTERPRETED = triton.knobs.runtime.interpret  # TRITON_INTERPRET=1: on a CPU, slowly, for tests


def device_of(x: Tensor) -> AbstractContextManager:
    """Triton launches on the current GPU, which device=cuda:1 need not be. Autograd sees to the backward pass."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
