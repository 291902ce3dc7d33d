"""One process to a run's folder: a lock that dies with its process, on this machine or on another.

The kernel's lock on RUN/.lock decides between processes of one machine: it ends with the process, however that ends,
so a dead holder's number that another process has today deceives nobody. For a file system shared by machines, and
for one without such locks, the file also says who holds it, and its time is renewed while the holder lives.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from cdiff.errors import UserError

LOCK_FILE = ".lock"
BEAT_SECONDS = 15.0
STALE_SECONDS = 90.0  # without a beat: the holder on another machine is dead


def this_process() -> dict[str, Any]:
    """What tells this process from every other, also from a later one with its number."""
    return {"pid": os.getpid(), "host": socket.gethostname(), "process_started": _started(os.getpid())}


def is_alive(process: dict[str, Any]) -> bool:
    """Whether the process that `this_process` described lives. Of another machine nothing is known: True."""
    if process.get("host") != socket.gethostname():
        return True
    try:
        pid = int(process["pid"])
        os.kill(pid, 0)
    except (ProcessLookupError, KeyError, TypeError, ValueError, OverflowError):
        return False
    except PermissionError:
        pass
    started = process.get("process_started")
    return started is None or _started(pid) in (None, started)


def _started(pid: int) -> str | None:
    """The boot and the clock tick at which a process began; None where the system does not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[19]}"
    except (OSError, IndexError):
        return None


class RunLock:
    """The lock of a run's folder, held by this process until `release` or its death."""

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self._over = threading.Event()
        threading.Thread(target=self._beat, daemon=True, name="run-lock").start()

    @classmethod
    def acquire(cls, folder: Path) -> RunLock:
        """Take the lock; one that a dead process left is taken over.

        Raises:
            UserError: a living process has it.
            OSError: the folder can't be written.
        """
        handle = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            holder = _holder(handle, folder)
            if holder is not None:
                time.sleep(0.2)  # another process may only have looked (holder_of)
                holder = _holder(handle, folder)
            if holder is not None:
                raise UserError(_refused(folder, holder))
            os.ftruncate(handle, 0)
            os.pwrite(handle, (json.dumps(this_process()) + "\n").encode(), 0)
            os.fsync(handle)
        except BaseException:
            os.close(handle)
            raise
        return cls(handle)

    def release(self) -> None:
        """Give the lock back. The file stays, empty: removing it could take a lock from whoever opened it meanwhile."""
        self._over.set()
        handle, self._handle = self._handle, -1
        if handle >= 0:
            with contextlib.suppress(OSError):
                os.ftruncate(handle, 0)
            os.close(handle)

    def _beat(self) -> None:
        while not self._over.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(self._handle)


def holder_of(folder: Path) -> dict[str, Any] | None:
    """The living process that holds the lock of a run's folder; None where nobody does."""
    try:
        handle = os.open(folder / LOCK_FILE, os.O_RDONLY)
    except OSError:
        return None
    try:
        return _holder(handle, folder)
    finally:
        os.close(handle)


def _holder(handle: int, folder: Path) -> dict[str, Any] | None:
    """Who else holds the lock of an open lock file. On None this handle has it, where the system has such locks."""
    noted = _noted(handle)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return noted or {"pid": "unknown"}
        return noted if noted and is_alive(noted) else None  # no such locks here: the number decides
    if not noted or noted.get("host") == socket.gethostname():
        return None  # the kernel would have kept it for a living process of this machine
    return noted if _silence(handle, folder) < STALE_SECONDS else None


def _noted(handle: int) -> dict[str, Any] | None:
    try:
        noted = json.loads(os.pread(handle, 10_000, 0))
    except ValueError:
        return None
    return noted if isinstance(noted, dict) else None


def _silence(handle: int, folder: Path) -> float:
    """Seconds since the last beat, by the clock of the file system: machines' own clocks differ."""
    last = os.fstat(handle).st_mtime
    try:
        with tempfile.TemporaryFile(dir=folder) as now:
            return os.fstat(now.fileno()).st_mtime - last
    except OSError:
        return 0.0


def _refused(folder: Path, holder: dict[str, Any]) -> str:
    host = holder.get("host")
    elsewhere = host not in (None, socket.gethostname())
    where = f" on {host}" if elsewhere else ""
    wait = f"; if it is dead, its lock ends after {STALE_SECONDS:.0f} s of silence" if elsewhere else ""
    return f"The run {folder} is in use by process {holder.get('pid')}{where}: wait for it, or stop it first{wait}."
