"""Words of the command line -> a checked `Config`, by Hydra."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from cdiff import catalog, finding, gpus
from cdiff.checks import check
from cdiff.convert import flat, to_config
from cdiff.errors import UserError
from cdiff.untrusted import check_settings, read_yaml

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from cdiff.schema import Config

EXTRAS = {"joblib": "joblib", "submitit_local": "slurm", "submitit_slurm": "slurm", "ray": "ray", "optuna": "optuna"}
READS_A_RUN = ("sample", "video", "evaluate", "export")
NO_RUN = "base"  # run=base: the untouched base model


def compose(words: list[str], config_dirs: list[Path] | None = None) -> DictConfig:
    """The configuration that the words make, with Hydra's own node.

    Raises:
        UserError: the configuration can't be composed.
    """
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    register_resolvers()
    for folder in config_dirs or []:
        for file in folder.rglob("*.yaml"):
            check_settings(file)
    extra = [f"hydra.searchpath=['file://{folder}']" for folder in config_dirs or []]
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_module(catalog.CONF_PACKAGE, version_base="1.3", job_name="cdiff"):
            return hydra.compose("config", [*words, *extra], return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        cause = error.__cause__ or error
        named = re.findall(r"hydra/(?:launcher|sweeper)/(\w+)'", str(cause))
        if missing := [EXTRAS[name] for name in named if name in EXTRAS]:
            raise UserError(f"This launcher or sweeper needs a package: pip install 'cdiff[{missing[0]}]'.") from error
        if isinstance(cause, (ConfigAttributeError, ConfigKeyError)) and cause.full_key:
            key = cause.full_key
            raise UserError(
                f"{key} is not in the configuration that these options make: choose what it belongs to, or add it with "
                f"a plus, +{key}=VALUE."
            ) from error
        raise UserError(f"The configuration can't be composed: {one_line(cause)}") from error


def to_checked_config(composed: DictConfig) -> Config:
    """Typed and checked.

    Raises:
        UserError: all that is wrong with it.
    """
    settings = OmegaConf.masked_copy(composed, [key for key in composed if key != "hydra"])
    try:
        values = OmegaConf.to_container(settings, resolve=True)
    except OmegaConfBaseException as error:
        hint = r"${...} in a text is read as another setting's value: write \${...} to keep it as it is"
        raise UserError(f"{one_line(error)}; {hint}.") from error
    config = to_config(values)
    check(config)
    return config


def adopt_run(config: Config, words: list[str]) -> None:
    """A task that uses a training run takes its concepts, and its model and method where no word says otherwise."""
    if config.task == "merge":
        return _adopt_first(config, words)
    _adopt_run(config, words)
    if config.task == "video":
        _fit_video(config, words)
        check(config)


def _adopt_run(config: Config, words: list[str]) -> None:
    if config.task not in READS_A_RUN or not isinstance(config.run, str) or config.run == NO_RUN:
        return
    if config.task == "evaluate" and (config.images or finding.is_sweep(config.run)):
        return  # images of nobody's run, or many runs, each with a model and concepts of its own
    run = finding.find_run(config.run, concept=list(config.concepts))
    past = run.config()
    check(past)  # its names make folders here, and the file may be anybody's
    config.run, config.concept, config.concepts = str(run.folder), past.concept, past.concepts
    _adopt_groups(config, past, words)


def _fit_video(config: Config, words: list[str]) -> None:
    """Lay the settings of conf/video that fit the base over the configuration, where no word says otherwise.

    Which base it is, is known once the run is read: the pocket base has an option of its own. A file that --config-dir
    brings was composed already.
    """
    said = {key.lstrip("+"): value for key, _, value in (word.partition("=") for word in words)}
    name = said.get("video", "pocket" if config.model.world == "pocket" else "animatediff")
    file = catalog.groups()["video"].get(name)
    values = read_yaml(file) if file else {}
    for key, value in flat({group: values.get(group, {}) for group in ("video", "sampler")}).items():
        if key not in said:
            *parents, last = key.split(".")
            holder = config
            for parent in parents:
                holder = getattr(holder, parent)
            setattr(holder, last, value)


def _adopt_first(config: Config, words: list[str]) -> None:
    """Merged runs share a base: the first one's model and method are taken. A bare adapter's folder has no settings."""
    folder = Path(config.runs[0])
    if not folder.is_dir() or (folder / "run.json").is_file():
        _adopt_groups(config, finding.find_run(config.runs[0]).config(), words)


def _adopt_groups(config: Config, past: Config, words: list[str]) -> None:
    chosen = {word.partition("=")[0].lstrip("+") for word in words}
    for group in ("model", "method"):
        if group not in chosen:
            said = {key.split(".")[1] for key in chosen if key.startswith(f"{group}.")}
            here, there = getattr(config, group), getattr(past, group)
            setattr(config, group, replace(there, **{name: getattr(here, name) for name in said}))


def register_resolvers() -> None:
    """What conf/config.yaml calls as ${cdiff.NAME:...} to name folders."""

    def folder_name(text: str) -> str:
        return re.sub(r"[^\w.,=+-]+", "_", re.sub("['\"]", "", str(text)))[:120] or "run"

    def gpu_count() -> int:
        return max(1, len(gpus.visible()))

    OmegaConf.register_new_resolver("cdiff.gpus", gpu_count, replace=True)
    OmegaConf.register_new_resolver("cdiff.names", lambda names: "_".join(names) or "any", replace=True)
    OmegaConf.register_new_resolver("cdiff.either", lambda first, second: first or second, replace=True)
    OmegaConf.register_new_resolver("cdiff.folder_name", folder_name, replace=True)


def one_line(error: BaseException) -> str:
    """The first line of an error's text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
