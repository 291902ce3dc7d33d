"""metrics.json: what an evaluation found, as data (docs/metrics.md tells every field)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from cdiff.evaluation.compare import Comparison
from cdiff.evaluation.published import LABEL, Published, published
from cdiff.evaluation.rows import CSV_FILE
from cdiff.evaluation.summary import CONFIDENCE, Estimate, Summary, across
from cdiff.provenance import git_commit, versions
from cdiff.runs import atomic_write

SCHEMA = "cdiff.metrics/1"
METRICS_FILE = "metrics.json"


@dataclass(frozen=True)
class Result:
    """One run's evaluation, on the disk in `folder`."""

    folder: Path
    facts: dict[str, Any]  # name, run or images, method, setting, protocol ...
    concepts: tuple[str, ...]
    models: dict[str, str]  # metric -> model
    summary: Summary

    @property
    def name(self) -> str:
        return str(self.facts["name"])

    @property
    def rows_file(self) -> Path:
        return self.folder / CSV_FILE

    def published(self) -> list[Published]:
        if self.facts.get("of") == "clips":
            return []  # papers measured images
        return published(str(self.facts.get("protocol")), len(self.concepts))

    def objective(self, metric: str) -> float | None:
        """The overall mean of a metric; null when it was not measured."""
        found = self.summary.overall().get(metric)
        return found.mean if found else None


def result_json(result: Result) -> dict[str, Any]:
    summary = result.summary
    return {
        "schema": SCHEMA,
        "kind": "result",
        **result.facts,
        "concepts": {name: _estimates(values) for name, values in summary.of_concepts().items()},
        "models": result.models,
        "images": {"scored": summary.scored, "bad": summary.bad, "bad_files": summary.bad_files},
        "interval": {"method": "percentile bootstrap", "confidence": CONFIDENCE, "resamples": summary.resamples},
        "overall": _estimates(summary.overall()),
        "prompts": summary.of_prompts(),
        "published": {"label": LABEL, "rows": [line.as_json() for line in result.published()]},
        **_origin(),
    }


def write_result(result: Result) -> Path:
    file = result.folder / METRICS_FILE
    atomic_write(file, _json(result_json(result)))
    return file


def groups(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Setting -> its results: runs that differ in their concepts (or seeds) alone belong together."""
    found: dict[str, list[Result]] = {}
    for result in results:
        found.setdefault(str(result.facts.get("setting") or "all runs"), []).append(result)
    return found


def over_concepts(results: Sequence[Result]) -> dict[str, Estimate]:
    """Metric -> mean over concepts with its interval, for runs of one setting."""
    runs: dict[str, list[Mapping[str, Estimate]]] = {}
    for result in results:
        runs.setdefault("+".join(result.concepts), []).append(result.summary.overall())
    metrics = list(dict.fromkeys(name for result in results for name in result.summary.metrics))
    return across(runs, metrics, results[0].summary.resamples)


def write_collection(
    folder: Path, results: Sequence[Result], comparison: Comparison | None, covered: str | None
) -> Path:
    """metrics.json of an evaluation's own run: every result, means over concepts, the comparison of two."""
    settings = {
        setting: {"runs": [r.name for r in members], "overall": _estimates(over_concepts(members), "concepts")}
        for setting, members in groups(results).items()
    }
    content: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": "collection",
        "results": [
            {"name": r.name, "folder": str(r.folder), "overall": _estimates(r.summary.overall())} for r in results
        ],
        "coverage": covered,
        "settings": settings,
        "comparison": None,
        **_origin(),
    }
    if comparison is not None:
        content["comparison"] = {"a": results[0].name, "b": results[1].name, **comparison.as_json()}
    file = folder / METRICS_FILE
    atomic_write(file, _json(content))
    return file


def _estimates(values: Mapping[str, Estimate], over: str = "prompts") -> dict[str, Any]:
    return {name: value.as_json(over) for name, value in values.items()}


def _origin() -> dict[str, Any]:
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    return {"created": now, "git": git_commit(), "versions": versions()}


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False, default=str) + "\n"
