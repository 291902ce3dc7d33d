"""Which runs `run=` names for an evaluation, what each of them learned, and what makes them different."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cdiff import console
from cdiff.adapter import Adapter
from cdiff.concepts import resolve_concepts
from cdiff.convert import flat, to_dict
from cdiff.errors import UserError
from cdiff.finding import find_run, is_sweep
from cdiff.runs import NOT_A_SETTING, TRAINED, Run
from cdiff.schema import Config
from cdiff.sweep_folder import ATTEMPTS


@dataclass(frozen=True)
class TrainedSubject:
    """A concept of a finished run."""

    name: str
    token: str
    class_word: str
    run: Run

    @property
    def folder(self) -> Path | None:
        """The user's own folder of its pictures, by name alone; null when its pictures come from elsewhere."""
        concept = self.run.config().concepts.get(self.name)
        return Path(concept.images) if concept is not None and concept.images else None

    def pictures(self) -> Path:
        """The folder of the pictures it was trained on, rendered or fetched again where need be.

        Raises:
            UserError: they are gone, or the run does not tell them.
        """
        config = self.run.config()
        if self.name not in config.concepts:
            raise UserError(f"The run {self.run.folder} does not tell which pictures {self.name} was trained on.")
        return next(c.folder for c in resolve_concepts(config) if c.name == self.name)


def find_runs(cfg: Config) -> list[Run]:
    """The finished runs of `cfg.run`: a run, several, or all of a sweep's folder.

    Raises:
        UserError: none, a run named twice, or one that is not finished (in a sweep these are passed over and named).
    """
    specs = cfg.run if isinstance(cfg.run, list) else [cfg.run]
    if "base" in specs:
        raise UserError(
            "task=evaluate scores trained runs; for the base model draw with task=sample run=base, then images=DIR."
        )
    runs: list[Run] = []
    for spec in specs:
        found = sweep_runs(Path(spec).expanduser()) if is_sweep(spec) else [find_run(spec, concept=list(cfg.concepts))]
        runs += found
    folders = [run.folder.resolve() for run in runs]
    for folder in folders:
        if folders.count(folder) > 1:
            raise UserError(f"run= names {folder} twice.")
    return runs


def sweep_runs(folder: Path) -> list[Run]:
    """The finished training runs below a folder, in the order of their job numbers."""
    runs = []
    for file in folder.glob("*/**/run.json"):
        if file.relative_to(folder).parts[0] == ATTEMPTS:
            continue
        try:
            runs.append(Run(file.parent))
        except UserError as error:
            console.warn(str(error))
    runs = sorted((run for run in runs if run.info.get("task") in TRAINED), key=lambda run: _natural(run.folder))
    done = [run for run in runs if run.status == "done"]
    left = [f"{run.folder.name} ({run.status})" for run in runs if run.status != "done"]
    if not done:
        why = f"{len(left)} are not: {', '.join(left[:5])}" if left else "it has no training run"
        raise UserError(f"No run of the sweep {folder} is finished: {why}.")
    if left:
        console.warn(f"passed over, since they are not finished: {', '.join(left)}")
    return done


def subjects_of(run: Run, adapter: Adapter) -> list[TrainedSubject]:
    """What the adapter's own description says it learned; one without a description tells its tokens alone."""
    said = adapter.info.get("concepts") or [{"token": token} for token in adapter.tokens]
    return [
        TrainedSubject(
            entry.get("name") or entry["token"].strip("<>"), entry["token"], entry.get("class_word") or "", run
        )
        for entry in said
    ]


def config_of_run(cfg: Config, run: Run) -> Config:
    """`cfg` with the model, method and concepts of the run. Of a single run the command line has seen to it already."""
    if isinstance(cfg.run, str) and not is_sweep(cfg.run):
        return cfg
    past = run.config()
    return replace(cfg, model=past.model, method=past.method, concept=past.concept, concepts=past.concepts)


def settings(runs: Sequence[Run]) -> list[str]:
    """What each run was told that others were not, concepts and seeds aside: "loss.spl_weight=0"; else its method."""
    configs = [flat(to_dict(run.config())) for run in runs]
    keys = list(dict.fromkeys(key for config in configs for key in config if not key.startswith(NOT_A_SETTING)))
    differ = [key for key in keys if len({str(config.get(key)) for config in configs}) > 1]
    return [
        ", ".join(f"{key}={config[key]}" for key in differ if key in config) or run.config().method.name
        for run, config in zip(runs, configs, strict=True)
    ]


def labels(folders: Sequence[Path]) -> list[str]:
    """Short names that tell the folders apart: what lies below their common parent, or the last three parts of one."""
    if len(folders) == 1:
        return ["/".join(folders[0].resolve().parts[-3:])]
    resolved = [folder.resolve() for folder in folders]
    common = os.path.commonpath([folder.parent for folder in resolved])
    return [folder.relative_to(common).as_posix() for folder in resolved]


def _natural(folder: Path) -> list[tuple[int, str]]:
    """ "2-..." before "10-..."."""
    heads = [part.partition("-")[0] for part in folder.parts]
    return [(int(head), part) if head.isdecimal() else (0, part) for head, part in zip(heads, folder.parts)]
