"""Files that are whole or not there, and words for what a disk refuses.

Imports nothing heavy: the command line reads this module to tell what went wrong.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cdiff.errors import UserError

MOST_JSON = 64 * 2**20  # bytes of a JSON file that is read at all
REFUSALS = {  # errno -> what happened, what to do
    errno.ENOSPC: ("the disk is full", "free some space"),
    errno.EDQUOT: ("the disk quota is used up", "free some space or ask for more"),
    errno.EFBIG: ("a file grew past the limit of this process", "raise it with `ulimit -f unlimited`"),
    errno.EROFS: ("the file system is read-only", "choose another folder with output=DIR"),
    errno.EACCES: ("permission denied", "choose a folder that you may write, with output=DIR"),
    errno.EPERM: ("the operation is not permitted", "choose a folder that you may write, with output=DIR"),
    errno.EMFILE: ("too many files are open in this process", "raise the limit with `ulimit -n 4096`"),
    errno.ENFILE: ("too many files are open on this machine", "close other programs"),
    errno.EIO: ("the disk reports an error", "check the disk, or choose another one with output=DIR"),
    errno.ESTALE: ("the network file system lost the file", "mount it again"),
    errno.ENOTCONN: ("the network file system is not connected", "mount it again"),
}
SAID_BY_OTHERS = re.compile(r"\(os error (\d+)\)|\[Errno (\d+)\]")  # Rust's libraries; texts of wrapped errors


def refusal(error: BaseException, folder: Path | None = None) -> str | None:
    """One sentence for an error whose cause, however deep, is the disk or a limit of the process; else None.

    folder: where the process was writing, for errors that name no file.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        number = _number(error)
        if number in REFUSALS:
            what, remedy = REFUSALS[number]
            file = getattr(error, "filename", None) or folder
            where = f" ({file})" if isinstance(file, str | Path) else ""
            return f"Stopped because {what}{where}: {remedy}."
        error = error.__cause__ or error.__context__
    return None


def _number(error: BaseException) -> int | None:
    if isinstance(error, OSError) and error.errno in REFUSALS:
        return error.errno
    text = str(error)
    if found := SAID_BY_OTHERS.search(text):
        return int(found[1] or found[2])
    return next((number for number in REFUSALS if os.strerror(number) in text), None)


def as_os_error(error: Exception) -> OSError | None:
    """What a library of tensors says of the disk, as an OSError; None when it speaks of something else."""
    number = _number(error)
    found = SAID_BY_OTHERS.search(str(error))
    number = number or (int(found[1] or found[2]) if found else None)
    return OSError(number, os.strerror(number)) if number else None


def fsync(path: Path) -> None:
    """Flush a file or a folder's entries to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder` to write into; at the end it is flushed and renamed to it.

    A folder that is there already is replaced at the end. After an error or a signal nothing of it is left; after a
    kill, a hidden folder `.NAME-*.partial` (see `sweep_partial`). The parent must exist.
    """
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", suffix=".partial", dir=folder.parent))
    try:
        os.chmod(partial, 0o777 & ~_umask())  # mkdtemp makes it private
        yield partial
        for path in partial.iterdir():
            os.chmod(path, 0o666 & ~_umask())  # safetensors makes its files private
            fsync(path)
        fsync(partial)
        _put_in_place(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def sweep_partial(parent: Path) -> None:
    """Remove what killed processes left of folders that were being written."""
    for left in [*parent.glob(".*.partial"), *parent.glob(".*.old")]:
        shutil.rmtree(left, ignore_errors=True)


def _put_in_place(partial: Path, folder: Path) -> None:
    """Rename the finished folder to its name; a rename can't replace a full folder, so an old one steps aside."""
    old = partial.with_suffix(".old")
    if folder.exists():
        os.rename(folder, old)
    try:
        os.rename(partial, folder)
    except BaseException:
        if old.exists():
            os.rename(old, folder)
        raise
    fsync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def atomic_write(file: Path, text: str) -> None:
    """Write beside, flush to disk, rename: a reader sees the old file or the new one, never half of it."""
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(name, 0o644)
        os.replace(name, file)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def read_json(file: Path) -> Any:
    """What a JSON file of anybody's holds.

    Raises:
        UserError: it is missing, unreadable, too large, too deep or no JSON.
    """
    try:
        if file.stat().st_size > MOST_JSON:
            raise ValueError(f"it is larger than {MOST_JSON >> 20} MB")
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{file} is not readable JSON: {reason}.") from error
    except RecursionError as error:
        raise UserError(f"{file} is not readable JSON: it is nested too deeply.") from error


def inside(path: Path, folder: Path) -> bool:
    """Whether a path, its links followed, stays below `folder` (or is a link of the hub's cache into its own blobs)."""
    root, real = folder.resolve(), path.resolve()
    if real.is_relative_to(root):
        return True
    snapshots = next((parent for parent in (root, *root.parents) if parent.parent.name == "snapshots"), None)
    return snapshots is not None and real.is_relative_to(snapshots.parent.parent / "blobs")
