"""Results on the terminal and on the dashboard. Published figures stand in a column of their own."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from rich.markup import escape
from rich.table import Table

from cdiff import console
from cdiff.evaluation.compare import Comparison
from cdiff.evaluation.published import LABEL, cell
from cdiff.evaluation.results import Result, groups, over_concepts
from cdiff.evaluation.rows import read_rows
from cdiff.evaluation.summary import Estimate
from cdiff.tracking import Tracker

NARROW = ("metric", "mean", "95 % interval")  # columns that keep to one line
NOTE = "Published figures are of photos, Stable Diffusion and the metric models of their papers."
PICTURED = 100  # prompts of the dashboard's table that show an image


def show_result(result: Result) -> None:
    """Metric, mean, interval, and what others published; below, which models gave the numbers."""
    overall, lines = result.summary.overall(), result.published()
    of = str(result.facts.get("of", "images"))
    columns = ["metric", "mean", "95 % interval", "prompts", of, LABEL]
    rows = [
        [name, number(e.mean), interval(e), str(e.count), str(e.images), cell(lines, name)]
        for name, e in overall.items()
    ]
    if not lines:
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    show(f"{result.name}: {result.facts.get('protocol') or of}", columns, rows, NOTE)
    by_model: dict[str, list[str]] = {}
    for name in overall:
        by_model.setdefault(result.models[name], []).append(name)
    console.say("; ".join(f"{', '.join(names)} by {model}" for model, names in by_model.items()))
    by_concept = result.summary.of_concepts()
    if len(by_concept) > 1:
        columns = ["concept", *overall]
        show("Concepts", columns, [[label, *_cells(values, overall)] for label, values in by_concept.items()])


def show_results(results: Sequence[Result]) -> None:
    """Several runs: one row each, then the means over concepts beside what others published."""
    metrics = list(dict.fromkeys(name for result in results for name in result.summary.overall()))
    rows = [[r.name, "+".join(r.concepts), *_cells(r.summary.overall(), metrics)] for r in results]
    show("Runs: mean and 95 % interval over prompts", ["run", "concept", *metrics], rows)
    for setting, members in groups(results).items():
        concepts = len({result.concepts for result in members})
        if concepts > 1:
            lines = members[0].published()
            rows = [
                [name, number(e.mean), interval(e), str(e.count), cell(lines, name)]
                for name, e in over_concepts(members).items()
            ]
            columns = ["metric", "mean", "95 % interval over concepts", "concepts", LABEL]
            show(f"{setting}: {concepts} concepts", columns, rows, NOTE)


def show_comparison(a: Result, b: Result, comparison: Comparison) -> None:
    """B against A, metric by metric."""
    columns = ["metric", "A", "B", "B - A", "95 % interval", "B wins", "95 % interval"]
    rows = [
        [
            name,
            number(comparison.a[name]),
            number(comparison.b[name]),
            f"{difference.mean:+.4f}",
            interval(difference, "+.4f"),
            f"{comparison.win_rate[name].mean:.0%}",
            interval(comparison.win_rate[name], ".0%"),
        ]
        for name, difference in comparison.difference.items()
    ]
    show(f"A = {a.name}, B = {b.name}: {comparison.pairs} pairs of one prompt and seed", columns, rows)
    if any(comparison.unpaired):
        console.warn(f"images without a partner, left out of the comparison: A {comparison.unpaired[0]}, B "
                     f"{comparison.unpaired[1]}")  # fmt: skip


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], note: str | None = None) -> None:
    """A table on the terminal, and as plain lines in log.txt. The note stands below where a published figure does."""
    has_figures = LABEL in columns and any(row[columns.index(LABEL)] for row in rows)
    table = Table(
        title=escape(title), title_justify="left", caption_justify="left", caption=note if has_figures else None
    )
    for name in columns:
        table.add_column(escape(name), overflow="fold", no_wrap=name in NARROW)
    for row in rows:
        table.add_row(*(escape(text) for text in row))
    target = console.stdout()
    target.soft_wrap = False
    target.print(table, soft_wrap=False)
    lines = [title, " | ".join(columns), *(" | ".join(row).replace("\n", ", ") for row in rows)]
    logging.getLogger(console.SAID).info("\n".join(lines))


def track(tracker: Tracker, results: Sequence[Result], comparison: Comparison | None) -> None:
    """A table of prompts with their images, one of runs, and the summary."""
    metrics = list(dict.fromkeys(name for result in results for name in result.summary.overall()))
    rows: list[list[Any]] = []
    for result in results:
        pictures = first_images(result, PICTURED - len(rows))
        for entry in result.summary.of_prompts():
            path = pictures.get((entry["concept"], entry["prompt"]))
            values = [entry["values"].get(name) for name in metrics]
            rows.append([result.name, entry["concept"], entry["prompt"], _thumbnail(path), *values])
    tracker.table("evaluation/prompts", ["run", "concept", "prompt", "image", *metrics], rows)
    tracker.table("evaluation/samples", ["run", "prompt", "seed", "image", *metrics], scored_images(results, metrics))
    if len(results) > 1:
        overall = [[r.name, "+".join(r.concepts), *(r.objective(name) for name in metrics)] for r in results]
        tracker.table("evaluation/runs", ["run", "concept", *metrics], overall)
    tracker.summary(summary_values(results, comparison))


def scored_images(results: Sequence[Result], metrics: Sequence[str]) -> list[list[Any]]:
    """Run, prompt, seed, image and its own scores: at most PICTURED images, equal shares a run."""
    rows: list[list[Any]] = []
    for result in results:
        folder = Path(result.facts["image_folder"])
        good = (row for row in read_rows(result.rows_file) if not row.fault)
        for row in itertools.islice(good, max(1, PICTURED // len(results))):
            values = [row.values.get(name, math.nan) for name in metrics]
            scores = [None if math.isnan(value) else value for value in values]
            rows.append([result.name, row.prompt, row.seed, _thumbnail(folder / row.file), *scores])
    return rows


def summary_values(results: Sequence[Result], comparison: Comparison | None) -> dict[str, float | None]:
    """ "evaluation/clip_t", its _low and _high; of several runs the mean over concepts, and B - A of two."""
    overall = results[0].summary.overall() if len(results) == 1 else over_concepts(results)
    found: dict[str, float | None] = {}
    for name, one in overall.items():
        found |= {
            f"evaluation/{name}": one.mean,
            f"evaluation/{name}_low": one.low,
            f"evaluation/{name}_high": one.high,
        }
    if comparison is not None:
        for name, one in comparison.difference.items():
            found[f"comparison/{name}"] = one.mean
            found[f"comparison/{name}_win_rate"] = comparison.win_rate[name].mean
    return found


def first_images(result: Result, count: int) -> dict[tuple[str, str], Path]:
    """The file of the first scored image of the first `count` prompts."""
    found: dict[tuple[str, str], Path] = {}
    folder = Path(result.facts["image_folder"])
    for row in read_rows(result.rows_file):
        if len(found) >= count:
            break
        if not row.fault:
            found.setdefault((row.concept, row.prompt), folder / row.file)
    return found


def number(value: float) -> str:
    return f"{value:.4f}"


def interval(one: Estimate, form: str = ".4f") -> str:
    return "-" if one.low is None or one.high is None else f"{one.low:{form}} to {one.high:{form}}"


def _cells(values: Mapping[str, Estimate], metrics: Sequence[str] | Mapping[str, Any]) -> list[str]:
    """ "0.3120 (0.3011 to 0.3224)" a metric."""
    return [f"{number(values[name].mean)} ({interval(values[name])})" if name in values else "" for name in metrics]


def _thumbnail(path: Path | None) -> Image.Image | None:
    if path is None:
        return None
    with Image.open(path) as image:
        small = image.convert("RGB")
    small.thumbnail((256, 256))
    return small
