"""The command line: reads flags and words, composes, dispatches to a task. Exit codes stand in `dispatch`."""

from __future__ import annotations

from pathlib import Path

from cdiff import __version__, catalog, console, processes
from cdiff.errors import UserError
from cdiff.signals import as_interrupt

HYDRA_FLAGS_WITH_VALUE = ("--cfg", "-c", "--package", "-p", "--info", "-i", "--shell-completion", "-sc")
HYDRA_FLAGS = (*HYDRA_FLAGS_WITH_VALUE, "--resolve", "--hydra-help", "--shell-completion", "-sc")
LONG_FLAGS = ("--help", "--version", "--multirun", "--config-dir", "--cfg", "--info", "--hydra-help")


def main(argv: list[str]) -> int:
    """Run one command; returns the exit code."""
    from cdiff.dispatch import guarded

    console.setup_logging()
    with as_interrupt(), console.quiet(not processes.is_first()):
        code = guarded(lambda: _main(argv))
    if code == 0:
        processes.leave()
    return code


def _main(argv: list[str]) -> int:
    flags, words, config_dirs = _split(argv)
    if "--version" in flags:
        console.stdout().print(f"cdiff {__version__}")
        return 0
    if "--help" in flags:
        from cdiff.cli_help import help_page

        console.stdout().print(help_page(*config_dirs), soft_wrap=False, crop=False)
        return 0
    from cdiff.overrides import read_overrides
    from cdiff.sweep import plain_hydra, sweep

    multirun = "--multirun" in flags
    overrides = read_overrides(words, catalog.groups(*config_dirs), multirun)
    words = [override.input_line for override in overrides]
    if multirun:
        return sweep(overrides, config_dirs)
    if flags:
        return plain_hydra([*flags, *words], config_dirs)
    return _single(words, config_dirs)


def _single(words: list[str], config_dirs: list[Path]) -> int:
    from hydra.core.hydra_config import HydraConfig

    from cdiff.compose import adopt_run, compose, to_checked_config
    from cdiff.dispatch import run_task
    from cdiff.resuming import adopt_resumed

    composed = compose(words, config_dirs)
    said = {word.partition("=")[0] for word in words}
    if left := {key: value for key, value in (composed.hydra.sweeper.get("params") or {}).items() if key not in said}:
        named = ", ".join(f"{key}={value}" for key, value in left.items())
        raise UserError(f"This experiment is a sweep ({named}): add -m, and give it a name: name=NAME.")
    config = to_checked_config(composed)
    config = adopt_resumed(config, words, lambda others: to_checked_config(compose(others, config_dirs)))
    adopt_run(config, words)
    HydraConfig.instance().set_config(composed)
    composed.concepts, composed.method.name = dict.fromkeys(config.concepts), config.method.name
    run_task(config, composed.hydra.run.dir)
    return 0


def _split(argv: list[str]) -> tuple[list[str], list[str], list[Path]]:
    """The flags, the KEY=VALUE words, and the folders of --config-dir."""
    flags: list[str] = []
    words: list[str] = []
    config_dirs: list[Path] = []
    rest = iter(argv)
    for word in rest:
        name, equals, value = word.partition("=")
        if not word.startswith("-"):
            words.append(word)
        elif name in ("--config-dir", "-cd"):
            folder = value if equals else next(rest, "")
            config_dirs.append(_config_dir(folder))
        elif name in ("--help", "-h", "--version", "--multirun", "-m"):
            flags.append({"-h": "--help", "-m": "--multirun"}.get(name, name))
        elif name in HYDRA_FLAGS:
            takes_value = name in HYDRA_FLAGS_WITH_VALUE and not equals
            flags += [word, next(rest, "")] if takes_value else [word]
        else:
            from cdiff.suggest import did_you_mean

            raise UserError(f"There is no option {name}; {did_you_mean(name, LONG_FLAGS)}")
    if len(config_dirs) > 1:
        raise UserError("--config-dir can be given once.")
    return flags, words, config_dirs


def _config_dir(name: str) -> Path:
    folder = Path(name).expanduser()
    if not name or not folder.is_dir():
        raise UserError(f"--config-dir needs a folder, and there is none called '{name}'.")
    return folder.absolute()
