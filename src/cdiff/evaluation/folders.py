"""Anybody's images: the layout of CustomConcept101's evaluator, and the one that cdiff writes itself.

DIR/samples/*.png     the images (.jpg and others too); without samples/ the images lie in DIR itself
DIR/prompts.json      name of an image, with or without its suffix -> prompt, or {"prompt", "seed", "index"}
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cdiff.data.listing import SUFFIXES
from cdiff.errors import UserError
from cdiff.evaluation.prompts import metric_text
from cdiff.evaluation.rows import Job
from cdiff.grids import GRID_FILE, PROMPTS_FILE
from cdiff.storage import inside

SHOWN = 5  # names told in a sentence


def read_image_folder(folder: Path, rule: str = "drop", tokens: Sequence[str] = (), concept: str = "") -> list[Job]:
    """The images of a folder with their prompts, in the order of their names.

    Raises:
        UserError: no images, no prompts.json, an image without a prompt, or a prompt without an image.
    """
    images, index_file = _find(folder)
    entries = _read_index(index_file)
    files = sorted(_image_names(images))
    if not files:
        raise UserError(f"There is no image in {images}: images=DIR needs DIR/samples/*.png and DIR/{PROMPTS_FILE}.")
    files = [name for name in files if name != GRID_FILE or _key(name, entries) is not None]
    named = {_key(name, entries) for name in files}
    without_image = [name for name in entries if name not in named]
    del named
    _check_whole(index_file, [name for name in files if _key(name, entries) is None], without_image)
    seen: dict[str, int] = {}
    prompts: dict[str, str] = {}
    texts: dict[str, str] = {}
    label = concept or folder.resolve().name
    jobs = []
    for name in files:
        prompt, seed, index = _entry(entries[_key(name, entries)], index_file, name)
        place = seen.get(prompt, 0)
        seen[prompt] = place + 1
        prompt = prompts.setdefault(prompt, prompt)  # one object for all its images
        text = texts.setdefault(prompt, metric_text(prompt, rule, tokens=tokens))
        jobs.append(Job(label, prompt, text, place if index is None else index, seed, images, name))
    return jobs


def _key(name: str, entries: Mapping[str, Any]) -> str | None:
    """How prompts.json calls an image: by its name, or without the suffix."""
    stem = os.path.splitext(name)[0]
    return name if name in entries else stem if stem in entries else None


def _image_names(folder: Path) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            hidden = entry.name.startswith(".")
            if not hidden and os.path.splitext(entry.name)[1].lower() in SUFFIXES and entry.is_file():
                if entry.is_symlink() and not inside(Path(entry.path), folder):
                    raise UserError(f"The image {entry.path} is a link that points outside of its folder: copy it.")
                yield entry.name


def _find(folder: Path) -> tuple[Path, Path]:
    """The folder of the images, and the file of their prompts."""
    if not folder.is_dir():
        raise UserError(f"images={folder} is {'a file' if folder.exists() else 'no folder that exists'}.")
    inner = folder / "samples"
    images = inner if inner.is_dir() else folder
    for file in (folder / PROMPTS_FILE, images / PROMPTS_FILE):
        if file.is_file():
            return images, file
    raise UserError(f"{folder} has no {PROMPTS_FILE}: it must map each image's name to its prompt.")


def _read_index(file: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} is not readable JSON ({str(error).splitlines()[0]}).") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} must map each image's name to its prompt, as in {{'0001': 'a photo of a dog'}}.")
    return content


def _check_whole(file: Path, without_prompt: Sequence[str], without_image: Sequence[str]) -> None:
    if without_prompt:
        raise UserError(f"{file} has no prompt for {_names(without_prompt)}: add it, or remove the image.")
    if without_image:
        raise UserError(
            f"{file} names {_names(without_image)}, and there is no such image: add it, or remove the entry."
        )


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(sorted(names)[:SHOWN]) + more


def _entry(entry: Any, file: Path, name: str) -> tuple[str, int | None, int | None]:
    """prompt, seed, index."""
    facts = entry if isinstance(entry, dict) else {"prompt": entry}
    prompt, seed, index = facts.get("prompt"), facts.get("seed"), facts.get("index")
    if not isinstance(prompt, str) or not prompt.strip():
        raise UserError(f"{file} has no text as the prompt of {name}: write the words it was drawn with.")
    if not all(value is None or type(value) is int for value in (seed, index)):
        raise UserError(f"{file} has a seed or an index of {name} that is no whole number.")
    return prompt, seed, index
