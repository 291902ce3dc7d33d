"""Settings of the fault harness: the true command line on the tiny model, a run of seconds, and what must be equal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tiny_job import words

STEPS = 24
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "COLUMNS": "200"}
SETTINGS = (f"train.steps={STEPS}", "train.log_every=1", "train.then=[]", "augment.views=6", "checkpoints.every=2")
TIMING = ("time", "images_per_second")


def command(model: Path, pictures: Path, *more: str) -> list[str]:
    """A training of STEPS steps from the shell."""
    return [sys.executable, "-m", "cdiff", *words(model, pictures), *SETTINGS, *more]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, **ENVIRONMENT, **more}


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


def adapter_bytes(run: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (run / "adapter").glob("*.safetensors")}


def status(run: Path) -> dict:
    return json.loads((run / "run.json").read_text(encoding="utf-8"))
