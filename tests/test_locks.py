"""One process to a run's folder, however the one before it ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cdiff import locks
from cdiff.errors import UserError
from cdiff.locks import LOCK_FILE, RunLock, holder_of, is_alive, this_process

HOLD = (
    "import sys, time\nfrom pathlib import Path\nfrom cdiff.locks import RunLock\n"
    "lock = RunLock.acquire(Path(sys.argv[1]))\nprint('held', flush=True)\ntime.sleep(60)"
)


@pytest.fixture
def elsewhere(tmp_path):
    """Another process that holds the lock of tmp_path."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_living_holder_is_named_and_refused(tmp_path, elsewhere):
    with pytest.raises(UserError, match=f"is in use by process {elsewhere.pid}: wait for it, or stop it first"):
        RunLock.acquire(tmp_path)
    assert holder_of(tmp_path)["pid"] == elsewhere.pid


def test_a_killed_holder_leaves_nothing_in_the_way(tmp_path, elsewhere):
    elsewhere.kill()
    elsewhere.wait()
    assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == elsewhere.pid
    assert holder_of(tmp_path) is None
    RunLock.acquire(tmp_path).release()


def test_released_is_free_and_twice_in_one_process_is_refused(tmp_path):
    lock = RunLock.acquire(tmp_path)
    with pytest.raises(UserError, match=str(os.getpid())):
        RunLock.acquire(tmp_path)
    lock.release()
    assert holder_of(tmp_path) is None and (tmp_path / LOCK_FILE).read_text() == ""
    RunLock.acquire(tmp_path).release()


def test_a_dead_holders_number_that_another_process_has_today(tmp_path):
    """The number in the file is ours, which lives; the kernel's lock is free."""
    (tmp_path / LOCK_FILE).write_text(json.dumps(this_process() | {"process_started": "another boot/1"}))
    assert holder_of(tmp_path) is None
    assert not is_alive(this_process() | {"process_started": "another boot/1"}) and is_alive(this_process())


def test_a_holder_on_another_machine_counts_until_it_falls_silent(tmp_path):
    file = tmp_path / LOCK_FILE
    file.write_text(json.dumps({"pid": 7, "host": "node12", "process_started": None}))
    with pytest.raises(UserError, match=r"process 7 on node12.*after 90 s of silence"):
        RunLock.acquire(tmp_path)
    past = file.stat().st_mtime - locks.STALE_SECONDS - 1
    os.utime(file, (past, past))
    RunLock.acquire(tmp_path).release()


def test_a_file_system_without_locks_goes_by_the_number(tmp_path, monkeypatch):
    def none_here(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(locks.fcntl, "flock", none_here)
    lock = RunLock.acquire(tmp_path)
    with pytest.raises(UserError, match=f"process {os.getpid()}"):
        RunLock.acquire(tmp_path)
    lock.release()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / LOCK_FILE).write_text(json.dumps(this_process() | {"pid": dead.pid}))
    RunLock.acquire(tmp_path).release()


@pytest.mark.parametrize("content", ["", "no json", "[]", '{"pid": "x"}', '{"pid": 1e99}', '{"host": 5}'])
def test_a_lock_file_of_nonsense_is_taken_over(tmp_path, content):
    (tmp_path / LOCK_FILE).write_text(content.replace("5", json.dumps(locks.socket.gethostname())))
    past = 1_000_000_000
    os.utime(tmp_path / LOCK_FILE, (past, past))
    RunLock.acquire(Path(tmp_path)).release()


def test_the_holder_gives_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "BEAT_SECONDS", 0.01)
    lock = RunLock.acquire(tmp_path)
    file = tmp_path / LOCK_FILE
    os.utime(file, (1_000_000_000, 1_000_000_000))
    for _ in range(500):
        if file.stat().st_mtime > 1_000_000_001:
            break
        lock._over.wait(0.01)
    assert file.stat().st_mtime > 1_000_000_001
    lock.release()
