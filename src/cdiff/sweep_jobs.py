"""The jobs that a sweep will have, and their settings, checked before the first of them starts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException
from omegaconf import OmegaConf, open_dict

from cdiff import catalog, sweep_folder
from cdiff.compose import compose, to_checked_config
from cdiff.cost import cost
from cdiff.errors import UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig

SHOWN = 5  # mistakes told at once
MOST = 2000  # jobs checked one by one; of more, every value on its own


def first_words(overrides: list[Override]) -> list[str]:
    """The words of the first job; of an interval its lower end."""
    return [_word(override, _values(override)[0]) if override.is_sweep_override() else override.input_line
            for override in overrides]  # fmt: skip


def swept_overrides(overrides: list[Override], settings: DictConfig) -> dict[str, Override]:
    """Key -> what is swept: of the words, and of `hydra.sweeper.params`, over which the words win.

    Raises:
        UserError: a value of hydra.sweeper.params that can't be read.
    """
    said = {override.key_or_group for override in overrides}
    found = {override.key_or_group: override for override in overrides if override.is_sweep_override()}
    parser = OverridesParser.create()
    for key, value in (OmegaConf.select(settings, "hydra.sweeper.params") or {}).items():
        try:
            override = parser.parse_override(f"{key}={value}")
        except HydraException as error:
            raise UserError(f"hydra.sweeper.params.{key}={value} can't be read; write values as a,b,c.") from error
        if override.key_or_group not in said:
            found[override.key_or_group] = override
    return found


def check_jobs(
    overrides: list[Override], swept: Mapping[str, Override], config_dirs: list[Path], folder: Path | None
) -> dict[str, str]:
    """Compose and check the settings of every job; `folder`: of the sweep, whose done jobs must have the same settings.

    Returns:
        What the whole sweep would be, for a dry run: how many jobs, and what is known of their cost.

    Raises:
        UserError: what is wrong, and with which values.
    """
    mistakes: dict[str, str] = {}
    jobs, total = 0, None
    for values, composed in _composed_jobs(overrides, swept, config_dirs):
        said = ", ".join(f"{key}={value}" for key, value in values.items())
        try:
            config = to_checked_config(composed)
            jobs += 1
            if (own := cost(config)) is not None:
                total = own if total is None else total + own
            if folder is not None and folder.is_dir() and config.task == "train":
                sweep_folder.finished_job(folder, config, values)
        except UserError as error:
            mistakes.setdefault(str(error), said)
    if mistakes:
        lines = [f"{said}: {sentence}" if said else sentence for sentence, said in list(mistakes.items())[:SHOWN]]
        more = f"\n({len(mistakes) - SHOWN} more)" if len(mistakes) > SHOWN else ""
        raise UserError("No job was started.\n" + "\n".join(lines) + more)
    rows = {"jobs": str(jobs), "over": ", ".join(f"{key} ({len(_values(one))})" for key, one in swept.items())}
    return rows if total is None else rows | {"time": total.in_words()}


def _composed_jobs(
    overrides: list[Override], swept: Mapping[str, Override], config_dirs: list[Path]
) -> Iterator[tuple[dict[str, str], DictConfig]]:
    """(swept key -> value, settings) of each job. Files are composed once for each choice of groups, which is slow;
    plain values are laid over the result."""
    groups = catalog.groups(*config_dirs)
    fixed = [override.input_line for override in overrides if not override.is_sweep_override()]
    options = {key: _values(override) for key, override in swept.items()}
    for chosen in _combinations({key: values for key, values in options.items() if key in groups}):
        plain = {key: values for key, values in options.items() if key not in groups}
        first = {key: values[0] for key, values in plain.items()}
        words = [_word(swept[key], value) for key, value in (chosen | first).items()]
        composed = compose([*fixed, *words], config_dirs)
        for values in _combinations(plain):
            both = chosen | values
            yield {key: both[key] for key in swept}, _laid_over(composed, swept, values)


def _laid_over(composed: DictConfig, swept: Mapping[str, Override], values: Mapping[str, str]) -> DictConfig:
    settings = OmegaConf.masked_copy(composed, [key for key in composed if key != "hydra"])
    parser = OverridesParser.create()
    with open_dict(settings):
        for key, value in values.items():
            OmegaConf.update(settings, key, parser.parse_override(_word(swept[key], value)).value(), force_add=True)
    return settings


def _combinations(options: Mapping[str, list[str]]) -> Iterator[dict[str, str]]:
    """Every combination; where these are too many, every value beside the first ones of the others."""
    total = 1
    for values in options.values():
        total *= len(values)
    if total <= MOST:
        for combination in itertools.product(*options.values()):
            yield dict(zip(options, combination))
        return
    first = {key: values[0] for key, values in options.items()}
    for key, values in options.items():
        for value in values:
            yield first | {key: value}


def _values(override: Override) -> list[str]:
    """The values as they are written; of an interval both ends."""
    if override.is_discrete_sweep():
        return list(override.sweep_string_iterator())
    value = override.value()
    if isinstance(value, IntervalSweep):
        return [str(value.start), str(value.end)]
    return [override.get_value_element_as_str()]


def _word(override: Override, value: str) -> str:
    return f"{override.get_key_element()}={value}"
