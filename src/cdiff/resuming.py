"""`resume=`: which run goes on, and whether it goes on as what it was.

A run goes on with the configuration that it began with. What the command line says must agree with that, key by key,
unless `resume.allow=[...]` names the key (or its group): then the command line wins.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from cdiff.checks import check
from cdiff.convert import all_keys
from cdiff.errors import UserError
from cdiff.finding import find_resumable
from cdiff.runs import Run
from cdiff.schema import Config
from cdiff.suggest import nearest_key

CHECKPOINTS = "checkpoints"
ABOUT_THE_COMMAND = ("task", "resume", "output", "dry_run", "name")  # settings that say nothing of the training
ALWAYS_NAMED = ("concept", "concepts")  # free names below: compared as a whole


def adopt_resumed(config: Config, words: list[str], composed: Callable[[list[str]], Config]) -> Config:
    """The configuration that the resumed run goes on with; without `resume=` the one given.

    Args:
        config: what the command line's words compose to; `composed` does that for other words.

    Raises:
        UserError: there is no such run, or the words change its settings; names the keys.
    """
    if config.resume.run is None:
        return config
    if config.task != "train":
        raise UserError(f"resume= goes on with a training: say task=train, not task={config.task}.")
    run, checkpoint = find(config, words)
    past = run.config()
    allowed = _allowed(config)
    said = _said(config, composed([f"task={config.task}"]), words)
    changed = {key: value for key, value in said.items() if _value(past, key) != value}
    refused = [key for key in changed if not _covers(allowed, key)]
    if refused:
        lines = [f"{key} was {_show(_value(past, key))} and is {_show(changed[key])}" for key in refused]
        keys = ",".join(refused)
        raise UserError(
            f"The run {run.folder} can't go on with other settings: {'; '.join(lines)}. "
            f"Leave them out, or allow them with resume.allow=[{keys}]."
        )
    for key, value in changed.items():
        _set(past, key, value)
    check(past)
    past.resume = dataclasses.replace(config.resume, run=str(checkpoint or run.folder))
    past.output, past.dry_run = str(run.folder), config.dry_run
    return past


def find(config: Config, words: Iterable[str]) -> tuple[Run, Path | None]:
    """The run that `resume=` names, and the checkpoint where one is named: latest, RUN, or RUN/checkpoints/step-N.

    Raises:
        UserError: there is none, it is done, or a living process works on it.
    """
    spec = str(config.resume.run)
    if spec == "latest":
        heads = {word.partition("=")[0].lstrip("+").partition(".")[0] for word in words}
        concepts = list(config.concepts) if heads & {"concept", "concepts"} else []
        return find_resumable(concepts, config.method.name if "method" in heads else None), None
    folder, checkpoint = Path(spec).expanduser(), None
    if folder.parent.name == CHECKPOINTS:
        folder, checkpoint = folder.parent.parent, folder
        if not checkpoint.is_dir():
            raise UserError(f"resume={spec}: there is no such checkpoint; {_checkpoints(folder)}")
    run = Run(folder)
    if run.info.get("task") != "train":
        raise UserError(f"resume={spec} is a run of task={run.info.get('task')}: only a training goes on.")
    if run.status == "done" and checkpoint is None:
        raise UserError(
            f"The run {folder} is done: there is nothing to resume. To train it longer, name a checkpoint: "
            f"{_checkpoints(folder)}"
        )
    if run.is_live():
        raise UserError(f"The run {folder} is in use by process {run.info.get('pid')}: wait for it, or stop it first.")
    return run, checkpoint


def changed_keys(run: Run, config: Config) -> list[str]:
    """The keys in which a configuration differs from the one that the run holds on disk."""
    past = run.config()
    keys = (key for key in _keys() if key.partition(".")[0] not in ABOUT_THE_COMMAND)
    return [key for key in keys if _value(past, key) != _value(config, key)]


def _checkpoints(folder: Path) -> str:
    names = sorted(path.name for path in (folder / CHECKPOINTS).glob("step-*"))
    return f"there is {', '.join(names)} in {folder / CHECKPOINTS}." if names else f"{folder} has none."


def _keys() -> list[str]:
    """Every dotted key; mappings with free names count as one."""
    return [key for key in all_keys() if not key.startswith("pretrain.")]


def _said(config: Config, default: Config, words: Iterable[str]) -> dict[str, Any]:
    """The settings that the words speak of, with their values: those named, those of the groups named, and whatever
    the words change elsewhere (a recipe)."""
    named = {word.partition("=")[0].lstrip("+~") for word in words} - set(ABOUT_THE_COMMAND)
    named |= {"concepts"} if named & set(ALWAYS_NAMED) else set()
    said = {}
    for key in _keys():
        if key.partition(".")[0] in ABOUT_THE_COMMAND:
            continue
        value = _value(config, key)
        if any(_below(key, name) or _below(name, key) for name in named) or value != _value(default, key):
            said[key] = value
    return said


def _below(key: str, group: str) -> bool:
    return key == group or key.startswith(f"{group}.")


def _allowed(config: Config) -> list[str]:
    known = [*_keys(), *{key.rpartition(".")[0] for key in _keys() if "." in key}]
    for key in config.resume.allow:
        if key not in known and not any(_below(key, free) for free in ALWAYS_NAMED):
            near = nearest_key(key, known)
            hint = f"did you mean '{near}'?" if near else "`python -m cdiff dry_run=true` prints every setting."
            raise UserError(f"resume.allow={key} is no setting; {hint}")
    return list(config.resume.allow)


def _covers(allowed: Iterable[str], key: str) -> bool:
    return any(_below(key, group) or (key in ALWAYS_NAMED and _below(group, key)) for group in allowed)


def _value(config: Config, dotted: str) -> Any:
    value: Any = config
    for name in dotted.split("."):
        value = getattr(value, name)
    return value


def _set(config: Config, dotted: str, value: Any) -> None:
    *parents, name = dotted.split(".")
    holder: Any = config
    for parent in parents:
        holder = getattr(holder, parent)
    setattr(holder, name, value)


def _show(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(value) or "nothing"
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
