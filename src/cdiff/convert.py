"""Plain values -> `Config`, with every type checked; all mistakes are told at once."""

from __future__ import annotations

import dataclasses
import os
import reprlib
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Union

from cdiff.errors import UserError
from cdiff.schema import Config
from cdiff.suggest import nearest_key

WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
PATHS = (
    "output",
    "prompt_file",
    "model.path",
    "model.config",
    "export.folder",
    "concept.images",
    "prior.images",
    "prior.captions",
    "merge.captions",
    "pretrain.folder",
    "run",
    "resume.run",
    "images",
    "references",
    "protocol.benchmark",
    "metrics.clip",
    "metrics.dino",
    "metrics.blip",
    "metrics.probe",
    "video.motion_adapter",
)
OF_ONE_TASK = ("pretrain", "video")  # groups of settings that belong to the task of their name


def to_config(values: Mapping[str, Any]) -> Config:
    """Build the typed configuration.

    Raises:
        UserError: keys that do not exist (naming the nearest one), values of a wrong type; all in one message.
    """
    mistakes: list[str] = []
    config = _build(Config, values, "", mistakes)
    if mistakes:
        raise UserError("\n".join(mistakes))
    _expand_home(config)
    return config


def to_dict(config: Config) -> dict[str, Any]:
    """The configuration as plain values, in the order of the schema; groups of one task for that task only."""
    values = dataclasses.asdict(config)
    return {key: value for key, value in values.items() if key not in OF_ONE_TASK or key == config.task}


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names: {"loss": {"spl_weight": 1}} -> {"loss.spl_weight": 1}."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return found


def all_keys(cls: type = Config, prefix: str = "") -> Iterator[str]:
    """Every dotted key that holds a value: `train.steps`, `loss.spl_weight`, ..."""
    for name, hint in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(hint):
            yield from all_keys(hint, f"{prefix}{name}.")
        else:
            yield prefix + name


def unknown_key(path: str) -> str:
    """The sentence for a key that does not exist."""
    near = nearest_key(path, all_keys())
    hint = f"did you mean '{near}'?" if near else "`python -m cdiff dry_run=true` prints every setting."
    return f"There is no setting '{path}'; {hint}"


def _build(cls: type, values: Any, path: str, mistakes: list[str]) -> Any:
    if not isinstance(values, Mapping):
        keys = ", ".join(f.name for f in dataclasses.fields(cls))
        mistakes.append(f"{path} is a group of settings ({keys}), got {_show(values)}.")
        return cls()
    hints = typing.get_type_hints(cls)
    known = {}
    for key, value in values.items():
        dotted = f"{path}.{key}" if path else str(key)
        if key in hints:
            known[key] = _value(hints[key], value, dotted, mistakes)
        else:
            mistakes.append(unknown_key(dotted))
    return cls(**known)


def _value(hint: Any, value: Any, path: str, mistakes: list[str]) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        (hint,) = (a for a in arguments if a is not type(None))
        return _value(hint, value, path, mistakes)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, path, mistakes)
    if origin is list:
        if not isinstance(value, list | tuple):
            mistakes.append(f"{path} must be a list, got {_show(value)}; write {path}=[...].")
            return []
        return [_value(arguments[0], item, f"{path}[{i}]", mistakes) for i, item in enumerate(value)]
    if origin is dict:
        if not isinstance(value, Mapping):
            mistakes.append(f"{path} must map names to values, got {_show(value)}.")
            return {}
        return {str(k): _value(arguments[1], item, f"{path}.{k}", mistakes) for k, item in value.items()}
    return _plain(hint, value, path, mistakes)


def _plain(hint: type, value: Any, path: str, mistakes: list[str]) -> Any:
    """bool, int, float, str. Nothing is guessed, but a whole number may stand where a number is asked."""
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is hint:
        return value
    if hint is str and type(value) in (int, float, bool):
        hint_text = f"; to give it as text, quote it twice: \"{path}='{value}'\""
    else:
        hint_text = ""
    mistakes.append(f"{path} must be {WORDS[hint]}, got {_show(value)}{hint_text}.")
    return value


def _show(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f"the text '{value}'"
    if isinstance(value, Mapping):
        return "a group of settings"
    return reprlib.repr(value)  # bounded, whatever a file holds


def _expand_home(config: Config) -> None:
    """`~` in the settings that hold a path."""
    for dotted in PATHS:
        *parents, name = dotted.split(".")
        holder = config
        for parent in parents:
            holder = getattr(holder, parent)
        value = getattr(holder, name)
        if isinstance(value, str):
            setattr(holder, name, os.path.expanduser(value))
    config.runs = [os.path.expanduser(item) for item in config.runs]
    if isinstance(config.run, list):
        config.run = [os.path.expanduser(item) if isinstance(item, str) else item for item in config.run]
    for concept in (config.concept, *config.concepts.values()):
        if concept.images is not None:
            concept.images = os.path.expanduser(concept.images)
        concept.sources = {world: os.path.expanduser(source) for world, source in concept.sources.items()}


def key_exists(path: str) -> bool:
    """Whether a dotted key may be set; below a mapping with free names (`concepts.rex.class_word`) any name will do."""
    hint: Any = Config
    for part in path.split("."):
        if dataclasses.is_dataclass(hint):
            hint = typing.get_type_hints(hint).get(part)
        elif typing.get_origin(hint) is dict:
            hint = typing.get_args(hint)[1]
        elif hint is not Any:
            return False
        if hint is None:
            return False
    return True


def holds_path(key: str) -> bool:
    """Whether a dotted key is the name of a file or folder."""
    return key in PATHS or (key.startswith("concepts.") and key.endswith(".images"))


def type_of(path: str) -> Any:
    """The type hint of an existing dotted key outside free mappings, else None."""
    hint: Any = Config
    for part in path.split("."):
        hint = typing.get_type_hints(hint).get(part) if dataclasses.is_dataclass(hint) else None
    return hint
