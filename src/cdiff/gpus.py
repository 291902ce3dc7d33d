"""One GPU to each worker process of a host: whoever starts a job there takes one that is free and keeps it."""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path
from typing import IO

log = logging.getLogger("cdiff")

_held: tuple[str, IO] | None = None  # the GPU of this process, and the open file whose lock says so


def visible() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]  # asks the driver; starts nothing on a GPU


def claim() -> str | None:
    """Take a GPU for this process, as long as it lives, and hide the others; null where there are not several.

    Must come before the process uses a GPU. The claim is a lock on a file that all sweeps of the user on this host
    share, so it ends with the process, however that ends.
    """
    global _held
    if _held is not None:
        return _held[0]
    names = visible()
    if len(names) < 2:
        return None
    try:
        import fcntl
    except ImportError:  # no such locks on this system
        return None
    folder = Path(tempfile.gettempdir()) / f"cdiff-gpus-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    for name in names:
        stream = (folder / f"{name.replace('/', '_')}.lock").open("w")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            stream.close()
            continue
        _held = (name, stream)
        os.environ["CUDA_VISIBLE_DEVICES"] = name
        return name
    log.warning("all %d GPUs are taken by other workers: this job shares GPU %s", len(names), names[0])
    return None
