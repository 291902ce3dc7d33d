"""Which numbers each method does best with, from the jobs of search.sh.

    python experiments/recipes/choose.py outputs/sweeps --out experiments/recipes/results

A recipe's worth is the geometric mean of likeness (`recognized`: the share of samples nearest to the concept among 100
of its class) and of composition (the mean of attr_scene, attr_accessory and attr_color), each averaged over concepts
first: neither can be bought with the other. Equal ones are told apart by `dino_i`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pandas as pd

from cdiff.convert import flat, to_dict
from cdiff.report.study import RunRecord
from cdiff.sweep_folder import job_runs

COMPOSITION = ["attr_scene", "attr_accessory", "attr_color"]
METRICS = ["recognized", "dino_i", "clip_t", *COMPOSITION]
RECIPE = ["method", "learning_rate", "steps", "shrink"]


def read_jobs(sweeps: Path) -> pd.DataFrame:
    """One row a finished job: the recipe (its learning_rate before it is multiplied by the batch), concept, metrics."""
    runs = [run for folder in sorted(sweeps.glob("recipe_*/")) for run in job_runs(folder)[0] if run.status == "done"]
    records = [RunRecord(run, flat(to_dict(run.config()))) for run in runs]
    return pd.DataFrame(
        {
            "method": record.config["method.name"],
            "learning_rate": record.config["optimizer.learning_rate"],
            "steps": record.config["train.steps"],
            "shrink": record.config["augment.shrink_probability"],
            "concept": record.concept,
            "seconds": record.run.info["timings"]["train"],
            **{name: (record.overall.get(name) or {}).get("mean") for name in METRICS},
        }
        for record in records
    )


def rank(jobs: pd.DataFrame) -> pd.DataFrame:
    """One row a recipe, the best of each method first."""
    means = jobs.groupby(RECIPE)[[*METRICS, "seconds"]].mean()
    means["concepts"] = jobs.groupby(RECIPE)["concept"].nunique()
    means["composition"] = means[COMPOSITION].mean(axis=1)
    means["worth"] = (means["recognized"].clip(lower=0) * means["composition"]) ** 0.5
    order = ["method", "worth", "dino_i"]
    return means.reset_index().sort_values(order, ascending=[True, False, False], ignore_index=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sweeps", type=Path, help="the folder that holds recipe_METHOD/")
    parser.add_argument("--out", type=Path, required=True, help="gets recipes.csv and recipes.md")
    given = parser.parse_args()
    jobs = read_jobs(given.sweeps)
    if jobs.empty:
        print(f"{given.sweeps} holds no finished job of search.sh.", file=sys.stderr)
        return 2
    ranked = rank(jobs)
    given.out.mkdir(parents=True, exist_ok=True)
    ranked.to_csv(given.out / "recipes.csv", index=False)
    best = ranked.groupby("method").head(1)
    text = [f"# The best recipe of each method, of {len(jobs)} jobs", best.to_markdown(index=False, floatfmt=".3g")]
    text += ["# All of them", ranked.to_markdown(index=False, floatfmt=".3g")]
    (given.out / "recipes.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")
    print(best.to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
