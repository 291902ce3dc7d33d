"""The weight x step grid of a sweep: one validation prompt, the same noise in every cell.

    python experiments/weight_step/grid.py outputs/sweeps/weight_step experiments/weight_step/grid.jpg --word headphones

Rows are the jobs in their order, columns the steps.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from cdiff.grids import grid
from cdiff.report.study import read_pictures
from cdiff.sweep_folder import job_runs


def cell(folder: Path, word: str) -> Path:
    """The first validation image of a step whose prompt has the word."""
    return next(picture.file for picture in read_pictures(folder) if word in picture.prompt)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sweep", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--word", default="headphones", help="of the prompt that is shown")
    parser.add_argument("--steps", type=int, nargs="+", default=[0, 250, 500, 1000, 1500, 2000])
    given = parser.parse_args()
    runs = [run.folder for run in job_runs(given.sweep)[0]]
    files = [cell(run / "validation" / f"step-{step:06d}", given.word) for run in runs for step in given.steps]
    steps = ", ".join(map(str, given.steps))
    labels = [f"{run.name.partition('-')[2]}, after {steps} steps" for run in runs]
    sheet = grid([Image.open(file).convert("RGB") for file in files], len(given.steps), labels)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(given.out, quality=85)


if __name__ == "__main__":
    main()
