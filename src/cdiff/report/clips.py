"""What a report tells of runs of task=video: their clips, and what these scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cdiff.report.study import Picture, number, read_json, read_pictures
from cdiff.runs import Run

CLIPS = 24  # shown of a run


@dataclass(frozen=True)
class ClipRun:
    """A finished run of task=video."""

    run: Run
    label: str
    clips: list[Picture]  # `file` is the GIF
    overall: dict[str, dict[str, Any]]  # metric -> mean, low, high; empty for clips that were not scored

    @property
    def facts(self) -> str:
        """What drew the clips, in a line."""
        info = self.run.info
        of = f"run {info['trained']}" if info.get("trained") else "the base model alone"
        return f"{of}, motion adapter {info.get('motion')}, {info.get('precision')} on {info.get('device')}"

    @property
    def scores(self) -> list[tuple[str, str, str]]:
        """Metric, mean, interval."""
        return [(name, number(one.get("mean"), 4), _interval(one)) for name, one in self.overall.items()]


def read_clips(runs: Sequence[Run]) -> list[ClipRun]:
    """The clips of finished runs of task=video."""
    found = []
    for run in runs:
        files = sorted(run.folder.glob("evaluation/*/metrics.json"), key=lambda file: file.stat().st_mtime)
        overall = (read_json(files[-1]) if files else {}).get("overall") or {}
        label = "/".join(run.folder.parts[-3:])
        found.append(ClipRun(run, label, read_pictures(run.folder / "clips")[:CLIPS], overall))
    return found


def _interval(one: dict[str, Any]) -> str:
    low, high = number(one.get("low"), 4), number(one.get("high"), 4)
    return f"{low} to {high}" if low and high else ""
