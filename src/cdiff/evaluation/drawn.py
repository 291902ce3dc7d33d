"""The images of a protocol: those already there are kept, the missing ones are drawn, in pieces that survive a kill."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cdiff import console, processes
from cdiff.drawing import facts
from cdiff.errors import UserError
from cdiff.grids import PROMPTS_FILE, file_names, save_all, write_index
from cdiff.models import Base
from cdiff.runs import atomic_write
from cdiff.sampling import Request, sample_together, sampling_steps
from cdiff.schema import Config

SETTINGS_FILE = "drawing.json"
BATCHES = 4  # of the sampler, between two writes to the disk


def draw_missing(
    cfg: Config, requests: Sequence[Request], folder: Path, base: Callable[[], Base], made: str
) -> list[str]:
    """The file name of each request under `folder`, drawn where it is not there yet.

    An image is there when prompts.json tells its prompt, seed and index, and its file is not empty. When the settings
    that decide an image are not those it was drawn with, all are drawn again.

    Args:
        base: gives the model, adapter applied; not called when nothing is missing. Several processes share the
            drawing, and the first alone writes: the others get no names.
        made: what tells this adapter from others (`adapter_digest`).
    """
    if not processes.is_first():
        if missing := processes.from_first(None):
            _draw(cfg, missing, folder, base(), {})
        return []
    names = file_names(requests)
    there = _there(folder, _settings(cfg, made))
    missing = [(n, r) for n, r in zip(names, requests, strict=True) if not _is_there(folder, n, r, there)]
    index = {name: there[name] for name, request in zip(names, requests) if _is_there(folder, name, request, there)}
    processes.from_first(missing)
    if missing:
        if index:
            console.say(f"{len(index)} images are there already, {len(missing)} are drawn.")
        _draw(cfg, missing, folder, base(), index)
    return names


def _draw(
    cfg: Config, missing: list[tuple[str, Request]], folder: Path, base: Base, index: dict[str, dict[str, Any]]
) -> None:
    piece = cfg.sampler.batch_size * BATCHES * processes.count()
    pieces = [missing[start : start + piece] for start in range(0, len(missing), piece)]
    steps = sum(sampling_steps([request for _, request in part], cfg.sampler) for part in pieces)
    said = facts(cfg, cfg.sampler)
    with console.progress(steps, "Drawing") as ticker:
        for part in pieces:
            requests = [request for _, request in part]
            images = sample_together(base, requests, cfg.sampler, resolution=cfg.model.resolution, progress=ticker)
            if not processes.is_first():
                continue
            try:
                index |= save_all(folder, [name for name, _ in part], images, requests, said)
                write_index(folder, index)
            except OSError as error:
                raise UserError(f"The images can't be written into {folder} ({error.strerror or error}).") from error


def _there(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """prompts.json of the folder, emptied when the images were drawn in another way."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        before = _read(folder / SETTINGS_FILE)
        if before and before != settings:
            changed = [key for key in settings if before.get(key) != settings[key]]
            console.say(f"The images in {folder} were drawn with other settings ({', '.join(changed)}): drawn again.")
            (folder / PROMPTS_FILE).unlink(missing_ok=True)
        atomic_write(folder / SETTINGS_FILE, json.dumps(settings, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"The images can't be written into {folder} ({error.strerror or error}).") from error
    return _read(folder / PROMPTS_FILE)


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _is_there(folder: Path, name: str, request: Request, there: Mapping[str, Any]) -> bool:
    entry = there.get(name)
    if not isinstance(entry, dict) or (entry.get("seed"), entry.get("index")) != (request.seed, request.index):
        return False
    file = folder / name
    return entry.get("prompt") == request.prompt and file.is_file() and file.stat().st_size > 0


def _settings(cfg: Config, made: str) -> dict[str, Any]:
    """What decides an image beside its prompt and seed; how many are drawn at once does not."""
    sampler = {
        f"sampler.{k}": v for k, v in dataclasses.asdict(cfg.sampler).items() if k not in ("batch_size", "execution")
    }
    model = {f"model.{k}": getattr(cfg.model, k) for k in ("path", "revision", "variant", "resolution")}
    return {"adapter": made, "precision": cfg.precision, **model, **sampler}


def adapter_digest(folder: Path) -> str:
    """16 hex digits of the weights of an adapter: file names and contents."""
    found = hashlib.blake2b(digest_size=8)
    for file in sorted(path for path in folder.rglob("*") if path.suffix in (".safetensors", ".bin", ".pt")):
        found.update(os.fsencode(str(file.relative_to(folder))))
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                found.update(block)
    return found.hexdigest()
