"""Weights that lie one behind the other in memory, so that several layers' products of one input are one product.

The layers keep their own parameters, which are views; nothing is stored twice, and nothing breaks where something
replaces one of them: `joined` looks whether they still lie so.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def join(tensors: Sequence[Tensor], dtype: torch.dtype) -> None:
    """Move the data of tensors behind one another, in `dtype`."""
    if not tensors:
        return
    flat = torch.empty(sum(tensor.numel() for tensor in tensors), dtype=dtype, device=tensors[0].device)
    start = 0
    for tensor in tensors:
        part = flat[start : start + tensor.numel()].view(tensor.shape)
        start += tensor.numel()
        part.copy_(tensor.data)
        tensor.data = part


def joined(tensors: Sequence[Tensor]) -> Tensor | None:
    """Tensors (n_i, ...) as one (sum of n_i, ...) over the same memory, without a gradient; None where they don't lie
    one behind the other."""
    first = tensors[0]
    memory, place = first.untyped_storage().data_ptr(), first.storage_offset()
    for tensor in tensors:
        alike = tensor.dtype == first.dtype and tensor.shape[1:] == first.shape[1:] and tensor.is_contiguous()
        if not alike or tensor.untyped_storage().data_ptr() != memory or tensor.storage_offset() != place:
            return None
        place += tensor.numel()
    shape = (sum(len(tensor) for tensor in tensors), *first.shape[1:])
    return first.detach().as_strided(shape, first.stride(), first.storage_offset())
