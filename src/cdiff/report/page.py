"""The report's one HTML file, by jinja2: styles, script, plots and pictures are all inside it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from cdiff.evaluation.published import LABEL, published
from cdiff.report.clips import read_clips
from cdiff.report.figures import Plot, described
from cdiff.report.pictures import Embedder
from cdiff.report.study import Picture, RunRecord, Study
from cdiff.report.tables import Tables, cell
from cdiff.runs import atomic_write

GRID_PROMPTS = 2  # of the grids, for each concept
VIEWED_PROMPTS = 30  # of the side-by-side viewer, for each run
ATTENTION_RUNS = 24


@dataclass(frozen=True)
class Column:
    """A column of a sortable table."""

    name: str
    numeric: bool


@dataclass(frozen=True)
class Grid:
    """Pictures of one prompt and seed: a row a setting, a column a step. A cell is a picture's data URI or null."""

    title: str
    columns: list[str]
    rows: list[tuple[str, list[tuple[str | None, str]]]]  # label, (uri, alt) a column


def write_page(
    file: Path, study: Study, tables: Tables, figures: dict[str, list[Plot]], megabytes: float
) -> tuple[int, Embedder]:
    """Write the page; returns its bytes, and the embedder, that knows how many pictures had no room."""
    grids = step_grids(study)
    viewer = viewed(study)
    attention = [(run, sheet) for run in one_seed(study)[:ATTENTION_RUNS] for sheet in run.attention()]
    embed = Embedder(_files(grids, viewer) + [sheet for _, sheet in attention], megabytes)
    environment = Environment(
        loader=PackageLoader("cdiff.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    numbers = iter(range(10_000))
    plots = {key: [(plot, described(plot, next(numbers))) for plot in some] for key, some in figures.items()}
    page = environment.get_template("report.html.j2").render(
        study=study,
        intro=introduction(study),
        runs_table=sortable(tables.runs.drop(columns=["folder", "setting"]), study.metrics),
        settings_table=sortable(tables.settings, study.metrics),
        differences_table=sortable(tables.differences, study.metrics, sign="+") if len(tables.differences) else None,
        baseline=tables.baseline,
        published=_published(study),
        published_label=LABEL,
        grids=[_embedded(grid, embed) for grid in grids],
        plots=plots,
        attention=[(r.label, uri, _attention_alt(r)) for r, sheet in attention if (uri := embed(sheet))],
        viewer=viewer_data(viewer, embed),
        clips=[(one, [(embed.clip(c.file), c) for c in one.clips]) for one in read_clips(study.videos)],
        commands=study.commands,
        alone=[(run.label, alone(run, study)) for run in study.runs],
        environment=environment_rows(study),
        shared_settings=sorted((key, str(value)) for key, value in study.shared.items()),
    )
    atomic_write(file, page)
    return len(page.encode()), embed


def one_seed(study: Study) -> list[RunRecord]:
    """Of each concept the runs of its first seed: what is shown run by run need not be shown for every seed."""
    first: dict[str, int] = {}
    for run in study.runs:
        first.setdefault(run.concept, run.seed)
    return [run for run in study.runs if run.seed == first[run.concept]]


def introduction(study: Study) -> list[tuple[str, str]]:
    """What was asked: name and value."""
    first = study.runs[0]
    rows = [("runs", f"{len(study.runs)} finished" + (f", {len(study.unfinished)} not" if study.unfinished else ""))]
    for key in study.swept:
        values = list(dict.fromkeys(_said(run, key) for run in study.runs))
        rows.append((f"swept: {key}", ", ".join(values[:12]) + (" ..." if len(values) > 12 else "")))
    concepts = list(dict.fromkeys(run.concept for run in study.runs))
    rows.append(("concepts", ", ".join(concepts)))
    rows.append(("seeds", ", ".join(map(str, sorted({run.seed for run in study.runs})))))
    rows.append(("base model", f"{first.config.get('model.name')} ({first.config.get('model.path')})"))
    protocols = {str(run.metrics["protocol"]) for run in study.runs if run.metrics.get("protocol")}
    if protocols:
        rows.append(("protocol", ", ".join(sorted(protocols))))
    started = sorted(str(run.run.info.get("started", "")) for run in study.runs)
    return [*rows, ("first run started", started[0]), ("last run started", started[-1])]


def _said(run: RunRecord, key: str) -> str:
    said = (run.run.info.get("sweep") or {}).get("swept", {})
    return str(said.get(key, run.config.get(key)))


def sortable(table: pd.DataFrame, metrics: Sequence[str], sign: str = "") -> dict[str, Any]:
    """Columns, and rows of (text, sort key); an interval stands in its metric's cell. Empty columns are left out."""
    columns, rows = [], [[] for _ in range(len(table))]
    for name in table:
        values = table[name].tolist()
        if name.endswith(("_low", "_high")) or all(_nothing(value) for value in values):
            continue
        numeric = all(isinstance(value, int | float) or value is None for value in values)
        columns.append(Column(name, numeric))
        for row, value, number in zip(rows, values, range(len(table))):
            if name in metrics:
                text = cell(value, table[f"{name}_low"].iloc[number], table[f"{name}_high"].iloc[number], sign=sign)
            elif isinstance(value, float) and name != "steps":
                text = cell(value, digits={"drift": 4, "seconds": 0}.get(name, 3))
            else:
                text = "" if _nothing(value) else str(int(value) if numeric else value)
            row.append((text, "" if _nothing(value) else value))
    return {"columns": columns, "rows": rows}


def _nothing(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and value != value)


def template_of(prompt: str, run: RunRecord) -> str:
    """The prompt with "{}" in the place of the run's own concept, so that runs of different concepts line up."""
    for place, name in enumerate(run.run.info.get("concepts") or [], 1):
        token = run.config.get(f"concepts.{name}.token") or run.config.get("concept.token") or f"<new{place}>"
        token = f"<{str(token).strip('<>')}>"
        word = run.config.get("concept.class_word") or run.config.get(f"concepts.{name}.class_word") or ""
        prompt = prompt.replace(f"{token} {word}".strip(), "{}" if place == 1 else f"{{{place}}}")
    return prompt


# --- grids ----------------------------------------------------------------------------------------------------------

Cells = list[tuple[str, list[str], list[tuple[str, list[tuple[Path | None, str]]]]]]  # title, columns, rows


def step_grids(study: Study) -> Cells:
    """Weight x step, or whatever was swept x step: for each concept and prompt, at the seed of the first run."""
    found: Cells = []
    for concept in dict.fromkeys(run.concept for run in study.runs):
        runs = [run for run in study.runs if run.concept == concept]
        runs = [run for run in runs if run.seed == runs[0].seed]
        over_steps = "train.steps" in study.swept and not any(run.validation() for run in runs)
        found += _by_final_step(concept, runs) if over_steps else _by_validation(concept, runs)
    return found


def _by_validation(concept: str, runs: Sequence[RunRecord]) -> Cells:
    drawn = {run.label: run.validation() for run in runs}
    steps = sorted({step for each in drawn.values() for step in each})
    prompts = list(dict.fromkeys(p.prompt for each in drawn.values() for some in each.values() for p in some))
    grids = []
    for prompt in prompts[:GRID_PROMPTS]:
        rows = []
        for run in runs:
            cells = [_first(drawn[run.label].get(step, []), prompt) for step in steps]
            if any(cells):
                alts = [f"{prompt}, {run.setting}, step {step}" for step in steps]
                rows.append((run.setting, [(c.file if c else None, alt) for c, alt in zip(cells, alts)]))
        grids.append((f"{concept}: “{prompt}”, seed {runs[0].seed}", [f"step {step}" for step in steps], rows))
    return grids


def _by_final_step(concept: str, runs: Sequence[RunRecord]) -> Cells:
    """Runs that were trained for different numbers of steps: their final pictures."""
    steps = sorted({int(run.config["train.steps"]) for run in runs})
    prompts = list(dict.fromkeys(picture.prompt for run in runs for picture in run.pictures))
    grids = []
    for prompt in prompts[:GRID_PROMPTS]:
        rows: dict[str, dict[int, Picture]] = {}
        for run in runs:
            setting = re.sub(r"\s*\bsteps=\d+", "", run.setting).strip() or str(run.config.get("method.name"))
            if picture := _first(run.pictures, prompt):
                rows.setdefault(setting, {})[int(run.config["train.steps"])] = picture
        cells = [
            (name, [(by[s].file if s in by else None, f"{prompt}, {name}, {s} steps") for s in steps])
            for name, by in rows.items()
        ]
        grids.append((f"{concept}: “{prompt}”, seed {runs[0].seed}", [f"{step} steps" for step in steps], cells))
    return grids


def _first(pictures: Sequence[Picture], prompt: str) -> Picture | None:
    return next((picture for picture in pictures if picture.prompt == prompt), None)


def _embedded(grid: Any, embed: Embedder) -> Grid:
    title, columns, rows = grid
    return Grid(
        title, columns, [(label, [(embed(f) if f else None, alt) for f, alt in cells]) for label, cells in rows]
    )


# --- the side-by-side viewer ----------------------------------------------------------------------------------------

Viewed = list[tuple[RunRecord, dict[str, Picture]]]  # run -> template -> its first picture


def viewed(study: Study) -> Viewed:
    found: Viewed = []
    for run in study.runs:
        pictures: dict[str, Picture] = {}
        for picture in run.pictures:
            pictures.setdefault(template_of(picture.prompt, run), picture)
        if pictures:
            found.append((run, dict(list(pictures.items())[:VIEWED_PROMPTS])))
    return found


def viewer_data(viewer: Viewed, embed: Embedder) -> str | None:
    """JSON for the page's script: labels, prompts, and each run's pictures as [uri, prompt, seed]. Safe in HTML."""
    runs = []
    for run, pictures in viewer:
        shown = {t: [uri, p.prompt, p.seed] for t, p in pictures.items() if (uri := embed(p.file))}
        runs.append({"label": run.label, "pictures": shown})
    if len(runs) < 2:
        return None
    prompts = list(dict.fromkeys(template for run in runs for template in run["pictures"]))
    first = viewer[0][0]
    alike = [i for i, (run, _) in enumerate(viewer) if (run.concept, run.seed) == (first.concept, first.seed)]
    right = alike[-1] or len(runs) - 1  # at first: two settings on the same concept and seed, where there are two
    text = json.dumps({"prompts": prompts, "runs": runs, "right": right}, ensure_ascii=False)
    return text.replace("<", "\\u003c").replace("&", "\\u0026")


def _files(grids: Cells, viewer: Viewed) -> list[Path]:
    of_grids = [file for _, _, rows in grids for _, cells in rows for file, _ in cells if file]
    return of_grids + [picture.file for _, pictures in viewer for picture in pictures.values()]


def _attention_alt(run: RunRecord) -> str:
    return f"{run.label}: the picture, attention of the class word before training, and after"


# --- commands and environment ---------------------------------------------------------------------------------------


def alone(run: RunRecord, study: Study) -> str:
    """The command that makes this run without the sweep."""
    swept = (run.run.info.get("sweep") or {}).get("swept", {})
    if swept and study.commands:
        words = [word for word in shlex.split(study.commands[-1])[3:] if word not in ("-m", "--multirun")]
        words = [
            word for word in words if word.partition("=")[0] not in (*swept, "name", "hydra/launcher", "hydra/sweeper")
        ]
        words = [word for word in words if not word.startswith(("hydra.", "sweep."))]
        return shlex.join(["python", "-m", "cdiff", *words, *(f"{key}={value}" for key, value in swept.items())])
    return shlex.join(["python", "-m", "cdiff", *map(str, run.run.info.get("argv") or [])])


def environment_rows(study: Study) -> list[tuple[str, str]]:
    """Versions, device, code and host; several values where the runs differ."""
    found: dict[str, dict[str, None]] = {}
    for run in study.runs:
        info = run.run.info
        facts = {"device": info.get("device"), "precision": info.get("precision"), "code": info.get("git")}
        for name, value in {**facts, **(info.get("versions") or {})}.items():
            if value is not None:
                found.setdefault(name, {})[str(value)] = None
    return [(name, ", ".join(values)) for name, values in found.items()]


def _published(study: Study) -> list[tuple[str, str, dict[str, float]]]:
    """Figures of papers, for a study whose runs saw photos; the pocket world has nobody else's."""
    if study.runs[0].config.get("model.world") != "photo":
        return []
    protocols = {str(run.metrics.get("protocol")) for run in study.runs}
    concepts = len(study.runs[0].run.info.get("concepts") or [""])
    return [(line.method, line.table, line.values) for p in sorted(protocols) for line in published(p, concepts)]
