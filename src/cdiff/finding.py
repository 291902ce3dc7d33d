"""Which run is meant: by `run=` (a folder, or the newest that is done) and by `resume=latest`."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cdiff.errors import UserError
from cdiff.runs import OUTPUTS, TRAINED, Run


def find_run(
    spec: str | Path, task: str = "train", concept: str | Sequence[str] | None = None, finished: bool = True
) -> Run:
    """The run that `run=` names.

    Args:
        spec: "latest" (the newest finished run of `task` under outputs/, of the concepts named) or a run's folder.
        task: what the run did; "train" finds merged runs too.
        finished: refuse a run that is not done.

    Raises:
        UserError: there is none, or it is running, failed, damaged or no run at all.
    """
    concepts = [concept] if isinstance(concept, str) else list(concept or ())
    return _latest(task, concepts) if str(spec) == "latest" else _named(Path(spec).expanduser(), task, finished)


def find_resumable(concepts: Sequence[str] = (), method: str | None = None) -> Run:
    """The newest training run under outputs/ that was stopped before it was done; of all these concepts, if named.

    A run that failed before its first checkpoint would fail again and is passed over.

    Raises:
        UserError: there is none.
    """
    found = []
    for file in OUTPUTS.glob("**/run.json"):
        with contextlib.suppress(UserError):
            found.append(Run(file.parent))
    runs = [r for r in found if r.info.get("task") == "train" and set(concepts) <= set(r.info.get("concepts", []))]
    runs = [r for r in runs if r.status != "done" and method in (None, r.info.get("method"))]
    open_ends = [r for r in runs if r.status != "failed" or r.checkpoints()]
    stopped = [r for r in open_ends if not r.is_live()]
    if stopped:
        return max(stopped, key=lambda run: (str(run.info.get("started")), run.folder.stat().st_mtime))
    of_concept = f" of {' and '.join(concepts)}" if concepts else ""
    running = f"; {open_ends[0].folder} is still running" if open_ends else ""
    raise UserError(f"resume=latest: no training run{of_concept} under {OUTPUTS}/ was stopped before its end{running}.")


def is_sweep(spec: Any) -> bool:
    """Whether `run=` names a folder that is no run and has runs below it."""
    folder = Path(spec).expanduser() if isinstance(spec, str) else None
    return folder is not None and not (folder / "run.json").exists() and any(folder.glob("*/**/run.json"))


def _latest(task: str, concepts: list[str]) -> Run:
    found: list[Run] = []
    for file in OUTPUTS.glob("**/run.json"):
        try:
            found.append(Run(file.parent))
        except UserError:
            continue  # a damaged neighbour must not hide the good ones
    of_concept = f" of {' and '.join(concepts)}" if concepts else ""
    runs = [r for r in found if _does(r, task) and set(concepts) <= set(r.info.get("concepts", []))]
    done = [r for r in runs if r.status == "done"]
    if done:
        return max(done, key=lambda run: (str(run.info.get("finished")), run.folder.stat().st_mtime))
    say = f"python -m cdiff task={task}" + (f" concept={','.join(concepts)}" if len(concepts) == 1 else "")
    if not runs:
        others = sorted({name for r in found if _does(r, task) for name in r.info.get("concepts", [])})
        hint = f"; there are runs of {', '.join(others)}" if others else f"; make one: {say}"
        raise UserError(f"There is no finished {task} run{of_concept} under {OUTPUTS}/{hint}.")
    newest = max(runs, key=lambda run: str(run.info.get("started")))
    raise UserError(f"No {task} run{of_concept} under {OUTPUTS}/ is finished; the newest, {_state(newest)}.")


def _named(folder: Path, task: str, finished: bool) -> Run:
    run = Run(folder)
    if not _does(run, task):
        raise UserError(f"{folder} is a run of task={run.info.get('task')}, not of task={task}.")
    if finished and run.status != "done":
        raise UserError(f"The run can't be used: {_state(run)}.")
    return run


def _does(run: Run, task: str) -> bool:
    """Whether the run is one of `task`; a merged run stands for a training run."""
    return run.info.get("task") in (TRAINED if task == "train" else (task,))


def _state(run: Run) -> str:
    """A half-sentence on a run that is not done."""
    if run.status != "running":
        reason, verb = run.info.get("reason"), "has" if run.status == "failed" else "was"
        return f"{run.folder}, {verb} {run.status}" + (f" ({reason})" if reason else "")
    if run.is_live():
        return f"{run.folder}, is still running (process {run.info.get('pid')})"
    return f"{run.folder}, was killed before it ended"
