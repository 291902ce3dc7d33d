"""task=evaluate: score a run, several runs, a sweep, or anybody's images.

    python -m cdiff task=evaluate run=latest protocol=pocket
    python -m cdiff task=evaluate run=[A,B]                   both, and B against A on the same prompts and seeds
    python -m cdiff task=evaluate run=outputs/sweeps/NAME     all finished runs of a sweep
    python -m cdiff task=evaluate images=DIR references=DIR   images of any program (CustomConcept101's layout)

Images, rows and metrics.json of a run lie in RUN/evaluation/NAME, so that they are found again: what is drawn or scored
already is not done twice. The task's own run holds the collection.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from cdiff import console, processes
from cdiff.adapter import Adapter, load_adapter
from cdiff.devices import process_device
from cdiff.evaluation.compare import Comparison, compare
from cdiff.evaluation.drawn import adapter_digest
from cdiff.evaluation.evaluating import evaluate_images, evaluate_run, open_scoring
from cdiff.evaluation.pictures import given_pictures, pictures_of_run
from cdiff.evaluation.protocol import coverage
from cdiff.evaluation.results import Result, over_concepts, write_collection
from cdiff.evaluation.rows import read_rows
from cdiff.evaluation.runs import config_of_run, find_runs, labels, settings, subjects_of
from cdiff.evaluation.tables import show_comparison, show_result, show_results, track
from cdiff.models import DTYPES, Base, load_base, resolve_precision
from cdiff.runs import Run
from cdiff.schema import Config
from cdiff.token_adjust import apply_for_sampling
from cdiff.tracking import open_tracker


def run(cfg: Config) -> dict[str, Any]:
    """Evaluate what `run=` or `images=` names. Returns folders, overall means and the objective."""
    trained = [] if cfg.images else find_runs(cfg)
    run = Run.start(cfg, "evaluate")
    if not processes.is_first():  # draws along, and the first process does all the rest
        _evaluate_runs(cfg, trained)
        return {}
    with ExitStack() as stack:
        tracker = open_tracker(cfg, run)
        stack.callback(tracker.finish)
        with run.timed("evaluate"):
            results = _evaluate_runs(cfg, trained) if trained else [_evaluate_images(cfg, run)]
        comparison = _compare(cfg, results) if isinstance(cfg.run, list) and len(trained) == 2 else None
        show_results(results) if len(results) > 1 else show_result(results[0])
        if comparison is not None:
            show_comparison(results[0], results[1], comparison)
        track(tracker, results, comparison)
    covered = coverage(cfg.protocol, [name for result in results for name in result.concepts]) if trained else None
    if covered:
        console.say(f"This covers {covered}.")
    file = write_collection(run.folder, results, comparison, covered)
    folders = [str(result.folder) for result in results]
    seconds = run.info["timings"]["evaluate"]
    images = sum(result.summary.scored for result in results)
    console.summary("Done", {"scored": f"{images} images in {seconds:.1f} s", "rows": folders[0], "metrics": file})
    overall = over_concepts(results)
    means = {name: one.mean for name, one in overall.items()}
    outcome = {"folder": str(run.folder), "results": folders, "overall": means}
    outcome["objective"] = means.get(cfg.evaluate.objective)
    run.finish(outcome)
    return outcome


def _evaluate_runs(cfg: Config, runs: list[Run]) -> list[Result]:
    results, opened = [], {}
    names = labels([run.folder for run in runs])
    for run, name, setting in zip(runs, names, settings(runs), strict=True):
        if len(runs) > 1:
            console.say(f"{name}:")
        own = config_of_run(cfg, run)
        world = own.model.world
        if world not in opened:
            opened[world] = open_scoring(own, world, process_device(cfg.device), with_references=True)
        adapter = load_adapter(run.folder / "adapter")
        facts = {"name": name, "run": str(run.folder.absolute()), "method": own.method.name, "setting": setting}
        subjects = subjects_of(run, adapter)
        pictures = pictures_of_run(own, run, subjects, opened[world])
        made = adapter_digest(run.folder / "adapter")
        base = _loader(own, adapter)
        results.append(evaluate_run(own, subjects, pictures, run.folder, opened[world], base, made, facts))
    return results


def _evaluate_images(cfg: Config, run: Run) -> Result:
    pictures = given_pictures(cfg)
    scoring = open_scoring(cfg, cfg.model.world, process_device(cfg.device), with_references=bool(pictures))
    folder = Path(cfg.images)
    facts = {"name": folder.resolve().name, "images_of": str(folder.absolute()), "protocol": None}
    return evaluate_images(cfg, folder, pictures, scoring, facts | {"folder": str(run.folder)})


def _loader(cfg: Config, adapter: Adapter) -> Callable[[], Base]:
    """Loads the run's base with its adapter, when an image is missing."""

    def load() -> Base:
        device = process_device(cfg.device)
        base = load_base(cfg.model, DTYPES[resolve_precision(cfg.precision, device)], device)
        apply_for_sampling(base, adapter, cfg.sampler.token_adjust)
        return base

    return load


def _compare(cfg: Config, results: list[Result]) -> Comparison:
    a, b = results
    metrics = [name for name in a.summary.metrics if name in b.summary.metrics]
    return compare(read_rows(a.rows_file), read_rows(b.rows_file), metrics, cfg.evaluate.resamples)
