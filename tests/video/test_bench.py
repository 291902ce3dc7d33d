"""experiments/video/bench.py, at tiny width on the CPU."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "experiments" / "video" / "bench.py"


def test_the_bench_measures_and_writes(tmp_path):
    short = ["--tiny", "--device", "cpu", "--frames", "3", "--steps", "2", "--repeats", "3", "--out", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *short],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode in (0, 1), done.stderr  # 1: slower than asked, which so short a run may be
    found = json.loads((tmp_path / "bench.json").read_text())
    for way, seconds in found["seconds"].items():
        assert len(seconds) == 3 and found["median_seconds"][way] == statistics.median(seconds)
        ratio = found["median_seconds"][way] / found["median_seconds"]["stock"]
        assert abs(found["of_stock"][way] - ratio) < 1e-3
    assert found["largest_difference"] == 0  # in fp32 the frames are the same
    assert done.returncode == int(found["of_stock"]["cdiff"] > 1.1)
    page = (tmp_path / "bench.md").read_text()
    assert f"| cdiff | {found['median_seconds']['cdiff']:.3f} |" in page and found["date"] in page
    assert found["versions"]["diffusers"] in page and "64 px" in page
