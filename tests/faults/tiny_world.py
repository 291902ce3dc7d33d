"""Settings of the fault harness: the true command line on the tiny model, a run of seconds, and what must be equal."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import zip_longest
from pathlib import Path

from tiny_job import plain_environment, words

STEPS = 24
COLUMNS = "200"
SETTINGS = (f"train.steps={STEPS}", "train.log_every=1", "train.then=[]", "augment.views=6", "checkpoints.every=2")
TIMING = ("time", "images_per_second")


def command(model: Path, pictures: Path, *more: str) -> list[str]:
    """A training of STEPS steps from the shell."""
    return [sys.executable, "-m", "cdiff", *words(model, pictures), *SETTINGS, *more]


def environment(**more: str) -> dict[str, str]:
    return plain_environment(COLUMNS=COLUMNS, **more)


def start(line: list[str], home: Path, **options) -> subprocess.Popen:
    """A process of the command line in the folder `home`; what it says goes to pipes."""
    return subprocess.Popen(
        line,
        cwd=home,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def scalars(run: Path) -> list[dict]:
    """What a run has logged, without its times. A torn last line, of a process killed in the act, is left out."""
    rows = []
    for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            row = json.loads(line)
            if row["event"] == "scalars":
                rows.append({name: value for name, value in row.items() if name not in TIMING})
    return rows


def losses(run: Path) -> list[dict]:
    """The scalars of training steps, without those of the drift probes."""
    return [row for row in scalars(run) if "loss/total" in row]


def assert_same_bits(run: Path, whole: Path, logs: bool = True) -> None:
    """The adapter of `run` is that of `whole` bit by bit, and with `logs` so is every scalar; else says what is not."""
    if logs:
        pairs = zip_longest(scalars(run), scalars(whole))
        differing = next(((number, pair) for number, pair in enumerate(pairs) if pair[0] != pair[1]), None)
        assert differing is None, f"{run}: row {differing[0]} of the log is {differing[1][0]}, not {differing[1][1]}"
    files = [{f.name: f.read_bytes() for f in (folder / "adapter").glob("*.safetensors")} for folder in (run, whole)]
    assert files[0].keys() == files[1].keys() and files[0], run
    assert (unlike := [name for name in files[0] if files[0][name] != files[1][name]]) == [], f"{run}: {unlike}"


def status(run: Path) -> dict:
    return json.loads((run / "run.json").read_text(encoding="utf-8"))
