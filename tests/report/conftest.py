"""A sweep that was truly run, on the tiny Stable Diffusion 1.5, with a job that failed and folders of others."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from fake_scorer import FakeScorer
from tiny_job import draw_pictures, words


@pytest.fixture(scope="session")
def sweep(sd15_folder, tmp_path_factory) -> Path:
    """outputs/sweeps/study: two weights, two seeds, validation, evaluation, probes; one more job that is dead."""
    from cdiff.cli import main
    from cdiff.evaluation import evaluating

    home = tmp_path_factory.mktemp("study")
    before, opened = Path.cwd(), evaluating.open_metrics
    os.chdir(home)
    evaluating.open_metrics = lambda *_: [FakeScorer()]
    try:
        job = [*words(sd15_folder, draw_pictures(home / "pictures")), "train.log_every=1", "train.then=[evaluate]"]
        protocol = ["protocol.prompts=['a {} on the beach','a red {}']", "protocol.live=[]", "evaluate.resamples=200"]
        probes = ["validation.every=2", "validation.steps=2", "probes.every=1", "probes.attention=true"]
        swept = ["loss.spl_weight=0,10", "seed=1,2", "name=study"]
        assert main(["-m", *job, *protocol, *probes, *swept]) == 0
    finally:
        os.chdir(before)
        evaluating.open_metrics = opened
    folder = home / "outputs" / "sweeps" / "study"
    dead = folder / "4-loss.spl_weight=0,seed=3"
    dead.mkdir()
    info = json.loads((folder / "0-loss.spl_weight=0,seed=1" / "run.json").read_text())
    (dead / "run.json").write_text(json.dumps(info | {"status": "running", "pid": 2**22 + 1}))
    (folder / "notes").mkdir()
    (folder / "notes" / "ideas.txt").write_text("none")
    (folder / "7-broken").mkdir()
    (folder / "7-broken" / "run.json").write_text("{")
    return folder
