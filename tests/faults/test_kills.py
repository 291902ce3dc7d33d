"""The true command line is killed at random moments and resumed: every logged loss and the adapter stay the same bits.

A run is killed again and again, each time by a new process, until it is left to end. After each kill what was logged
so far must be the beginning of what the uninterrupted run logged, so each kill is judged by itself.
"""

from __future__ import annotations

import random
import resource
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tiny_job import draw_pictures
from tiny_world import STEPS, assert_same_bits, command, losses, scalars, start, status

from cdiff.cli import main
from cdiff.runs import Run

CHAINS, KILLS = 3, 10  # runs, and kills of each
PATIENCE = 120.0  # seconds for one process on a busy machine
WHEN = ("step", "step", "writing", "writing", "early")  # chosen at random


@pytest.fixture(scope="module")
def home(tmp_path_factory, sd15_folder):
    """A folder with pictures and one run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("kills")
    pictures = draw_pictures(folder / "pictures")
    process = start(command(sd15_folder, pictures, "output=whole"), folder)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    assert len(losses(folder / "whole")) == STEPS
    return folder


def wait_for(process, ready, patience: float = PATIENCE) -> bool:
    """Whether `ready()` came true before the process ended. Looks often: the moments meant here are short."""
    until = time.monotonic() + patience
    while process.poll() is None:
        if ready():
            return True
        assert time.monotonic() < until, "the process hangs"
        time.sleep(0.001)
    return False


def kill_at_random(process, run: Path, dice: random.Random) -> str:
    """SIGKILL at a moment of a random kind; returns which."""
    when = dice.choice(WHEN)
    logged = len(scalars(run)) if (run / "events.jsonl").exists() else 0
    if when == "early":  # while it loads and encodes, or before it took the run up
        time.sleep(dice.uniform(0.0, 6.0))
    elif when == "step":
        target = min(logged + dice.randint(1, 3), STEPS)
        wait_for(process, lambda: (run / "events.jsonl").exists() and len(scalars(run)) >= target)
        time.sleep(dice.uniform(0.0, 0.05))
    else:
        wait_for(process, lambda: any(run.glob("checkpoints/.*.partial")))
        time.sleep(dice.uniform(0.0, 0.01))
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=PATIENCE)
    return when if process.returncode == -signal.SIGKILL else "ended"


def begin_or_resume(run: Path, name: str) -> list[str]:
    """The words that start the run, or resume it where it got as far as its settings."""
    if (run / "config.yaml").exists():
        return [f"resume={run}"]
    if run.exists():  # killed while its folder was made: it never was a run
        run.rename(run.with_name(f"{run.name}-{name}"))
    return [f"output={run}"]


def chain(home: Path, model: Path, number: int) -> dict[str, int]:
    """Kill one run KILLS times and let it end; returns how many kills of which kind fell, `partial`: in a write."""
    dice, run = random.Random(f"{number}"), home / f"killed-{number}"
    whole = scalars(home / "whole")
    counts: dict[str, int] = {}
    for kill in range(KILLS):
        more = begin_or_resume(run, f"unborn-{kill}")
        before = {path.name for path in run.glob("checkpoints/.*.partial")}
        kind = kill_at_random(start(command(model, home / "pictures", *more), home), run, dice)
        counts[kind] = counts.get(kind, 0) + 1
        left = {path.name for path in run.glob("checkpoints/.*.partial")}
        counts["partial"] = counts.get("partial", 0) + len(left - before)
        if (run / "events.jsonl").exists():
            assert scalars(run) == whole[: len(scalars(run))], f"run {number} after {counts}"
        if (run / "run.json").exists():
            assert status(run)["status"] == "running" and not Run(run).is_live()
    process = start(command(model, home / "pictures", *begin_or_resume(run, "unborn")), home)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    assert_same_bits(run, home / "whole")
    assert status(run)["status"] == "done"
    return counts


def children() -> float:
    """CPU seconds of the processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_thirty_kills_and_every_bit_is_the_same(home, sd15_folder, capsys):
    began, before = time.monotonic(), children()
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda number: chain(home, sd15_folder, number), range(CHAINS)))
    killed = sum(count for counts in found for kind, count in counts.items() if kind not in ("partial", "ended"))
    written = sum(counts.get("partial", 0) for counts in found)
    with capsys.disabled():
        seconds = f"{time.monotonic() - began:.0f} s, {children() - before:.0f} s of CPU"
        print(f"\n{killed} kills ({written} in a checkpoint's writing) in {seconds}: {found}")
    assert killed == CHAINS * KILLS, f"some process ended before its kill: {found}"
    assert written >= 3, "too few kills fell into the writing of a checkpoint"


def stop_at(process, run: Path, steps: int, number: signal.Signals) -> tuple[int, str, str]:
    """Send one signal once the run has logged so many steps; exit code and what it said."""
    assert wait_for(process, lambda: (run / "events.jsonl").exists() and len(scalars(run)) >= steps)
    process.send_signal(number)
    said, errors = process.communicate(timeout=PATIENCE)
    return process.returncode, said, errors


def test_a_second_process_on_a_run_is_refused(home, sd15_folder, capfd):
    run = home / "shared"
    process = start(command(sd15_folder, home / "pictures", "output=shared"), home)
    assert wait_for(process, lambda: (run / "events.jsonl").exists())
    assert main(["task=train", f"resume={run}"]) == 2
    assert f"is in use by process {process.pid}: wait for it, or stop it first" in capfd.readouterr().err
    process.kill()
    process.communicate(timeout=PATIENCE)
    process = start(command(sd15_folder, home / "pictures", "resume=shared"), home)
    assert process.communicate(timeout=PATIENCE)[1] == "" and process.returncode == 0
    assert_same_bits(run, home / "whole")


def test_a_first_signal_saves_and_exits_0_with_a_hint(home, sd15_folder):
    run, words = home / "stopped", ["output=stopped", "checkpoints.every=0"]
    steps = 0
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        code, said, errors = stop_at(
            start(command(sd15_folder, home / "pictures", *words), home), run, steps + 2, number
        )
        assert code == 0 and errors == "", errors
        info = status(run)
        steps = int(info["checkpoint"].removeprefix("step-"))
        assert (info["status"], info["resumable"]) == ("interrupted", True) and number.name in info["reason"]
        assert f"Stopped by {number.name} at step {steps} and saved. Go on with: " in said
        assert "python -m cdiff task=train resume=stopped" in said
        assert len(losses(run)) == steps, "the step was not finished"
        words = ["resume=stopped", "checkpoints.every=0"]
    process = start(command(sd15_folder, home / "pictures", *words), home)
    assert process.communicate(timeout=PATIENCE)[1] == "" and process.returncode == 0
    assert_same_bits(run, home / "whole")
