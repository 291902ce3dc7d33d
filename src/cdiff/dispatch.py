"""Does one task, and turns what goes wrong into a sentence, an exit code and the state of the run.

Exit codes: 0 done, or stopped in good order at a first signal; 1 a bug or a failed job of a sweep; 2 a mistake of the
user or a disk that refuses; 130 interrupted.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

import yaml

from cdiff import console, memory, processes, runs, storage, tasks
from cdiff.convert import to_dict
from cdiff.errors import UserError
from cdiff.plan import plan
from cdiff.schema import Config
from cdiff.signals import LEFT_NOW, Interrupted

SHARED = ("train", "sample", "evaluate", "pretrain")  # tasks that several processes share; others are the first's


class JobFailed(Exception):
    """A job of a sweep has failed, and its sentence has been shown: tells the sweeper, is not shown again."""


def guarded(action: Callable[[], int]) -> int:
    """Turn what goes wrong into a sentence, an exit code and the run's state."""
    try:
        return action()
    except JobFailed:
        return 1
    except UserError as error:
        _ended(str(error), "fail")
        return 2
    except Interrupted as stop:
        return _stopped(stop)
    except KeyboardInterrupt:
        run = runs.active()
        kept = f"; what it wrote is in {run.folder}" if run else ""
        _ended(f"Stopped before the end{kept}.", "interrupt")
        return LEFT_NOW
    except Exception as error:
        run = runs.active()
        sentence = _lost_folder() or memory.refusal(error) or storage.refusal(error, run.folder if run else None)
        if sentence is not None:
            _ended(sentence, "fail")
            return 2
        _bug(error)
        return 1


def run_task(config: Config, folder: str) -> dict[str, Any] | None:
    """Do the task, or say what it would do. The run, if the task started one, has ended when this returns."""
    config.output = config.output or folder
    if config.dry_run:
        _show_plan(config)
        return None
    if not processes.is_first() and config.task not in SHARED:
        return None
    result = tasks.load(config.task)(config)
    run = runs.active()
    if run is not None:
        run.finish(result)
    return result


def _stopped(stop: Interrupted) -> int:
    """A first signal: the run is saved and says how it goes on."""
    run = runs.active()
    if run is None:
        console.complain("Stopped before the run began.")
        return LEFT_NOW
    console.say(f"{stop}. Go on with: python -m cdiff task=train resume={run.folder}")
    run.interrupt(str(stop))
    return 0


def _lost_folder() -> str | None:
    run = runs.active()
    if run is None or run.folder.is_dir():
        return None
    return f"The run's folder {run.folder} is gone: it was deleted or renamed while the run worked, which stops it."


def _show_plan(config: Config) -> None:
    sys.stdout.write(yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True))
    console.summary("Dry run: nothing was done. A run would do this", plan(config))


def _ended(sentence: str, how: str) -> None:
    """Show the sentence (in log.txt too) and mark the run of this process, if one has started."""
    run = runs.active()
    if processes.is_first():
        console.complain(sentence)
    elif run is not None:  # before a run begins all processes make the same mistakes
        console.complain(f"process {processes.rank()}: {sentence}")
    if run is not None:
        getattr(run, how)(sentence)


def _bug(error: Exception) -> None:
    run = runs.active()
    trace = traceback.format_exc()
    kind = f"{type(error).__name__}: {error}".splitlines()[0]
    if run is not None:
        logging.getLogger(console.SAID).error(trace)
    debug = bool(os.environ.get("CDIFF_DEBUG"))
    if debug:
        sys.stderr.write(trace)
    where = f"the details are in {run.folder / 'log.txt'}" if run else "CDIFF_DEBUG=1 shows the details"
    _ended(f"This is a bug of cdiff, not of yours ({kind}); {'see above' if debug else where}.", "fail")
