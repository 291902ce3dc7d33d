"""Configuration files from strangers: bounded before they are read, and never a way to run code."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from cdiff.errors import UserError

MOST_BYTES = 4 * 2**20  # of a YAML file
MOST_NODES = 200_000  # once its aliases are written out
# What Hydra may build: launchers, sweepers, Optuna's samplers. Whole names, since a prefix lets through whatever a
# module of the package has imported ("cdiff.runs.os.system").
OWN_CLASSES = re.compile(
    r"hydra\._internal\.core_plugins\.\w+\.\w+(Launcher|Sweeper)"
    r"|hydra_plugins\.\w+\.\w+\.\w+(Launcher|Sweeper)"
    r"|optuna\.samplers\.\w+Sampler"
)
CALLS = ("_target_", "custom_search_space")  # settings whose value is something to call


def read_yaml(file: Path) -> Any:
    """A YAML file's plain values.

    Raises:
        UserError: it is unreadable, too large (also by aliases of aliases), no YAML, or asks for Python objects.
    """
    check_yaml(file)
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _unreadable(file, error) from error


def check_settings(file: Path) -> None:
    """Refuse a file that holds no settings, or more than plain values. Raises UserError."""
    values = read_yaml(file)
    if not isinstance(values, Mapping | None):
        raise UserError(f"{file} must hold settings (KEY: VALUE, one a line), and it is a {type(values).__name__}.")


def check_yaml(file: Path) -> None:
    """Refuse a file that is no YAML, or would fill the memory. Raises UserError."""
    try:
        if file.stat().st_size > MOST_BYTES:
            raise UserError(f"{file} is too large for a configuration: {file.stat().st_size} bytes.")
        root = yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        nodes = _written_out(root, {}) if root is not None else 0
    except OSError as error:
        raise UserError(f"{file} can't be read: {error.strerror or error}.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _unreadable(file, error) from error
    if nodes > MOST_NODES:
        raise UserError(f"{file} is too large for a configuration: its aliases stand for {nodes:.3g} values.")


def _unreadable(file: Path, error: Exception) -> UserError:
    place = getattr(error, "problem_mark", None)
    where = f" in line {place.line + 1}" if place is not None else ""
    reason = getattr(error, "problem", None) or ("nested too deeply" if isinstance(error, RecursionError) else error)
    return UserError(f"{file} is not readable YAML{where}: {str(reason).splitlines()[0].rstrip('.')}.")


def _written_out(node: yaml.Node, known: dict[int, float]) -> float:
    """How many nodes a YAML node stands for once every alias is a copy of its own."""
    if id(node) not in known:
        known[id(node)] = float("inf")  # a node inside itself has no end
        if isinstance(node, yaml.MappingNode):
            children = [child for pair in node.value for child in pair]
        else:
            children = node.value if isinstance(node, yaml.SequenceNode) else []
        known[id(node)] = 1 + sum(_written_out(child, known) for child in children)
    return known[id(node)]


def refuse_code(hydra_settings: Mapping[str, Any]) -> None:
    """Hydra builds whatever class `_target_` names (launchers, sweepers, callbacks): only its own are allowed.

    Raises:
        UserError: names the setting that asks for another one.
    """
    for path, target in _targets(hydra_settings, "hydra"):
        if not OWN_CLASSES.fullmatch(str(target)):
            raise UserError(f"{path}={target} would run code of another package: a configuration can't do that.")


def _targets(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key in CALLS and inner is not None:
                yield f"{path}.{key}", inner
            yield from _targets(inner, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for place, inner in enumerate(value):
            yield from _targets(inner, f"{path}[{place}]")
