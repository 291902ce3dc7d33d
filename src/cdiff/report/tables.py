"""The runs and the settings of a study as tables: for the page, and as CSV, Markdown and LaTeX."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from cdiff.evaluation.summary import Estimate, estimate
from cdiff.report.study import RunRecord, Study

RESAMPLES = 2000


@dataclass(frozen=True)
class Tables:
    """`runs` and `settings` with numbers, each metric as NAME, NAME_low, NAME_high; `differences` of settings."""

    runs: pd.DataFrame
    settings: pd.DataFrame
    differences: pd.DataFrame
    baseline: str | None  # the setting that the differences are against


def make_tables(study: Study) -> Tables:
    baseline = baseline_of(study)
    return Tables(runs_table(study), settings_table(study), differences_table(study, baseline), baseline)


def runs_table(study: Study) -> pd.DataFrame:
    """One row a run: mean and 95 % interval over prompts of each metric."""
    rows = []
    for run in study.runs:
        row: dict[str, Any] = {"run": run.label, "concept": run.concept, "method": run.config.get("method.name")}
        row |= {"setting": run.setting, "steps": run.config.get("train.steps"), "seed": run.seed}
        for metric in study.metrics:
            one = run.overall.get(metric, {})
            row |= {metric: one.get("mean"), f"{metric}_low": one.get("low"), f"{metric}_high": one.get("high")}
        drift = run.scalars.get("drift/text_distance")
        row |= {"drift": drift[-1][1] if drift else None, "seconds": run.run.info.get("seconds")}
        rows.append(row | {"folder": str(run.folder)})
    return pd.DataFrame(rows)


def settings_table(study: Study) -> pd.DataFrame:
    """One row a setting: mean over its runs (concepts and seeds), 95 % interval bootstrapped over them."""
    rows = []
    for setting, members in by_setting(study.runs).items():
        concepts, seeds = {run.concept for run in members}, {run.seed for run in members}
        row: dict[str, Any] = {"setting": setting, "runs": len(members), "concepts": len(concepts), "seeds": len(seeds)}
        for metric in study.metrics:
            values = [run.overall[metric]["mean"] for run in members if metric in run.overall]
            row |= _estimated(metric, estimate(values, RESAMPLES) if values else None)
        rows.append(row)
    return pd.DataFrame(rows)


def differences_table(study: Study, baseline: str | None) -> pd.DataFrame:
    """Each setting minus the baseline, paired by concept and seed; the interval is bootstrapped over the pairs."""
    groups = by_setting(study.runs)
    rows = []
    for setting, members in groups.items():
        if baseline is None or setting == baseline:
            continue
        partners = {(run.concept, run.seed): run for run in groups[baseline]}
        pairs = [(run, partners[run.concept, run.seed]) for run in members if (run.concept, run.seed) in partners]
        row: dict[str, Any] = {"setting": setting, "pairs": len(pairs)}
        for metric in study.metrics:
            both = [(a, b) for a, b in pairs if metric in a.overall and metric in b.overall]
            values = [a.overall[metric]["mean"] - b.overall[metric]["mean"] for a, b in both]
            row |= _estimated(metric, estimate(values, RESAMPLES) if values else None)
        if pairs:
            rows.append(row)
    return pd.DataFrame(rows)


def by_setting(runs: Sequence[RunRecord]) -> dict[str, list[RunRecord]]:
    found: dict[str, list[RunRecord]] = {}
    for run in runs:
        found.setdefault(run.setting, []).append(run)
    return found


def baseline_of(study: Study) -> str | None:
    """The setting that others are compared with: one without semantic preservation, else the first; null for one."""
    groups = by_setting(study.runs)
    if len(groups) < 2:
        return None
    plain = [setting for setting, runs in groups.items() if not runs[0].config.get("loss.spl_weight")]
    return (plain or list(groups))[0]


def _estimated(metric: str, one: Estimate | None) -> dict[str, float | None]:
    mean, low, high = (one.mean, one.low, one.high) if one else (None, None, None)
    return {metric: mean, f"{metric}_low": low, f"{metric}_high": high}


def readable(table: pd.DataFrame, metrics: Sequence[str], sign: str = "") -> pd.DataFrame:
    """Each metric and its interval in one cell, "0.312 [0.301, 0.322]"; without columns that say nothing."""
    shown = table.copy()
    for metric in metrics:
        if metric in table:
            shown[metric] = [
                cell(*three, sign=sign) for three in zip(table[metric], table[f"{metric}_low"], table[f"{metric}_high"])
            ]
            shown = shown.drop(columns=[f"{metric}_low", f"{metric}_high"])
    if "drift" in shown:
        shown["drift"] = [cell(value, digits=4) for value in shown["drift"]]
    if "seconds" in shown:
        shown["seconds"] = [cell(value, digits=0) for value in shown["seconds"]]
    return shown.loc[:, [column for column in shown if any(str(v) not in ("", "None", "nan") for v in shown[column])]]


def cell(
    mean: float | None, low: float | None = None, high: float | None = None, digits: int = 3, sign: str = ""
) -> str:
    if mean is None or math.isnan(mean):
        return ""
    text = f"{mean:{sign}.{digits}f}"
    missing = any(end is None or math.isnan(end) for end in (low, high))
    return text if missing else f"{text} [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"


def write_tables(folder: Path, tables: Tables, study: Study) -> list[Path]:
    """runs.csv, settings.csv with plain numbers; table.md and table.tex with intervals in the cells."""
    tables.runs.to_csv(folder / "runs.csv", index=False)
    tables.settings.to_csv(folder / "settings.csv", index=False)
    metrics = study.metrics
    settings = readable(tables.settings, metrics)
    runs = readable(tables.runs.drop(columns=["folder", "setting"]), metrics)
    parts = [("Settings: mean over runs and 95 % interval", settings)]
    if len(tables.differences):
        title = f"Difference from {tables.baseline}, paired by concept and seed"
        parts.append((title, readable(tables.differences, metrics, sign="+")))
    parts.append(("Runs: mean over prompts and 95 % interval", runs))
    markdown = "\n\n".join(f"## {title}\n\n{table.to_markdown(index=False)}" for title, table in parts)
    (folder / "table.md").write_text(f"# {study.title}\n\n{markdown}\n", encoding="utf-8")
    latex = "\n".join(
        f"% {title}\n" + table.style.hide(axis="index").to_latex(hrules=True, convert_css=False).replace("_", r"\_")
        for title, table in parts
    )
    (folder / "table.tex").write_text("% needs \\usepackage{booktabs}\n" + latex, encoding="utf-8")
    return [folder / name for name in ("runs.csv", "settings.csv", "table.md", "table.tex")]
