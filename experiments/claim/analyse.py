"""Does semantic preservation keep composition at equal likeness? Reads the sweeps of experiment=claim.

    python experiments/claim/analyse.py outputs/sweeps/claim* --out experiments/claim/results
    python experiments/claim/analyse.py experiments/claim/results/rows.parquet --out /tmp/again

Composition is the mean of scene, accessory and colour by the probe, likeness the identity model's cosine (`dino_i`);
both are means of a run's pictures. An arm is compared with plain training at points of equal likeness: at the step
counts of the one, with the first point of the other's training that is as like. Likeness, averaged over concepts and
seeds, is interpolated linearly between step counts, and so is each run's composition. Plain training that is stopped
earlier, where it is as like, is a row of its own. Beside it the plain difference at equal steps. Differences are
paired by concept and seed; intervals are a bootstrap over the pairs.

Writes rows.parquet (a row a picture), runs.csv (a row a run), arms.csv (means of arms and step counts), drift.csv (how
far the word moved in text space), claim.png and claim.md. From rows.parquet it makes all but the drift again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from cdiff.convert import flat, to_dict
from cdiff.evaluation.rows import PARQUET_FILE
from cdiff.evaluation.summary import bootstrap
from cdiff.report.study import RunRecord
from cdiff.sweep_folder import job_runs

COMPOSITION = ["attr_scene", "attr_accessory", "attr_color"]
SCORES = ["dino_i", "recognized", "attr_class", *COMPOSITION]
PLAIN, EARLIER = "plain", "plain, stopped earlier"
PAIR = ["concept", "seed"]
RUN = ["arm", "token_rate", *PAIR, "steps"]


def arm_of(config: dict) -> str:
    """The side of the comparison that a run is on, by its settings."""
    if config["sampler.token_adjust.alpha"]:
        return "adjust"
    if config["prior.name"] != "none":
        return "prior"
    return f"spl {config['loss.spl_weight']:g}" if config["loss.spl_weight"] else PLAIN


def finished(sweeps: list[Path]) -> Iterator[tuple[dict, RunRecord]]:
    """What tells a finished run from the others, and the run."""
    folders = [sweep for sweep in sweeps if sweep.is_dir()]
    for run in [run for folder in folders for run in job_runs(folder)[0] if run.status == "done"]:
        record = RunRecord(run, flat(to_dict(run.config())))
        rate = record.config["optimizer.token_learning_rate"] or record.config["optimizer.learning_rate"]
        own = {"concept": record.concept, "seed": record.seed, "steps": record.config["train.steps"]}
        yield {"arm": arm_of(record.config), "token_rate": rate, **own}, record


def read_images(sweeps: list[Path]) -> pd.DataFrame:
    """One row a picture of every finished and scored run; or what rows.parquet holds of them."""
    if len(sweeps) == 1 and sweeps[0].suffix == ".parquet":
        return pd.read_parquet(sweeps[0])
    tables = []
    for names, record in finished(sweeps):
        files = sorted(record.folder.glob(f"evaluation/*/{PARQUET_FILE}"), key=lambda file: file.stat().st_mtime)
        if files:
            table = pd.read_parquet(files[-1])
            tables.append(table[["text", "index", *(name for name in SCORES if name in table)]].assign(**names))
    images = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=[*RUN, "text", "index"])
    images = images.reindex(columns=[*RUN, "text", "index", *SCORES]).astype(dict.fromkeys(SCORES, float))
    return images.astype({"arm": "category", "concept": "category", "text": "category"})


def runs_of(images: pd.DataFrame) -> pd.DataFrame:
    """One row a run: the means of its pictures, and its composition."""
    runs = images.groupby(RUN, observed=True, sort=False)[SCORES].mean().astype(float).reset_index()
    runs.insert(len(RUN), "composition", runs[COMPOSITION].mean(axis=1))
    runs = runs.astype({"arm": str, "concept": str})
    return runs[runs.composition.notna()].reset_index(drop=True)


def drift_of(sweeps: list[Path]) -> pd.DataFrame:
    """Mean distance of "<new1> dog" from "dog" in text features before the first step and after the last, by arm."""
    rows = []
    for names, record in finished(sweeps):
        series = record.scalars.get("drift/text_distance")
        if series:
            rows.append({**names, "before": series[0][1], "after": series[-1][1]})
    table = pd.DataFrame(rows, columns=[*RUN, "before", "after"])
    return table.groupby(["arm", "steps"], sort=False)[["before", "after"]].mean().reset_index()


def between(likeness: pd.Series, wanted: float) -> tuple[int, int, float] | None:
    """likeness by step count -> the two neighbouring step counts, and the share of the way between them, at which it
    first is what is wanted; None where it never is. One step count matches only itself."""
    steps = list(likeness.index)
    for one, other in zip(steps, steps[1:], strict=False):
        low, high = likeness[one], likeness[other]
        if low != high and min(low, high) <= wanted <= max(low, high):
            return one, other, float((wanted - low) / (high - low))
    return None


def matched(runs: pd.DataFrame, of: str = "composition", resamples: int = 5000) -> pd.DataFrame:
    """Each arm against plain at equal likeness: at plain's step counts, wherever the arm is as like, and at the arm's,
    wherever plain is. of: another score; only concepts that have it count."""
    runs = runs[runs[of].notna()]
    plain = runs[runs.arm == PLAIN]
    rows = []
    for arm, own in runs[runs.arm != PLAIN].groupby("arm", sort=False):
        for steps, there in plain.groupby("steps"):
            rows.append({"arm": arm, "plain's steps": steps} | _compared(own, there, of, -1, resamples))
        for steps, there in own.groupby("steps"):
            rows.append({"arm": arm, "its steps": steps} | _compared(plain, there, of, 1, resamples))
    for steps, there in plain.groupby("steps"):
        earlier = _compared(plain, there, of, -1, resamples)
        if earlier.get("other's steps", steps) != steps:
            rows.append({"arm": EARLIER, "plain's steps": steps} | earlier)
    columns = ["arm", "plain's steps", "its steps", "likeness", "pairs", "points", "low", "high", "note"]
    found = pd.DataFrame(rows, columns=[*columns, "other's steps"])
    for name in columns[1:3]:
        found[name] = found[name].fillna(found["other's steps"]).astype("Int64")
    return found[columns].astype({"pairs": "Int64"}).fillna({"note": ""})


def _compared(curve: pd.DataFrame, there: pd.DataFrame, of: str, sign: int, resamples: int) -> dict:
    """Runs of one step count against the point of another arm's curve where it is as like; sign 1: what is there is
    the arm, -1: it is plain."""
    wanted, likeness = there["dino_i"].mean(), curve.groupby("steps")["dino_i"].mean()
    found = between(likeness, wanted)
    if found is None:
        who = "plain" if sign == 1 else "it"
        note = f"{who} is never as like: {likeness.min():.3f} to {likeness.max():.3f}"
        return {"likeness": wanted, "note": note}
    one, two, share = found
    table = curve.pivot_table(index=PAIR, columns="steps", values=of)
    other = (1 - share) * table[one] + share * table[two]
    pairs = sign * (there.set_index(PAIR)[of] - other).dropna()
    low, high = bootstrap(pairs.to_numpy(), resamples)
    own = {"likeness": wanted, "other's steps": round((1 - share) * one + share * two), "pairs": len(pairs)}
    return own | {"points": 100 * pairs.mean(), "low": 100 * low, "high": 100 * high}


def at_equal_steps(runs: pd.DataFrame, of: str = "composition", resamples: int = 5000) -> pd.DataFrame:
    """Each arm against plain after the same steps: points of composition (or another score), and likeness."""
    rows = []
    plain = runs[runs.arm == PLAIN].set_index([*PAIR, "steps"])
    for (arm, steps), own in runs[runs.arm != PLAIN].groupby(["arm", "steps"], sort=False):
        index = own.set_index([*PAIR, "steps"])
        pairs = (index[[of, "dino_i"]] - plain[[of, "dino_i"]]).reindex(index.index).dropna()
        if not pairs.empty:
            low, high = bootstrap(pairs[of].to_numpy(), resamples)
            row = {"arm": arm, "steps": steps, "pairs": len(pairs), "points": 100 * pairs[of].mean()}
            rows.append(row | {"low": 100 * low, "high": 100 * high, "likeness": pairs.dino_i.mean()})
    return pd.DataFrame(rows)


def picture(runs: pd.DataFrame, file: Path) -> None:
    """Composition and accessories over likeness: a line an arm, a point a step count."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    titles = {"composition": "scene, accessory and colour, all concepts", "attr_accessory": "accessory, the animals"}
    for axes, (score, title) in zip(panels, titles.items(), strict=True):
        means = runs[runs[score].notna()].groupby(["arm", "steps"])[["dino_i", score]].mean().reset_index()
        for arm, own in means.groupby("arm"):
            style = {"color": "black", "linewidth": 2.2} if arm == PLAIN else {}
            axes.plot(own.dino_i, own[score], marker="o", label=arm, **style)
        axes.set(xlabel="likeness (dino_i)", ylabel="right, by the probe", title=title)
    panels[0].legend(fontsize=8, title=f"from {runs.steps.min():,} (top) to {runs.steps.max():,} steps")
    figure.savefig(file, dpi=110)
    plt.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sweeps", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    images = read_images(given.sweeps)
    runs = runs_of(images)
    if runs.empty:
        print("There is no finished and scored run in the sweeps given.", file=sys.stderr)
        return 2
    given.out.mkdir(parents=True, exist_ok=True)
    images.to_parquet(given.out / PARQUET_FILE, index=False, compression="zstd")
    runs.to_csv(given.out / "runs.csv", index=False)
    by = runs.groupby(["arm", "token_rate", "steps"], sort=False)
    means = by.mean(numeric_only=True).drop(columns="seed")
    means.insert(0, "runs", by.size())
    means = means.reset_index()
    means.to_csv(given.out / "arms.csv", index=False)
    text = ["# Means of each arm and step count", means.to_markdown(index=False, floatfmt=".3g")]
    drift = drift_of(given.sweeps)
    if not drift.empty:
        drift.to_csv(given.out / "drift.csv", index=False)
        text += ["# Distance of the word in text features", drift.to_markdown(index=False, floatfmt=".3f")]
    for rate, same in runs.groupby("token_rate"):
        scores = {name: name.removeprefix("attr_") for name in ("composition", *COMPOSITION)}
        tables = {f"{word}, at equal likeness": matched(same, name) for name, word in scores.items()}
        tables |= {f"{word}, at equal steps": at_equal_steps(same, name) for name, word in scores.items()}
        for name, found in tables.items():
            title = f"# Points more than plain in {name}; the token's learning rate {rate:g} x batch"
            cells = found.astype(object).where(found.notna(), "")
            text += [title, cells.to_markdown(index=False, floatfmt=".3g")] if len(found) else []
    (given.out / "claim.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")
    picture(runs, given.out / "claim.png")
    print((given.out / "claim.md").read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
