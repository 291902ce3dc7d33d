"""The folder an export writes: beside its place and renamed when it is whole, never over one that is there."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cdiff.errors import UserError


def refuse_existing(target: Path) -> None:
    """Raises UserError when something is at `target` already."""
    if os.path.lexists(target):
        raise UserError(f"{target} exists already and is left as it is: remove it, or say export.folder=DIR.")


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to write into. It becomes `target` when the block ends, and is removed when the block fails.

    Raises:
        UserError: `target` exists, or its place can't be written.
    """
    refuse_existing(target)
    partial = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}-", suffix=".partial", dir=target.parent))
        yield partial
        partial.chmod(0o755)  # mkdtemp makes it private
        refuse_existing(target)
        partial.rename(target)
    except OSError as error:
        raise UserError(f"The export can't be written to {target}: {error.strerror or error}.") from error
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
