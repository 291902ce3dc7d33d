"""What a report is about, read from run folders. A folder that can't be read is named, and never ends the report."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cdiff.convert import flat, to_dict
from cdiff.errors import UserError
from cdiff.runs import NOT_A_SETTING, PHRASES_FILE, PROBES, TRAINED, Run
from cdiff.schema import METRICS
from cdiff.sweep_folder import job_runs, read_sweep

Series = list[tuple[int, float]]  # (step, value)


@dataclass(frozen=True)
class Picture:
    """A drawn image: its file, and what it was drawn with."""

    file: Path
    prompt: str
    seed: int
    index: int


@dataclass
class RunRecord:
    """One finished run, with what its folder tells."""

    run: Run
    config: dict[str, Any]  # by dotted names
    label: str = ""  # what tells it from the others
    setting: str = ""  # the same without concept and seed: runs of one setting are averaged

    @property
    def folder(self) -> Path:
        return self.run.folder

    @property
    def concept(self) -> str:
        return "+".join(self.run.info.get("concepts") or ["any"])

    @property
    def seed(self) -> int:
        return int(self.run.info.get("seed", 0))

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """metrics.json of the run's evaluation (the newest of several); empty without one."""
        files = sorted(self.folder.glob("evaluation/*/metrics.json"), key=lambda file: file.stat().st_mtime)
        return read_json(files[-1]) if files else {}

    @property
    def overall(self) -> dict[str, dict[str, float | None]]:
        """Metric -> mean, low, high over prompts."""
        return {name: one for name, one in (self.metrics.get("overall") or {}).items() if name in METRICS}

    @cached_property
    def scalars(self) -> dict[str, Series]:
        """What was logged while it trained: name -> (step, value)."""
        found: dict[str, Series] = {}
        for event in _events(self.folder / "events.jsonl"):
            if event.get("event") == "scalars":
                for name, value in event.items():
                    if name not in ("time", "event", "step") and isinstance(value, int | float):
                        found.setdefault(name, []).append((int(event["step"]), float(value)))
        return found

    @cached_property
    def phrases(self) -> dict[str, np.ndarray] | None:
        """phrases.npz of the drift probe."""
        try:
            with np.load(self.folder / PROBES / PHRASES_FILE, allow_pickle=False) as kept:
                return {name: kept[name] for name in kept.files}
        except (OSError, ValueError, EOFError, KeyError):
            return None

    def attention(self) -> list[Path]:
        """Picture, map before, map after, in one image a concept."""
        files = sorted((self.folder / PROBES).glob("attention-*.png"))
        return [file for file in files if not file.stem.endswith(("-before", "-after"))]

    def validation(self) -> dict[int, list[Picture]]:
        """Step -> the pictures drawn at it."""
        found = {}
        for folder in sorted(self.folder.glob("validation/step-*")):
            if folder.name[5:].isdecimal() and (pictures := read_pictures(folder)):
                found[int(folder.name[5:])] = pictures
        return found

    @cached_property
    def pictures(self) -> list[Picture]:
        """The final ones: of the evaluation where there is one, else of the samples."""
        for folder in [*sorted(self.folder.glob("evaluation/*/images")), self.folder / "samples"]:
            if found := read_pictures(folder):
                return found
        return []


@dataclass(frozen=True)
class Unfinished:
    """A run that is in no average."""

    name: str
    state: str  # failed | interrupted | dead | running
    reason: str
    log: str


@dataclass
class Study:
    """All that a report tells."""

    title: str
    runs: list[RunRecord]
    unfinished: list[Unfinished]
    foreign: list[str]  # folders that are no runs, or damaged
    swept: list[str]  # keys in which the runs differ
    shared: dict[str, Any]  # the settings in which they agree
    commands: list[str] = field(default_factory=list)
    videos: list[Run] = field(default_factory=list)  # runs of task=video, for cdiff.report.clips

    @property
    def metrics(self) -> list[str]:
        return [name for name in METRICS if any(name in run.overall for run in self.runs)]


def read_study(specs: Sequence[Path], title: str | None = None) -> Study:
    """The runs of sweep folders and single runs; of runs of task=video alone, the runs their clips were drawn with too.

    Raises:
        UserError: a path that holds no run at all, or no run is finished.
    """
    runs: list[Run] = []
    foreign: list[str] = []
    commands: list[str] = []
    for path in specs:
        own, others = _runs_of(path)
        runs += own
        foreign += others
        commands += [call["command"] for call in (read_sweep(path) or {}).get("calls", []) if "command" in call]
    videos = [run for run in runs if run.info.get("task") == "video" and run.status == "done"]
    if videos and len(videos) == len(runs):
        own, lost_ones = _trained_by(videos)
        runs += own
        foreign += lost_ones
    records = []
    for run in runs:
        if run.status == "done" and run.info.get("task") in TRAINED:
            try:
                records.append(RunRecord(run, flat(to_dict(run.config()))))
            except UserError as error:
                foreign.append(str(error))
    lost = [_unfinished(run) for run in runs if run.status != "done"]
    foreign += [f"{r.folder.name} (a run of task={r.info.get('task')})" for r in runs if _is_other(r)]
    if not records:
        why = f"; {len(lost)} are not: {lost[0].name} ({lost[0].state}) ..." if lost else ""
        raise UserError(
            f"No training run of {', '.join(map(str, specs))} is finished: there is nothing to report{why}."
        )
    shared_by_all, swept = _compared(records)
    _name(records, swept)
    commands = list(dict.fromkeys(commands))
    return Study(title or _title(specs), records, lost, foreign, swept, shared_by_all, commands, videos)


def _trained_by(videos: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """The training runs that clips were drawn with, each once, and a sentence for each that can't be read."""
    found, lost = [], []
    for folder in dict.fromkeys(run.info["trained"] for run in videos if run.info.get("trained")):
        try:
            found.append(Run(Path(folder)))
        except UserError as error:
            lost.append(str(error))
    return found, lost


def _runs_of(path: Path) -> tuple[list[Run], list[str]]:
    if not path.is_dir():
        raise UserError(f"There is no folder {path}.")
    if (path / "run.json").exists():
        return [Run(path)], []
    runs, foreign = job_runs(path)
    if not runs:
        raise UserError(f"{path} holds no run: name a sweep's folder, or runs.")
    return runs, foreign


def _is_other(run: Run) -> bool:
    return run.status == "done" and run.info.get("task") not in (*TRAINED, "video")


def _unfinished(run: Run) -> Unfinished:
    said = str(run.info.get("reason") or {"dead": "killed before it ended", "running": "still running"}.get(run.state))
    return Unfinished(run.folder.name, run.state, said, str(run.folder / "log.txt"))


def _title(specs: Sequence[Path]) -> str:
    return specs[0].resolve().name if len(specs) == 1 else f"{len(specs)} folders"


def _compared(records: Sequence[RunRecord]) -> tuple[dict[str, Any], list[str]]:
    """Settings that are the same in all runs, and the keys in which the runs differ."""
    ignored = tuple(key for key in NOT_A_SETTING if key not in ("seed", "concept.", "concepts."))
    keys = list(dict.fromkeys(key for record in records for key in record.config if not key.startswith(ignored)))
    values = {key: [record.config.get(key) for record in records] for key in keys}
    differ = [key for key, found in values.items() if any(value != found[0] for value in found)]
    told = list(dict.fromkeys(key for r in records for key in (r.run.info.get("sweep") or {}).get("swept", {})))
    swept = told or [key for key in differ if not key.startswith(("concept", "seed"))]
    return {key: found[0] for key, found in values.items() if key not in differ}, swept


def _name(records: Sequence[RunRecord], swept: Sequence[str]) -> None:
    for record in records:
        said = (record.run.info.get("sweep") or {}).get("swept", {})
        pairs = [(key, _short(said.get(key, record.config.get(key)))) for key in swept]
        parts = [f"{key.split('.')[-1]}={value}" for key, value in pairs if value is not None]
        record.label = " ".join(parts) or "/".join(record.folder.parts[-2:])
        own = [
            f"{k.split('.')[-1]}={v}" for k, v in pairs if v is not None and k.split(".")[0] not in ("concept", "seed")
        ]
        record.setting = " ".join(own) or str(record.config.get("method.name"))
    seen: dict[str, int] = {}
    for record in records:
        seen[record.label] = seen.get(record.label, 0) + 1
    for record in records:
        if seen[record.label] > 1:
            record.label = f"{record.folder.name}: {record.label}"


def _short(value: Any) -> str | None:
    return None if value is None else str(value)


def read_pictures(folder: Path) -> list[Picture]:
    """What prompts.json of a folder names and is there; nothing where it can't be read."""
    found = []
    for name, entry in read_json(folder / "prompts.json").items():
        file = folder / name
        if isinstance(entry, Mapping) and file.is_file():
            found.append(
                Picture(file, str(entry.get("prompt", "")), int(entry.get("seed") or 0), int(entry.get("index") or 0))
            )
    return found


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none to read."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _events(file: Path) -> Iterator[dict[str, Any]]:
    """Lines of events.jsonl; a half line of a killed process is passed over."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict):
            yield event


def number(value: float | None, digits: int = 3) -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"
