"""The weight x step grid of a sweep: one validation prompt, the same noise in every cell.

    python experiments/weight_step/grid.py outputs/sweeps/weight_step experiments/weight_step/grid.jpg --word headphones

Rows are the jobs in their order, columns the steps.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from PIL import Image

from cdiff.sweep_folder import job_runs

SIDE, GAP = 112, 2


def cell(folder: Path, word: str) -> Image.Image:
    """The first validation image of a step whose prompt has the word."""
    prompts = json.loads((folder / "prompts.json").read_text(encoding="utf-8"))
    name = next(name for name, entry in prompts.items() if word in entry["prompt"])
    return Image.open(folder / name).convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sweep", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--word", default="headphones", help="of the prompt that is shown")
    parser.add_argument("--steps", type=int, nargs="+", default=[0, 250, 500, 1000, 1500, 2000])
    given = parser.parse_args()
    runs = [run.folder for run in job_runs(given.sweep)[0]]
    pitch = SIDE + GAP
    grid = Image.new("RGB", (pitch * len(given.steps) - GAP, pitch * len(runs) - GAP), "white")
    for row, folder in enumerate(runs):
        for column, step in enumerate(given.steps):
            grid.paste(cell(folder / "validation" / f"step-{step:06d}", given.word), (pitch * column, pitch * row))
    given.out.parent.mkdir(parents=True, exist_ok=True)
    grid.save(given.out, optimize=True, quality=90)


if __name__ == "__main__":
    main()
