"""The methods side by side, from the jobs of experiment=methods: a table with the spread over seeds, and a grid.

    python experiments/methods/table.py outputs/sweeps --out experiments/methods/results

Means over concepts and seeds; `spread` is the standard deviation over seeds of the mean over concepts, so that it tells
how much of a difference another seed could make.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pandas as pd
from PIL import Image

from cdiff.convert import flat, to_dict
from cdiff.grids import grid
from cdiff.report.study import RunRecord, read_pictures
from cdiff.sweep_folder import job_runs

METRICS = ["recognized", "dino_i", "clip_t", "attr_class", "attr_scene", "attr_accessory", "attr_color"]
ASKED = (("a photo of",), ("in the snow",), ("a red <",), ("headphones", "floating"))  # an object wears nothing


def read_jobs(sweeps: Path) -> tuple[pd.DataFrame, list[RunRecord]]:
    """One row a finished job, and its run."""
    runs = [run for folder in sorted(sweeps.glob("methods*/")) for run in job_runs(folder)[0] if run.status == "done"]
    records = [RunRecord(run, flat(to_dict(run.config()))) for run in runs]
    rows = [
        {
            "method": record.config["method.name"],
            "concept": record.concept,
            "seed": record.config["seed"],
            "seconds": record.run.info["timings"]["train"],
            **{name: (record.overall.get(name) or {}).get("mean") for name in METRICS},
        }
        for record in records
    ]
    return pd.DataFrame(rows), records


def compare(jobs: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """One row for each of `by`: mean of every metric, and its standard deviation over seeds in a column of its own."""
    seeds = jobs.groupby([*by, "seed"])[METRICS].mean()
    means, spread = seeds.groupby(by).mean(), seeds.groupby(by).std()
    out = means.copy()
    for name in METRICS:
        out[name] = [f"{m:.3f} ± {s:.3f}" for m, s in zip(means[name], spread[name])]
    out["runs"] = jobs.groupby(by).size()
    return out.reset_index()


def picture(records: list[RunRecord], seed: int) -> Image.Image:
    """A row a concept and method, the first two images of each of four prompts, of one seed."""
    chosen = [r for r in records if r.config["seed"] == seed]
    chosen.sort(key=lambda r: (r.concept, r.config["method.name"]))
    rows, labels = [], []
    for record in chosen:
        [folder] = record.run.folder.glob("evaluation/*/images")
        pictures = read_pictures(folder)
        asked = [[p.file for p in pictures if any(word in p.prompt for word in words)][:2] for words in ASKED]
        rows.append([file for files in asked for file in files])
        labels.append(f"{record.concept}, {record.config['method.name']}")
    images = [Image.open(file).convert("RGB") for files in rows for file in files]
    return grid(images, len(rows[0]), labels)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sweeps", type=Path, help="the folder that holds methods_METHOD_CONCEPT/, or methods/")
    parser.add_argument("--out", type=Path, required=True, help="gets methods.md, jobs.csv and grid.jpg")
    given = parser.parse_args()
    jobs, records = read_jobs(given.sweeps)
    if jobs.empty:
        print(f"{given.sweeps} holds no finished job of experiment=methods.", file=sys.stderr)
        return 2
    given.out.mkdir(parents=True, exist_ok=True)
    jobs.round(4).to_csv(given.out / "jobs.csv", index=False)
    text = [f"# Methods, {len(jobs)} jobs", compare(jobs, ["method"]).to_markdown(index=False)]
    text += ["# By concept", compare(jobs, ["concept", "method"]).to_markdown(index=False)]
    (given.out / "methods.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")
    picture(records, seed=int(jobs["seed"].min())).save(given.out / "grid.jpg", quality=85)
    print(text[1])
    return 0


if __name__ == "__main__":
    sys.exit(main())
