"""A finished run of the tiny Stable Diffusion 1.5 to export, and a process that knows no cdiff to open the exports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_job import draw_pictures, words

STOCK = Path(__file__).with_name("stock.py")
PROMPT = "a <new1> dog on the beach"


@pytest.fixture(scope="session")
def run_folder(sd15_folder, tmp_path_factory) -> Path:
    """A run with large steps, so that what it learned shows in the pictures."""
    return train(tmp_path_factory.mktemp("exported"), sd15_folder)


def train(home: Path, base: Path, *more: str) -> Path:
    from cdiff.cli import main

    before = Path.cwd()
    os.chdir(home)
    try:
        job = [*words(base, draw_pictures(home / "pictures")), "concept.token=new1", "optimizer.learning_rate=5e-2"]
        assert main([*job, f"output={home / 'run'}", "images_per_prompt=1", *more]) == 0
    finally:
        os.chdir(before)
    return home / "run"


def export(run: Path, format: str, *more: str) -> Path:
    """The folder of an export."""
    from cdiff.cli import main

    folder = run / "export" / format
    if not folder.exists():
        assert main(["task=export", f"run={run}", f"format={format}", *more]) == 0
    return folder


def in_stock_process(jobs: dict, out: Path, peft: bool = True) -> dict:
    """Run stock.py on the jobs; returns name -> array of images (n, H, W, 3), 8 bits and float."""
    import numpy as np

    file = out / f"jobs-{peft}.json"
    file.write_text(json.dumps({"peft": peft, "jobs": jobs, "out": str(out / f"images-{peft}.npz")}))
    done = subprocess.run([sys.executable, str(STOCK), str(file)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(np.load(out / f"images-{peft}.npz"))
