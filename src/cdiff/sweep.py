"""Sweeps, by Hydra's own sweepers and launchers; also what Hydra shows about itself (`--cfg job`, `--hydra-help`)."""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf

from cdiff import catalog, console, signals
from cdiff.compose import adopt_run, compose, one_line, register_resolvers, to_checked_config
from cdiff.dispatch import JobFailed, guarded, run_task
from cdiff.errors import UserError
from cdiff.signals import LEFT_NOW
from cdiff.untrusted import refuse_code

if TYPE_CHECKING:
    from omegaconf import DictConfig


def sweep(overrides: list[Override], config_dirs: list[Path]) -> int:
    """Let Hydra's sweeper and launcher run the jobs. The folder of a job names only the keys that are swept."""
    words = [override.input_line for override in overrides]
    keys = [override.key_or_group for override in overrides if not override.is_sweep_override()]
    quiet = f"hydra.job.config.override_dirname.exclude_keys=[{','.join(repr(key) for key in keys)}]"
    arguments = ["--multirun", *words, quiet]
    settings = compose(_first_job(overrides), config_dirs)  # a mistake that all jobs share stops the sweep at once
    refuse_code(OmegaConf.to_container(settings.hydra, resolve=False))
    if to_checked_config(settings).resume.run is not None:
        raise UserError("resume= goes on with one run, and -m makes several: say resume=RUN for each, without -m.")
    if not settings.dry_run:
        return plain_hydra(arguments, config_dirs)
    HydraConfig.instance().set_config(settings)
    sweep_dir = settings.hydra.sweep.dir
    scratch = tempfile.mkdtemp()  # Hydra makes a sweep's folders before it asks anybody
    try:
        with _environment(CDIFF_DRY_SWEEP=f"{scratch}={sweep_dir}"):
            return plain_hydra([*arguments, f"hydra.sweep.dir='{scratch}'"], config_dirs)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _first_job(overrides: list[Override]) -> list[str]:
    """The words of the first job; a key whose values only the sweeper knows (an interval) is left out."""
    words = []
    for override in overrides:
        if override.is_discrete_sweep():
            words.append(f"{override.get_key_element()}={next(override.sweep_string_iterator())}")
        elif not override.is_sweep_override():
            words.append(override.input_line)
    return words


def plain_hydra(arguments: list[str], config_dirs: list[Path]) -> int:
    """Hydra's own command line, for sweeps and for what it shows about itself."""
    register_resolvers()
    GlobalHydra.instance().clear()
    folders = [word for folder in config_dirs for word in ("--config-dir", str(folder))]
    before, sys.argv = sys.argv, [sys.argv[0], *folders, *arguments]
    try:
        with _environment(HYDRA_FULL_ERROR="1"):  # errors come here instead of being printed with a traceback
            hydra.main(config_path=f"pkg://{catalog.CONF_PACKAGE}", config_name="config", version_base="1.3")(job)()
    except HydraException as error:
        raise UserError(f"The sweep can't be done: {one_line(error.__cause__ or error)}") from error
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        sys.argv = before
    return 0


def job(composed: DictConfig) -> float | None:
    """One job of a sweep: a failure is shown at once, and the sweep goes on.

    Returns:
        The objective for a sweeper that optimises, if the task has one.
    """
    console.setup_logging()
    register_resolvers()
    settings = HydraConfig.get()
    console.say(f"Job {settings.job.num}: {settings.job.override_dirname or 'no setting changes'}")
    result: dict[str, Any] | None = None

    def action() -> int:
        nonlocal result
        config = to_checked_config(composed)
        adopt_run(config, list(settings.overrides.task))
        scratch, _, sweep_dir = os.environ.get("CDIFF_DRY_SWEEP", "=").partition("=")
        folder = settings.runtime.output_dir
        result = run_task(config, folder.replace(scratch, sweep_dir) if scratch else folder)
        return 0

    try:
        code = guarded(action)
    finally:
        _release()
    if code == LEFT_NOW or signals.stopped_by() is not None:  # also a run that stopped in good order
        raise KeyboardInterrupt
    if code:
        raise JobFailed(f"job {settings.job.num} failed")
    return None if result is None else result.get("objective")


def _release() -> None:
    """Give back what one job of a sweep must not leave to the next: accelerate's state, wandb's run, GPU memory."""
    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(True)
    if "wandb" in sys.modules:
        with contextlib.suppress(Exception):
            sys.modules["wandb"].finish()
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
