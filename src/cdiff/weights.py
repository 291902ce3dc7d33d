"""Weight files on their way to a device: fetched ahead, read as they are stored, converted where they go."""

from __future__ import annotations

import contextlib
import itertools
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn


def read_ahead(folder: Path) -> None:
    """Let the system fetch the files of all parts while the first is built; where it can't, nothing is lost."""
    if not hasattr(os, "posix_fadvise"):
        return
    for file in folder.glob("*/*.safetensors"):
        with contextlib.suppress(OSError):
            handle = os.open(file, os.O_RDONLY)
            try:
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(handle)


def stored_dtype(part: Path, variant: str | None) -> torch.dtype | None:
    """The precision of a part's weights on disk, from the header of a file; None where it can't be told."""
    files = sorted(part.glob(f"*.{variant}*.safetensors" if variant else "*.safetensors"))
    try:
        with safe_open(files[0], "pt") as weights:
            return weights.get_tensor(next(iter(weights.keys()))).dtype
    except (IndexError, OSError, SafetensorError, StopIteration):
        return None  # who loads the part says what is wrong with it


@torch.no_grad()
def place(model: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Move weights to a device tensor by tensor, and convert them there: what was mapped from a file is read once, and
    a GPU converts faster than a CPU."""
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        moved = tensor.data.to(device)
        tensor.data = moved.to(dtype) if moved.is_floating_point() else moved
