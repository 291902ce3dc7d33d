"""Reads the command line's KEY=VALUE words before Hydra does, and tells every mistake in a human sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString, Sweep
from hydra.errors import HydraException

from cdiff.convert import all_keys, holds_path, key_exists, type_of, unknown_key
from cdiff.errors import UserError
from cdiff.suggest import did_you_mean, nearest, nearest_key

Groups = Mapping[str, Mapping[str, Any]]
SHORT = {"resume": "resume.run"}  # names that stand for one setting of their group


def read_overrides(words: list[str], groups: Groups, multirun: bool) -> list[Override]:
    """Parse and check. Paths need no quotes; `input_line` of an override is the word to hand to Hydra.

    Raises:
        UserError: words that are no KEY=VALUE, text that needs quotes, keys, groups and options that do not exist;
            all mistakes in one message.
    """
    parser = OverridesParser.create()
    overrides, mistakes = [], []
    for word in words:
        try:
            override = parser.parse_override(_path_quoted(_written_out(word)))
        except HydraException:
            mistakes.append(_unreadable(word))
            continue
        overrides.append(override)
        mistakes += _check(override, groups, multirun)
    if mistakes:
        raise UserError("\n".join(mistakes))
    return overrides


def _written_out(word: str) -> str:
    key, equals, value = word.partition("=")
    return f"{SHORT[key]}={value}" if equals and key in SHORT else word


def _path_quoted(word: str) -> str:
    """Hydra's grammar refuses `~` and some other signs of file names: quote a path that holds one."""
    key, equals, value = word.partition("=")
    plain = not value or value[0] in "'\"[" or not set(value) & set("~()&#;!<>") or "," in value
    if not equals or plain or not holds_path(key.lstrip("+")):
        return word
    return f"{key}={_quoted(value)}"


def _check(override: Override, groups: Groups, multirun: bool) -> list[str]:
    key = override.key_or_group
    if key.startswith(("hydra.", "hydra/")) or override.is_delete():
        return []
    if key in groups:
        unknown = [option for option in _options(override) if option not in groups[key]]
        mistakes = [_wrong_option(key, option, groups[key]) for option in unknown]
        mistakes += _twice(override)
    elif not key_exists(key):
        return [_wrong_key(key, groups)]
    else:
        mistakes = []
    if override.is_sweep_override() and not multirun:
        mistakes.append(_unasked_sweep(override))
    return mistakes


def _options(override: Override) -> list[str]:
    """The names that a group's override chooses: one, a list, or those of a sweep; `null` chooses none."""
    return [name for names in _choices(override) for name in names]


def _choices(override: Override) -> list[list[str]]:
    """The same, a list for each value of a sweep."""
    value = override._value
    values = (getattr(value, "list", None) or []) if isinstance(value, Sweep) else [value]
    lists = [item if isinstance(item, list) else [item] for item in values]
    return [[i.text if isinstance(i, QuotedString) else str(i) for i in items if i is not None] for items in lists]


def _twice(override: Override) -> list[str]:
    """Hydra would take the second of a list's equal names for the first."""
    again = sorted({name for names in _choices(override) for name in names if names.count(name) > 1})
    return [f"{override.key_or_group}=[...] names {name} twice; name each once." for name in again]


def _wrong_option(group: str, option: str, options: Mapping[str, Any]) -> str:
    if group == "model" and ("/" in option or "~" in option):
        return f"model={option} is not a name; for a folder or a hub id say model=sd15 model.path={option}."
    if group == "concept" and "/" in option:
        return f"concept={option} is not a name; for a folder say concept=folder concept.images={option}."
    return f"{group}={option} is unknown; {did_you_mean(option, options)}"


def _wrong_key(key: str, groups: Groups) -> str:
    if "." not in key:
        group = nearest(key, groups, cutoff=0.7)
        if group is not None and nearest_key(key, [group, *all_keys()]) == group:
            return f"There is no setting or group '{key}'; did you mean '{group}=' ({', '.join(groups[group])})?"
    return unknown_key(key)


def _unreadable(word: str) -> str:
    key, equals, value = word.partition("=")
    if not equals:
        return f"'{word}' is not a setting: write KEY=VALUE, as in train.steps=300."
    return f"{key} can't be read: {_how_to_quote(key, value)}"


def _unasked_sweep(override: Override) -> str:
    key, _, value = (override.input_line or "").partition("=")
    if type_of(key) in (str, str | None):
        return f"{key} has a comma: {_how_to_quote(key, value)}"
    return f"{key}={value} names several values: add -m to try each of them, or write {key}=[{value}] for a list."


def _how_to_quote(key: str, value: str) -> str:
    """The exact words to type: double quotes for the shell, single ones within for the value."""
    value = value.strip()
    if value.startswith("[") and value.endswith("]"):
        inner = "[" + ", ".join(_quoted(_bare(item)) for item in value[1:-1].split(",")) + "]"
    else:
        inner = _quoted(_bare(value))
    for sign in '\\"$`':
        inner = inner.replace(sign, "\\" + sign)
    return f'quote it twice, "{key}={inner}".'


def _bare(text: str) -> str:
    text = text.strip()
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def _quoted(text: str) -> str:
    return f"'{text}'" if "'" not in text else f'"{text}"'
