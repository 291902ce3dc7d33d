"""A disk that is full, read-only, limited or gone: one sentence, nothing claims to be done, no state is lost."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from tiny_world import assert_same_bits, environment, status

from cdiff.checkpoint import newest
from cdiff.cli import main
from cdiff.finding import find_run
from cdiff.runs import Run


@contextlib.contextmanager
def limited(what: int, soft: int):
    before = resource.getrlimit(what)
    resource.setrlimit(what, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(what, before)


def assert_not_done(run: Path) -> None:
    """Nothing of the run looks finished, and it is known that nobody works on it."""
    assert not (run / "adapter").exists()
    assert status(run)["status"] in ("failed", "running") and not Run(run).is_live()


def assert_goes_on(run: Path, whole: Path) -> None:
    assert main(["task=train", f"resume={run}"]) == 0
    assert_same_bits(run, whole)
    assert find_run(run).status == "done"


def test_a_limit_on_file_size(stopped, whole, refused):
    with limited(resource.RLIMIT_FSIZE, 100_000):  # a checkpoint's moments are 145 kB
        refused(["task=train", f"resume={stopped}"], "a file grew past the limit", "ulimit -f")
    assert_not_done(stopped)
    assert status(stopped)["status"] == "failed" and status(stopped)["resumable"]
    assert newest(stopped / "checkpoints").step == 12 and not list(stopped.glob("checkpoints/.*"))
    assert_goes_on(stopped, whole)


def test_a_full_disk_in_a_checkpoint(stopped_once, whole, refused, tmpfs):
    small = tmpfs(700)
    run = Path(shutil.copytree(stopped_once, small / "run"))  # two checkpoints of 235 kB: a third does not fit
    refused(["task=train", f"resume={run}"], "the disk is full", "free some space")
    assert_not_done(run)
    assert newest(run / "checkpoints").step == 12 and not list(run.glob("checkpoints/.*"))
    tmpfs(5000)
    assert_goes_on(run, whole)


def test_a_disk_that_is_full_to_the_last_byte(stopped_once, whole, refused, tmpfs, at_step):
    """Not even run.json can be written: it still says running, by a process that is dead."""
    run = Path(shutil.copytree(stopped_once, tmpfs(3000) / "run"))

    def fill(_):
        with contextlib.suppress(OSError), (run.parent / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    at_step(13, fill)
    refused(["task=train", f"resume={run}"], "the disk is full")
    assert_not_done(run)
    (run.parent / "filler").unlink()
    assert_goes_on(run, whole)


def test_a_new_run_on_a_full_disk(job, refused, tmpfs):
    small = tmpfs(100)
    with contextlib.suppress(OSError), (small / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    refused([*job, f"output={small}/run"], "No space left on device", "output=DIR")
    assert not list(small.glob("**/run.json"))


def test_a_disk_that_is_read_only(stopped_once, whole, refused, tmpfs):
    run = Path(shutil.copytree(stopped_once, tmpfs(5000) / "run"))
    tmpfs(5000, "ro")
    refused(["task=train", f"resume={run}"], "Read-only file system", "output=DIR")
    tmpfs(5000, "rw")
    assert newest(run / "checkpoints").step == 12
    assert_goes_on(run, whole)


@pytest.mark.parametrize(
    "number, said, remedy",
    [
        (errno.EROFS, "the file system is read-only", "output=DIR"),
        (errno.EDQUOT, "the disk quota is used up", "free some space or ask for more"),
        (errno.EIO, "the disk reports an error", "output=DIR"),
        (errno.ESTALE, "the network file system lost the file", "mount it again"),
    ],
    ids=["read-only", "quota", "broken", "network"],
)
def test_a_disk_that_refuses_from_a_step_on(stopped, whole, refused, at_step, monkeypatch, number, said, remedy):
    """By the kernel's own numbers: neither a mount with open files turns read-only by hand, nor has root a quota."""

    def refuse(*_, **__):
        raise OSError(number, os.strerror(number), str(stopped))

    with monkeypatch.context() as patch:
        at_step(13, lambda _: [patch.setattr(tempfile, name, refuse) for name in ("mkdtemp", "mkstemp")])
        refused(["task=train", f"resume={stopped}"], said, remedy)
    assert_not_done(stopped)
    assert newest(stopped / "checkpoints").step == 12
    assert_goes_on(stopped, whole)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_the_right_to_write(stopped, refused):
    stopped.chmod(0o555)
    refused(["task=train", f"resume={stopped}"], "Permission denied")
    stopped.chmod(0o755)


def test_a_folder_that_is_deleted_while_it_works(stopped, refused, at_step):
    at_step(13, lambda _: shutil.rmtree(stopped))
    refused(["task=train", f"resume={stopped}"], "is gone: it was deleted or renamed", stopped.name)
    assert not stopped.exists(), "the folder was made again"


def test_checkpoints_that_are_deleted_while_it_works(stopped, whole, at_step):
    at_step(13, lambda _: shutil.rmtree(stopped / "checkpoints"))
    assert main(["task=train", f"resume={stopped}"]) == 0
    assert_same_bits(stopped, whole)


def test_no_file_descriptor_is_left(stopped, whole, refused, at_step):
    before, held = resource.getrlimit(resource.RLIMIT_NOFILE), []

    def use_up(_):
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(before[0], 300), before[1]))
        with contextlib.suppress(OSError):
            while True:
                held.append(os.open(os.devnull, os.O_RDONLY))

    at_step(13, use_up)
    try:
        refused(["task=train", f"resume={stopped}"], "too many files are open", "ulimit -n")
    finally:
        for handle in held:
            os.close(handle)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert_not_done(stopped)
    assert newest(stopped / "checkpoints").step == 12
    assert_goes_on(stopped, whole)


def test_the_true_command_under_limits(job, tmp_path):
    """In processes of their own, limited from the start."""
    line = [sys.executable, "-m", "cdiff", *job]
    for flag, value, words in (("-f", "60", ("ulimit -f",)), ("-n", "6", ("ulimit -n", "Too many open files"))):
        shell = f'ulimit {flag} {value}; exec "$@"'
        done = subprocess.run(
            ["bash", "-c", shell, "bash", *line, f"output={tmp_path}/run{flag}"],
            capture_output=True, text=True, env=environment(), timeout=120, cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode not in (0, 1), done.stderr
        assert "Traceback" not in done.stderr and any(word in done.stderr for word in words), done.stderr
        run = tmp_path / f"run{flag}"
        assert not (run / "adapter").exists()
        if (run / "run.json").exists():
            assert status(run)["status"] != "done"
