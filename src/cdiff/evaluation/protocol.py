"""Which prompts are drawn for which concepts, from conf/protocol or from a benchmark's own files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Protocol

from cdiff.drawing import LIVE_CLASSES
from cdiff.errors import UserError
from cdiff.schema import ProtocolConfig


class Subject(Protocol):
    """What is evaluated; cdiff.concepts.Concept fits. `folder` holds its training pictures."""

    name: str
    token: str
    class_word: str
    folder: Path | None


@dataclass(frozen=True)
class Case:
    """One prompt, and the names of the concepts that it shows."""

    prompt: str
    concepts: tuple[str, ...]

    @property
    def label(self) -> str:
        """How the concept is called in rows and results: "dog", or "dog+teapot" for a prompt of two."""
        return "+".join(self.concepts)


def read_cases(conf: ProtocolConfig, subjects: Sequence[Subject]) -> list[Case]:
    """The prompts of every concept, then those of all of them together; each prompt once.

    Raises:
        UserError: a protocol without prompts for these concepts, or a benchmark's folder that does not hold them.
    """
    if not subjects:
        raise UserError("The run has no concept to evaluate: its adapter holds no token.")
    if conf.benchmark:
        cases = benchmark_cases(Path(conf.benchmark).expanduser(), subjects)
    else:
        cases = [Case(fill(text, [s]), (s.name,)) for s in subjects for text in own_templates(conf, s)]
        if len(subjects) > 1:
            cases += [Case(fill(text, subjects), tuple(s.name for s in subjects)) for text in joint(conf, subjects)]
    if not cases:
        words = ", ".join(subject.class_word for subject in subjects)
        raise UserError(f"The protocol {conf.name} has no prompt for {words}: set protocol.prompts=[...].")
    return list({case.prompt: case for case in cases}.values())


def own_templates(conf: ProtocolConfig, subject: Subject) -> list[str]:
    return [*conf.prompts, *(conf.live if is_live(conf, subject.class_word) else conf.object)]


def is_live(conf: ProtocolConfig, class_word: str) -> bool:
    """Whether the class takes the list of live subjects: as the protocol says, else by a list of animals and people."""
    words = class_word.lower().split()
    if conf.live_classes:
        return " ".join(words) in conf.live_classes
    return bool(words) and words[-1] in LIVE_CLASSES


def joint(conf: ProtocolConfig, subjects: Sequence[Subject]) -> list[str]:
    """The prompts for as many concepts as there are."""
    return [text for text in conf.joint if f"{{{len(subjects) - 1}}}" in text and f"{{{len(subjects)}}}" not in text]


def fill(template: str, subjects: Sequence[Subject]) -> str:
    """ "a {} on the beach" -> "a <new1> dog on the beach"; {0}, {1} for several. Other braces stay."""
    names = [f"{subject.token} {subject.class_word}".strip() for subject in subjects]
    text = template.replace("{}", names[0])
    for place, name in enumerate(names):
        text = text.replace(f"{{{place}}}", name)
    return " ".join(text.split())


# --- CustomConcept101 (Custom Diffusion, arXiv 2212.04488) ----------------------------------------------------------


def benchmark_cases(root: Path, subjects: Sequence[Subject]) -> list[Case]:
    """The prompts of the benchmark's own files for these concepts.

    `root` is the benchmark's folder `customconcept101`: dataset.json (a list of concepts), prompts/*.txt with "{}" in
    each line, and for several concepts dataset_multiconcept.json (lists of concepts that end with
    {"prompt_filename_compose": FILE}, a file with "{0}" and "{1}"). A concept of ours is the benchmark's one whose
    picture folder has the same name, as the concept or as its folder of pictures; else the only one of its class.
    """
    singles = [_entry(item, root / "dataset.json") for item in _read_json(root / "dataset.json")]
    if len(subjects) == 1:
        entry = _find(singles, subjects[0], root)
        return [Case(fill(line, subjects), (subjects[0].name,)) for line in _lines(root, entry["prompt_filename"])]
    file = root / "dataset_multiconcept.json"
    for group in _read_json(file):
        members = [_entry(item, file) for item in group if "prompt_filename_compose" not in item]
        named = [item["prompt_filename_compose"] for item in group if "prompt_filename_compose" in item]
        if named and (order := _matched(members, subjects)):
            names = tuple(subject.name for subject in order)
            return [Case(fill(line, order), names) for line in _lines(root, named[0])]
    names = " and ".join(subject.name for subject in subjects)
    raise UserError(f"{file} has no composition of {names}; name the concepts as its picture folders are named.")


def _matched(members: list[dict[str, Any]], subjects: Sequence[Subject]) -> list[Subject] | None:
    """The subjects in the benchmark's order, when they are just these members."""
    order = [next((s for s in subjects if folder_name(member) in _names(s)), None) for member in members]
    found = [subject for subject in order if subject is not None]
    return found if len(found) == len(members) == len(subjects) else None


def _find(entries: list[dict[str, Any]], subject: Subject, root: Path) -> dict[str, Any]:
    by_name = [entry for entry in entries if folder_name(entry) in _names(subject)]
    by_class = [entry for entry in entries if entry["class_prompt"] == subject.class_word]
    files = {entry["prompt_filename"] for entry in by_class}  # concepts of one class share their prompts
    if by_name:
        return by_name[0]
    if len(files) == 1:
        return by_class[0]
    have = [folder_name(entry) for entry in entries]
    near = get_close_matches(subject.name, have, 3, 0.4) or have[:3]
    raise UserError(
        f"{root / 'dataset.json'} has no concept {subject.name} and not one list of prompts for its class "
        f"'{subject.class_word}': name the concept as its picture folder there ({', '.join(near)} ...)."
    )


def folder_name(entry: dict[str, Any]) -> str:
    return Path(entry["instance_data_dir"]).name


def _names(subject: Subject) -> set[str]:
    return {subject.name} | ({Path(subject.folder).name} if subject.folder else set())


def _entry(item: Any, file: Path) -> dict[str, Any]:
    missing = [key for key in ("class_prompt", "instance_data_dir", "prompt_filename") if key not in item]
    if missing:
        raise UserError(f"{file} is not the list of CustomConcept101: a concept there lacks {missing[0]}.")
    return item


def _read_json(file: Path) -> list[Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, list) or not content:
            raise ValueError("it is not a list of concepts")
    except OSError as error:
        raise UserError(
            f"The benchmark file {file} can't be read ({error.strerror}): "
            "protocol.benchmark must be CustomConcept101's folder with dataset.json and prompts/."
        ) from error
    except ValueError as error:
        raise UserError(f"The benchmark file {file} is damaged: {str(error).splitlines()[0]}.") from error
    return content


def _lines(root: Path, name: str) -> list[str]:
    file = root / name
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The benchmark's prompts {file}, named by its dataset.json, can't be read.") from error
    found = [line for line in lines if line]
    if not found:
        raise UserError(f"The benchmark's prompts {file} are empty.")
    return found


def coverage(conf: ProtocolConfig, concepts: Sequence[str]) -> str | None:
    """ "3 of the 30 subjects of dreambench", where the protocol lists its subjects."""
    if not conf.subjects:
        return None
    covered = len(set(concepts) & set(conf.subjects))
    return f"{covered} of the {len(conf.subjects)} subjects of {conf.name}"
