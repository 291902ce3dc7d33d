"""A sweep's folder: which sweep it holds (sweep.json), what became of each job, and what need not be done again.

    outputs/sweeps/NAME/
        sweep.json                  the swept keys, and every command that worked on the sweep
        0-loss.spl_weight=0/        a job: a run's folder like any other
        attempts/0-.../1/           what an earlier attempt at a job left, kept for its log
Other folders may lie there too: what has no run.json is not part of the sweep, and is left alone.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from cdiff.convert import flat, to_dict
from cdiff.errors import UserError
from cdiff.runs import Run, atomic_write, git_commit
from cdiff.schema import Config

SWEEP_FILE = "sweep.json"
ATTEMPTS = "attempts"
ITS_OWN = {SWEEP_FILE, ATTEMPTS, "multirun.yaml", "optimization_results.yaml", ".lock", ".submitit"}
# What may differ between two attempts at the same job: none of it changes a number.
NOT_COMPARED = ("output", "dry_run", "name", "device", "logger", "sweep", "report")

Swept = Mapping[str, str]  # key -> value: what tells a job from the others


@dataclass(frozen=True)
class Failure:
    """A job that did not end well."""

    folder: Path
    state: str  # failed | interrupted | dead | running
    reason: str

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"


@contextlib.contextmanager
def opened(folder: Path, keys: Sequence[str], command: str, resume: bool) -> Iterator[None]:
    """Take the folder for one sweep: nobody else works on it meanwhile, and sweep.json tells the command.

    Raises:
        UserError: another process works on it, it holds another sweep or something else, or `resume` is off and it
            holds a sweep already.
    """
    before = read_sweep(folder)
    _refuse_another(folder, keys, before, resume)
    fresh = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = (folder / ".lock").open("w")
    except OSError as error:
        raise UserError(f"The sweep's folder {folder} can't be written ({error.strerror}): choose name=.") from error
    with stream:
        _lock(stream, folder)
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        call = {"command": command, "started": now, "git": git_commit()}
        calls = [*(before or {}).get("calls", []), call]
        atomic_write(folder / SWEEP_FILE, json.dumps({"keys": sorted(keys), "calls": calls}, indent=2) + "\n")
        try:
            yield
        finally:
            if fresh and {path.name for path in folder.iterdir()} <= {SWEEP_FILE, ".lock", "multirun.yaml"}:
                shutil.rmtree(folder)  # no job has started: leave nothing


def read_sweep(folder: Path) -> dict[str, Any] | None:
    """sweep.json; null where there is none.

    Raises:
        UserError: it is damaged.
    """
    file = folder / SWEEP_FILE
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or not isinstance(content.get("keys"), list):
            raise ValueError("it lacks the swept keys")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is damaged ({str(error).splitlines()[0]}): choose another name=.") from error
    return content


def _refuse_another(folder: Path, keys: Sequence[str], before: Mapping[str, Any] | None, resume: bool) -> None:
    if before is None:
        foreign = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        if foreign:
            raise UserError(f"{folder} exists and is no sweep's folder ({foreign[0]} ...): choose another name=.")
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder} is a file: choose another name=.")
        return
    if not resume:
        raise UserError(f"{folder} holds a sweep already: sweep.resume=true goes on with it, or choose another name=.")
    if sorted(keys) != before["keys"]:
        raise UserError(
            f"{folder} holds another sweep, over {_listed(before['keys'])}, and this one is over "
            f"{_listed(sorted(keys))}: choose another name=."
        )


def _lock(stream: Any, folder: Path) -> None:
    try:
        import fcntl

        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:  # no such locks on this system
        pass
    except OSError:
        raise UserError(f"Another process works on the sweep {folder}: wait for it, or choose another name=.") from None


def job_runs(folder: Path) -> tuple[list[Run], list[str]]:
    """The runs of a sweep's jobs in the order of their numbers, and the names of what is no run of it.

    Earlier attempts are neither. A run whose run.json can't be read is named among the latter.
    """
    found, foreign = [], []
    for path in sorted(folder.iterdir()):
        if path.name in ITS_OWN or not path.is_dir():
            continue
        try:
            found.append(Run(path))
        except UserError as error:
            foreign.append(str(error) if (path / "run.json").exists() else path.name)
    return sorted(found, key=_number), foreign


def find_job(folder: Path, swept: Swept) -> Run | None:
    """The run of the job with these values, whatever its number; of several the one that is done, or the last."""
    runs = [run for run in job_runs(folder)[0] if (run.info.get("sweep") or {}).get("swept") == dict(swept)]
    done = [run for run in runs if run.status == "done"]
    return (done or runs or [None])[-1]


def finished_job(folder: Path, config: Config, swept: Swept) -> Run | None:
    """The run that has done this job already.

    Raises:
        UserError: it was done with other settings, or is being done at this moment.
    """
    run = find_job(folder, swept)
    if run is None:
        return None
    if run.state == "running":
        where = f"process {run.info.get('pid')} on {run.info.get('host')}"
        raise UserError(f"{run.folder} is still running ({where}); if that process is gone, remove the folder.")
    if run.status != "done":
        return None
    if changed := differences(run.config(), config):
        raise UserError(
            f"{run.folder} was done with other settings ({'; '.join(changed[:3])}): choose another name= for this "
            "sweep."
        )
    return run


def differences(before: Config, now: Config) -> list[str]:
    """ "train.steps 300, now 500" for each setting that changes what a job computes."""
    first, second = flat(to_dict(before)), flat(to_dict(now))
    keys = [key for key in dict.fromkeys([*first, *second]) if key.partition(".")[0] not in NOT_COMPARED]
    return [f"{k} {first.get(k)}, now {second.get(k)}" for k in keys if first.get(k) != second.get(k)]


def make_room(folder: Path, own: Path, swept: Swept) -> None:
    """Before a job starts in `own`: what an earlier attempt at it left, under whatever number, goes to attempts/."""
    left = {run.folder for run in job_runs(folder)[0] if (run.info.get("sweep") or {}).get("swept") == dict(swept)}
    if own.is_dir() and any(own.iterdir()):
        left.add(own)
    for path in left:
        shelf = folder / ATTEMPTS / path.name
        shelf.mkdir(parents=True, exist_ok=True)
        path.rename(shelf / str(1 + len(list(shelf.iterdir()))))
    own.mkdir(exist_ok=True)


def failures(folder: Path) -> list[Failure]:
    """The jobs that are not done."""
    runs = job_runs(folder)[0] if folder.is_dir() else []
    return [Failure(run.folder, run.state, _reason(run)) for run in runs if run.state != "done"]


def _reason(run: Run) -> str:
    if run.state == "dead":
        return "its process was killed before the run ended"
    if run.state == "running":
        return f"it is still running (process {run.info.get('pid')} on {run.info.get('host')})"
    return " ".join(str(run.info.get("reason") or run.status).split())


def _number(run: Run) -> tuple[int, str]:
    head = run.folder.name.partition("-")[0]
    return (int(head) if head.isdecimal() else 10**9, run.folder.name)


def _listed(keys: Sequence[str]) -> str:
    return ", ".join(keys) or "nothing"
