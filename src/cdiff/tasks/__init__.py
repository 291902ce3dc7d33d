"""What `task=` can name: one short module each, with `run(cfg) -> dict`, imported only when it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from cdiff.errors import UserError
from cdiff.schema import Config
from cdiff.suggest import did_you_mean

MODULES = {
    "train": "cdiff.tasks.train",
    "sample": "cdiff.tasks.sample",
    "video": "cdiff.tasks.video",
    "evaluate": "cdiff.tasks.evaluate",
    "merge": "cdiff.tasks.merge",
    "report": "cdiff.tasks.report",
    "export": "cdiff.tasks.export",
    "concept": "cdiff.tasks.concept",
    "doctor": "cdiff.tasks.doctor",
    "pretrain": "cdiff.tasks.pretrain",
}


def load(task: str) -> Callable[[Config], dict[str, Any]]:
    """The task's `run`."""
    if task not in MODULES:
        raise UserError(f"task={task} is unknown; {did_you_mean(task, MODULES)}")
    return importlib.import_module(MODULES[task]).run
