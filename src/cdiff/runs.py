"""A run's folder: what was asked (config.yaml), what became of it (run.json), what was said (log.txt, events.jsonl).

run.json is the truth about a run: `status` is "running" from the first moment and turns into "done", "failed" or
"interrupted" in one atomic step; a process killed in between leaves "running" and a lock that nobody holds (locks).
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from cdiff import processes
from cdiff.convert import to_config, to_dict
from cdiff.errors import UserError
from cdiff.locks import LOCK_FILE, RunLock, holder_of, is_alive, this_process
from cdiff.provenance import git_commit, versions
from cdiff.schema import Config
from cdiff.storage import atomic_write, fsync
from cdiff.untrusted import read_yaml

OUTPUTS = Path("outputs")
EVENTS = "events.jsonl"
TRAINED = ("train", "merge")  # tasks whose runs hold an adapter: run= finds both
# What does not make two runs different methods: the subject, chance, and where and how things were written.
NOT_A_SETTING = (
    "concept.",
    "concepts.",
    "seed",
    "output",
    "name",
    "run",
    "dry_run",
    "logger.",
    "device",
    "evaluate.",
    "sweep.",
    "report.",
    "resume.",
    "checkpoints.",
)
PROBES, PHRASES_FILE = "probes", "phrases.npz"  # in a run's folder: what cdiff.probes writes
log = logging.getLogger("cdiff")
_active: Run | None = None


class Run:
    """One run's folder. `start` makes a new one, `Run(folder)` opens an old one for reading."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.info = read_info(self.folder)
        self._handler: logging.Handler | None = None
        self._lock: RunLock | None = None
        self._began = time.monotonic()

    @classmethod
    def start(cls, cfg: Config, task: str) -> Run:
        """Make the folder `cfg.output` (a number is added to a name that is taken) and mark the run as running.

        Raises:
            UserError: the folder can't be made or written.
        """
        return _together(cfg, lambda: cls._begin(cfg, task))

    @classmethod
    def _begin(cls, cfg: Config, task: str) -> Run:
        global _active
        wanted = Path(cfg.output) if cfg.output else default_folder(cfg, task)
        try:
            folder = _claim(wanted)
            lock = RunLock.acquire(folder)
            atomic_write(folder / "run.json", _json(_first_facts(cfg, task)))
            atomic_write(folder / "config.yaml", _settings(cfg))
            run = cls(folder)
            run._lock = lock
            run._open_log()
        except OSError as error:
            raise _unwritable(wanted, error) from error
        _active = run
        return run

    @classmethod
    def resume(cls, folder: Path, cfg: Config, facts: dict[str, Any]) -> Run:
        """Take up a run that has ended before it was done, or whose process died: it is running again, by this one.

        `cfg`: the configuration it goes on with; `facts`: what run.json notes under `resumed`, one entry each time.

        Raises:
            UserError: a living process works in the folder, the run is done, or the folder can't be written.
        """
        return _together(cfg, lambda: cls._go_on(folder, cfg, facts))

    @classmethod
    def _go_on(cls, folder: Path, cfg: Config, facts: dict[str, Any]) -> Run:
        global _active
        try:
            lock = RunLock.acquire(Path(folder))
            run = cls(folder)
            run._lock = lock
            if run.status == "done":
                lock.release()
                raise UserError(f"The run {folder} is done: there is nothing to resume.")
            for name in ("finished", "reason", "resumable"):
                run.info.pop(name, None)
            before = [*run.info.get("resumed", []), {"at": _now(), **facts}]
            run.note(status="running", **this_process(), argv=sys.argv[1:], versions=versions(), resumed=before)
            atomic_write(run.folder / "config.yaml", _settings(cfg))
            run._open_log()
        except OSError as error:
            raise _unwritable(Path(folder), error) from error
        _active = run
        return run

    @property
    def status(self) -> str:
        return self.info["status"]

    @property
    def state(self) -> str:
        """`status`, or "dead" for a run that says running and whose process is gone."""
        return "dead" if self.status == "running" and not self.is_live() else self.status

    def config(self) -> Config:
        """The configuration the run was started with."""
        try:
            return to_config(read_yaml(self.folder / "config.yaml"))
        except UserError as error:
            raise UserError(f"The run {self.folder} has no readable config.yaml: {error}") from error

    def is_live(self) -> bool:
        """Whether a living process works on the run, whatever run.json was left to say."""
        if (self.folder / LOCK_FILE).exists():
            return holder_of(self.folder) is not None
        return self.status == "running" and is_alive(self.info)  # the folder was copied, or is of an older cdiff

    def event(self, record: dict[str, Any]) -> None:
        """Append one line to events.jsonl, with the time. NaN and infinity become null, as JSON asks."""
        line = json.dumps(_plain({"time": time.time(), **record}), ensure_ascii=False, allow_nan=False)
        with (self.folder / EVENTS).open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def events_size(self) -> int:
        """Bytes of events.jsonl, flushed to the disk: what a checkpoint notes, so that `rewind` can return to it."""
        file = self.folder / EVENTS
        if not file.exists():
            return 0
        fsync(file)
        return file.stat().st_size

    def checkpoint_facts(self) -> dict[str, Any]:
        """What a checkpoint notes of its run."""
        return {"events": self.events_size(), "wandb_id": self.info.get("wandb_id")}

    def rewind(self, size: int) -> None:
        """Forget the events behind the first `size` bytes: the steps that made them are done again."""
        file = self.folder / EVENTS
        if file.exists() and file.stat().st_size > size:
            os.truncate(file, size)

    def note(self, **facts: Any) -> None:
        """Lay facts (device, base model, ...) into run.json."""
        self.info.update(facts)
        atomic_write(self.folder / "run.json", _json(self.info))

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Measure a part of the run: `timings.NAME` in run.json, in seconds."""
        start = time.monotonic()
        try:
            yield
        finally:
            timings = self.info.setdefault("timings", {})
            timings[name] = round(timings.get(name, 0.0) + time.monotonic() - start, 3)

    def finish(self, result: dict[str, Any] | None = None) -> None:
        """The run is done: only now does `run=latest` find it."""
        self._end("done", result=result or {})

    def fail(self, reason: str) -> None:
        self._end("failed", reason=reason)

    def interrupt(self, reason: str = "interrupted") -> None:
        self._end("interrupted", reason=reason)

    def checkpoints(self) -> list[str]:
        """The names of its checkpoints, oldest first."""
        return sorted(path.name for path in (self.folder / "checkpoints").glob("step-*"))

    def _end(self, status: str, **facts: Any) -> None:
        """Write the last state, once: a run that has ended stays as it ended."""
        global _active
        if self.status != "running":
            return
        before = dict(self.info)
        try:
            if status != "done" and self.info.get("task") == "train":
                saved = self.checkpoints()
                resumable = status == "interrupted" or bool(saved)
                facts |= {"resumable": resumable, "checkpoint": saved[-1] if saved else None}
            self.note(status=status, finished=_now(), seconds=round(time.monotonic() - self._began, 3), **facts)
        except OSError:
            self.info = before
            if status == "done":
                raise  # a run whose end can't be written is not done
            log.warning("run.json of %s could not be written: it still says running, by a dead process.", self.folder)
        self._close_log()
        if _active is self:
            _active = None
        if self._lock is not None:
            self._lock.release()

    def _open_log(self) -> None:
        self._handler = _LogFile(self.folder / "log.txt", encoding="utf-8")
        self._handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logger = logging.getLogger("cdiff")
        logger.setLevel(min(logger.level or logging.INFO, logging.INFO))
        logger.addHandler(self._handler)

    def _close_log(self) -> None:
        if self._handler is not None:
            logging.getLogger("cdiff").removeHandler(self._handler)
            self._handler.close()
            self._handler = None


class FollowedRun(Run):
    """The run of another process of the same command, which writes it: here everything is known and nothing written."""

    def event(self, record: dict[str, Any]) -> None: ...

    def rewind(self, size: int) -> None: ...

    def note(self, **facts: Any) -> None:
        self.info.update(facts)

    def _end(self, status: str, **facts: Any) -> None:
        global _active
        self.info["status"] = status
        if _active is self:
            _active = None


def _together(cfg: Config, begin: Callable[[], Run]) -> Run:
    """Of several processes the first begins the run, and the others follow it.

    Raises:
        UserError: the first could not; said in all of them.
    """
    global _active
    if processes.count() == 1:
        return begin()
    processes.join(on_cpu=_on_cpu(cfg.device))
    run, refused = None, None
    if processes.is_first():
        try:
            run = begin()
        except UserError as error:
            refused = error
    folder, sentence = processes.from_first((str(run.folder) if run else None, str(refused) if refused else None))
    if sentence is not None:
        raise refused or UserError(sentence)
    if run is None:
        run = _active = FollowedRun(Path(folder))
    return run


def _on_cpu(device: str) -> bool:
    import torch

    return device == "cpu" or not torch.cuda.is_available()


class _LogFile(logging.FileHandler):
    """log.txt. A line that can't be written is left out: whoever writes what matters tells of the disk."""

    def handleError(self, record: logging.LogRecord) -> None:
        """logging's own prints a traceback."""


def active() -> Run | None:
    """The run of this process that has been started and has not ended."""
    return _active


def default_folder(cfg: Config, task: str) -> Path:
    """outputs/TASK/CONCEPTS/METHOD/TIME, for callers that come without the command line."""
    names = "_".join(cfg.concepts) or "any"
    return OUTPUTS / task / names / cfg.method.name / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")


def read_info(folder: Path) -> dict[str, Any]:
    """run.json as a mapping.

    Raises:
        UserError: the folder or run.json is missing or damaged.
    """
    file = folder / "run.json"
    if not folder.is_dir():
        raise UserError(f"There is no run folder {folder}.")
    try:
        info = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(info, dict) or not isinstance(info.get("status"), str):
            raise ValueError("it lacks the status")
        for key, kind in (("timings", dict), ("resumed", list), ("concepts", list)):
            if not isinstance(info.get(key, kind()), kind):
                raise ValueError(f"its {key} are no {kind.__name__}")
        if not all(isinstance(name, str) for name in info.get("concepts", [])):
            raise ValueError("its concepts are no names")
    except FileNotFoundError:
        raise UserError(f"{folder} is not the folder of a run: it has no run.json.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} is damaged: {_reason(error)}; the run can't be used.") from error
    return info


def _claim(wanted: Path) -> Path:
    """Make the folder, or take an empty one (Hydra makes those of a sweep); else try NAME-2, NAME-3, ..."""
    wanted.parent.mkdir(parents=True, exist_ok=True)
    for number in range(1, 1000):
        folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            if folder.is_dir() and not any(folder.iterdir()):
                return folder
            if not folder.is_dir():
                raise
    raise FileExistsError(f"{wanted} and 999 more are taken")


def _first_facts(cfg: Config, task: str) -> dict[str, Any]:
    of_sweep = {"sweep": asdict(cfg.sweep)} if cfg.sweep.name else {}
    return of_sweep | {
        "status": "running",
        "task": task,
        "concepts": list(cfg.concepts),
        "method": cfg.method.name,
        "model": cfg.model.name,
        "seed": cfg.seed,
        "device": cfg.device,
        **this_process(),
        "started": _now(),
        "argv": sys.argv[1:],
        "git": git_commit(),
        "versions": versions(),
        "timings": {},
    }


def _settings(cfg: Config) -> str:
    return yaml.safe_dump(to_dict(cfg), sort_keys=False, allow_unicode=True)


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")


def _unwritable(folder: Path, error: OSError) -> UserError:
    return UserError(f"Can't write the run's folder {folder}: {_reason(error)}; choose another one with output=DIR.")


def _reason(error: BaseException) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0].rstrip(".")


def _json(info: dict[str, Any]) -> str:
    return json.dumps(_plain(info), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    """What JSON can hold: numbers of other libraries as numbers, NaN and infinity as null, the rest as text."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, bool | int | str) or value is None:
        return value
    if hasattr(value, "item") and not isinstance(value, float) and getattr(value, "ndim", 1) == 0:
        value = value.item()
        return _plain(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value)
