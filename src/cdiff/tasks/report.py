"""task=report: one HTML page on a sweep, or on any runs, with its tables beside it.

    python -m cdiff task=report run=outputs/sweeps/NAME
    python -m cdiff task=report run=[A,B]

Everything is inside report.html: it opens from the disk, without a network. No model is loaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cdiff import console
from cdiff.finding import find_run
from cdiff.report.study import read_study
from cdiff.runs import Run
from cdiff.schema import Config

PAGE = "report.html"


def run(cfg: Config) -> dict[str, Any]:
    """Write report.html, runs.csv, settings.csv, table.md and table.tex into the run's folder."""
    specs = cfg.run if isinstance(cfg.run, list) else [cfg.run]
    folders = [find_run(spec).folder if spec == "latest" else Path(spec).expanduser() for spec in specs]
    study = read_study(folders, cfg.report.title)
    from cdiff.report.figures import make_figures  # matplotlib takes a second: not before there is something to plot
    from cdiff.report.page import write_page
    from cdiff.report.tables import make_tables, write_tables

    run = Run.start(cfg, "report")
    with run.timed("report"):
        tables = make_tables(study)
        figures = make_figures(study, tables, cfg.report.text_metric, cfg.report.image_metric)
        page = run.folder / PAGE
        size, embedded = write_page(page, study, tables, figures, cfg.report.megabytes)
        files = write_tables(run.folder, tables, study)
    if embedded.dropped:
        console.warn(f"{embedded.dropped} pictures had no room in {cfg.report.megabytes:g} MB: report.megabytes=.")
    for one in study.unfinished:
        console.warn(f"not in any average: {one.name} ({one.state}): {one.reason}")
    for name in study.foreign:
        console.warn(f"passed over: {name}")
    rows = {
        "runs": f"{len(study.runs)} finished, {len(study.unfinished)} not",
        "page": f"{page} ({size / 1e6:.1f} MB, pictures of {embedded.side} px)",
        "tables": ", ".join(file.name for file in files),
        "seconds": f"{run.info['timings']['report']:.1f}",
    }
    console.summary("Report", rows)
    outcome = {"page": str(page), "bytes": size, "runs": len(study.runs), "unfinished": len(study.unfinished)}
    run.finish(outcome)
    return outcome
