"""Does semantic preservation keep composition at equal likeness? Reads the sweeps of experiment=claim.

    python experiments/claim/analyse.py outputs/sweeps/claim* --out experiments/claim/results

Composition is the mean of scene, accessory and colour by the probe, likeness the identity model's cosine (`dino_i`).
An arm is compared with plain training at each of plain's step counts, at the point of its own training where it is as
like the concept: likeness, averaged over concepts and seeds, is interpolated linearly between step counts, and so is
each run's composition. Beside it the plain difference at equal steps. Differences are paired by concept and seed;
intervals are a bootstrap over the pairs. Writes runs.csv (a row a run), arms.csv (means of arms and step counts) and
claim.md.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from cdiff.convert import flat, to_dict
from cdiff.evaluation.summary import bootstrap
from cdiff.report.study import RunRecord
from cdiff.sweep_folder import job_runs

COMPOSITION = ["attr_scene", "attr_accessory", "attr_color"]
PLAIN = "plain"
PAIR = ["concept", "seed"]


def arm_of(config: dict) -> str:
    """The side of the comparison that a run is on, by its settings."""
    if config["sampler.token_adjust.alpha"]:
        return "adjust"
    if config["prior.name"] != "none":
        return "prior"
    return f"spl {config['loss.spl_weight']:g}" if config["loss.spl_weight"] else PLAIN


def read_runs(sweeps: list[Path]) -> pd.DataFrame:
    """One row a finished and scored run."""
    rows = []
    folders = [sweep for sweep in sweeps if sweep.is_dir()]
    for run in [run for folder in folders for run in job_runs(folder)[0] if run.status == "done"]:
        record = RunRecord(run, flat(to_dict(run.config())))
        means = {name: one["mean"] for name, one in record.overall.items()}
        kept = [means[name] for name in COMPOSITION if means.get(name) is not None]
        if kept:
            place = {"concept": record.concept, "seed": record.seed, "steps": record.config["train.steps"]}
            token_rate = record.config["optimizer.token_learning_rate"] or record.config["optimizer.learning_rate"]
            row = {"arm": arm_of(record.config), "token_rate": token_rate, **place, "composition": float(np.mean(kept))}
            rows.append(row | {name: means.get(name) for name in ("attr_class", *COMPOSITION, "recognized", "dino_i")})
    return pd.DataFrame(rows)


def between(likeness: pd.Series, wanted: float) -> tuple[int, int, float] | None:
    """likeness by step count -> the two neighbouring step counts, and the share of the way between them, at which it
    first is what is wanted; None where it never is. One step count matches only itself."""
    steps = list(likeness.index)
    for one, other in zip(steps, steps[1:], strict=False):
        low, high = likeness[one], likeness[other]
        if low != high and min(low, high) <= wanted <= max(low, high):
            return one, other, float((wanted - low) / (high - low))
    return None


def matched(runs: pd.DataFrame, resamples: int = 5000) -> pd.DataFrame:
    """Each arm against plain, at each of plain's step counts, at equal likeness."""
    rows = []
    plain = runs[runs.arm == PLAIN]
    for arm, own in runs[runs.arm != PLAIN].groupby("arm", sort=False):
        curve = own.groupby("steps")["dino_i"].mean()
        table = own.pivot_table(index=PAIR, columns="steps", values="composition")
        for steps, other in plain.groupby("steps"):
            wanted = other["dino_i"].mean()
            row = {"arm": arm, "plain, steps": steps, "likeness": wanted}
            found = between(curve, wanted)
            if found is None:
                rows.append(row | {"note": f"never as like: {curve.min():.3f} to {curve.max():.3f}"})
                continue
            one, two, share = found
            mine = (1 - share) * table[one] + share * table[two]
            pairs = (mine - other.set_index(PAIR)["composition"]).dropna()
            low, high = bootstrap(pairs.to_numpy(), resamples)
            row |= {"its steps": round((1 - share) * one + share * two), "pairs": len(pairs)}
            rows.append(row | {"points": 100 * pairs.mean(), "low": 100 * low, "high": 100 * high})
    return pd.DataFrame(rows)


def at_equal_steps(runs: pd.DataFrame, resamples: int = 5000) -> pd.DataFrame:
    """Each arm against plain after the same steps: points of composition, and likeness."""
    rows = []
    plain = runs[runs.arm == PLAIN].set_index([*PAIR, "steps"])
    for (arm, steps), own in runs[runs.arm != PLAIN].groupby(["arm", "steps"], sort=False):
        index = own.set_index([*PAIR, "steps"])
        pairs = (index[["composition", "dino_i"]] - plain[["composition", "dino_i"]]).reindex(index.index).dropna()
        if not pairs.empty:
            low, high = bootstrap(pairs.composition.to_numpy(), resamples)
            row = {"arm": arm, "steps": steps, "pairs": len(pairs), "points": 100 * pairs.composition.mean()}
            rows.append(row | {"low": 100 * low, "high": 100 * high, "likeness": pairs.dino_i.mean()})
    return pd.DataFrame(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sweeps", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    runs = read_runs(given.sweeps)
    if runs.empty:
        print("There is no finished and scored run in the sweeps given.", file=sys.stderr)
        return 2
    given.out.mkdir(parents=True, exist_ok=True)
    means = runs.groupby(["arm", "token_rate", "steps"]).mean(numeric_only=True).drop(columns="seed")
    means.insert(0, "runs", runs.groupby(["arm", "token_rate", "steps"]).size())
    means = means.reset_index()
    text = ["# Means of each arm and step count", means.to_markdown(index=False, floatfmt=".3g")]
    runs.to_csv(given.out / "runs.csv", index=False)
    means.to_csv(given.out / "arms.csv", index=False)
    for rate, same in runs.groupby("token_rate"):
        for name, found in (("likeness", matched(same)), ("steps", at_equal_steps(same))):
            title = f"# Composition at equal {name}, points more than plain; the token's learning rate {rate:g} x batch"
            text += [title, found.to_markdown(index=False, floatfmt=".3g")] if len(found) else []
    (given.out / "claim.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")
    print((given.out / "claim.md").read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
