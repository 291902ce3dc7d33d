"""Sweeps, by Hydra's own sweepers and launchers; also what Hydra shows about itself (`--cfg job`, `--hydra-help`)."""

from __future__ import annotations

import contextlib
import gc
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf

from cdiff import catalog, console, gpus, shared, signals, sweep_folder
from cdiff.compose import adopt_run, compose, one_line, register_resolvers, to_checked_config
from cdiff.dispatch import JobFailed, guarded, run_task
from cdiff.errors import UserError
from cdiff.runs import Run, atomic_write
from cdiff.signals import LEFT_NOW
from cdiff.sweep_jobs import check_jobs, first_words, swept_overrides
from cdiff.untrusted import refuse_code

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from cdiff.schema import Config

SHARES_A_HOST = ("joblib", "gpus")  # launchers whose workers live on one host and must not meet on one GPU

register_resolvers()  # a launcher's worker imports this module, and then names its folder by them


def sweep(overrides: list[Override], config_dirs: list[Path]) -> int:
    """Let Hydra's sweeper and launcher run the jobs. The folder of a job names only the keys that are swept.

    Every job's settings are checked before the first one starts. A job that fails is shown when it does and again in
    the end, and does not stop the others.
    """
    words = [override.input_line for override in overrides]
    settings = compose(first_words(overrides), config_dirs)
    refuse_code(OmegaConf.to_container(settings.hydra, resolve=False))
    first = to_checked_config(settings)  # a mistake that all jobs share is told once
    if first.resume.run is not None:
        raise UserError("resume= goes on with one run, and -m makes several: say resume=RUN for each, without -m.")
    if first.output is not None:
        raise UserError("output= would be the folder of every job: give the sweep a name instead, name=NAME.")
    swept = swept_overrides(overrides, settings)
    fixed = [key for override in overrides if (key := override.key_or_group) not in swept]
    quiet = f"hydra.job.config.override_dirname.exclude_keys=[{','.join(repr(key) for key in fixed)}]"
    folder = Path(settings.hydra.sweep.dir)
    arguments = ["--multirun", *words, quiet]
    if first.dry_run:
        whole = check_jobs(overrides, swept, config_dirs, None)
        code = _dry(arguments, folder, settings, config_dirs)
        console.summary("The whole sweep", whole | {"folder": f"{folder}/"})
        return code
    check_jobs(overrides, swept, config_dirs, folder)
    command = shlex.join(["python", "-m", "cdiff", "-m", *words])
    with sweep_folder.opened(folder, list(swept), command, first.sweep.resume):
        try:
            code = _guarded_hydra([*arguments, f"hydra.sweep.dir='{folder}'"], config_dirs)
        finally:
            shared.forget()
            failed = _show_failures(folder, first.name)
    return code or int(failed)


def _guarded_hydra(arguments: list[str], config_dirs: list[Path]) -> int:
    """Hydra tells of failed jobs by an exception, after the last one; a launcher whose worker was killed, or a sweeper
    none of whose jobs succeeded, has errors of its own, which are no bugs either."""
    try:
        return plain_hydra(arguments, config_dirs)
    except JobFailed:
        return 1
    except UserError:
        raise
    except Exception as error:
        if os.environ.get("CDIFF_DEBUG"):
            raise
        console.complain(f"The sweep stopped: {type(error).__name__}: {one_line(error)}")
        return 1


def _show_failures(folder: Path, name: str | None) -> bool:
    """The jobs that are not done, each with its reason and log, at the end of all that they said. Were there any?"""
    lost = sweep_folder.failures(folder)
    if not lost:
        return False
    total = len(sweep_folder.job_runs(folder)[0])
    lines = [f"  {one.folder.name} ({one.state}): {one.reason}\n    log: {one.log}" for one in lost]
    again = "the same command again" if name else f"the same command with name={folder.name}"
    advice = f"{again[0].upper()}{again[1:]} passes over what is done and repeats these."
    console.complain("\n".join([f"{len(lost)} of {total} jobs in {folder} are not done:", *lines, advice]))
    return True


def _dry(arguments: list[str], folder: Path, settings: DictConfig, config_dirs: list[Path]) -> int:
    HydraConfig.instance().set_config(settings)
    scratch = tempfile.mkdtemp()  # Hydra makes a sweep's folders before it asks anybody
    try:
        with _environment(CDIFF_DRY_SWEEP=f"{scratch}={folder}"):
            words = [word for word in arguments if not word.startswith("hydra/launcher=")]  # the plans in their order
            return _guarded_hydra([*words, f"hydra.sweep.dir='{scratch}'"], config_dirs)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


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
    """One job of a sweep: a failure is shown at once and recorded in the job's folder, and the sweep goes on.

    Returns:
        The objective for a sweeper that optimises, if the task has one; that of a job done before is read again.
    """
    console.setup_logging()
    register_resolvers()
    settings = HydraConfig.get()
    console.say(f"Job {settings.job.num}: {settings.job.override_dirname or 'no setting changes'}")
    shared.keep()
    config, reason, result = None, "interrupted", None
    scratch, _, sweep_dir = os.environ.get("CDIFF_DRY_SWEEP", "=").partition("=")
    where = str(settings.runtime.output_dir)
    folder = Path(where.replace(scratch, sweep_dir) if scratch else where)
    if folder.is_relative_to(Path.cwd()):
        folder = folder.relative_to(Path.cwd())  # as the user wrote it

    def action() -> int:
        nonlocal config, reason, result
        try:
            config = to_checked_config(composed)
            adopt_run(config, list(settings.overrides.task))
            config.sweep = replace(config.sweep, name=folder.parent.name, job=settings.job.num, swept=_swept(settings))
            result = _run(config, folder, settings)
        except Exception as error:
            reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            raise
        return 0

    try:
        code = guarded(action)
        if code and not (folder / "run.json").exists():
            _record(folder, config, reason)
    finally:
        _release()
    if code == LEFT_NOW or signals.stopped_by() is not None:  # also a run that stopped in good order
        raise KeyboardInterrupt
    if code:
        raise JobFailed(f"job {settings.job.num} failed")
    return None if result is None else result.get("objective")


def _run(config: Config, folder: Path, settings: Any) -> dict[str, Any] | None:
    """Do the job's task, unless the job was done before; its result either way."""
    if config.dry_run:
        return run_task(config, str(folder))
    done = sweep_folder.finished_job(folder.parent, config, config.sweep.swept)
    if done is not None:
        if done.folder != folder:
            with contextlib.suppress(OSError):
                folder.rmdir()  # Hydra made it; the job lies under the number it had
        console.say(f"Job {config.sweep.job} was done before: {done.folder}")
        return done.info.get("result") or {}
    if settings.runtime.choices.get("hydra/launcher") in SHARES_A_HOST and config.device in ("auto", "cuda"):
        config.sweep.gpu = gpus.claim()
    sweep_folder.make_room(folder.parent, folder, config.sweep.swept)
    return run_task(config, str(folder))


def _swept(settings: Any) -> dict[str, str]:
    """The job's own words, but for those that all jobs share."""
    shared_keys = set(settings.job.config.override_dirname.exclude_keys)
    pairs = [word.partition("=") for word in settings.overrides.task]
    return {key: value for key, _, value in pairs if key.lstrip("+~") not in shared_keys}


def _record(folder: Path, config: Config | None, reason: str) -> None:
    """A job that failed before its task started a run leaves one that says so."""
    if config is not None and not config.dry_run:
        config.output = str(folder)
        with contextlib.suppress(UserError):  # a folder that can't be written was the reason
            run = Run.start(config, config.task)
            run.fail(reason)
            atomic_write(run.folder / "log.txt", f"{reason}\n")


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
