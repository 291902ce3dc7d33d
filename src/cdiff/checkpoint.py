"""A checkpoint on disk: everything that training needs to go on, whole and checked, and no code in it.

    checkpoints/step-000100/state.json            numbers and names: step, schedule, losses not yet logged, seeds
    checkpoints/step-000100/weights.safetensors   what trains, fp32
    checkpoints/step-000100/optimizer.safetensors its moments
    checkpoints/step-000100/rest.safetensors      random states, losses not yet logged
    checkpoints/step-000100/checksums.json        size and SHA-256 of each file above

A folder is written under another name, flushed and renamed. What it holds is judged by its checksums before it is used.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cdiff.errors import UserError
from cdiff.storage import as_os_error, fsync, inside, read_json, sweep_partial, whole_folder

log = logging.getLogger("cdiff")

FOLDER = "checkpoints"
FORMAT = 1
STATE, CHECKSUMS = "state.json", "checksums.json"
NAME = re.compile(r"step-(\d{6,})")
Groups = Mapping[str, Mapping[str, Tensor]]  # "weights", "optimizer", "rest" -> tensors by name


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint, read and checked. Tensors lie on the CPU."""

    path: Path
    facts: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]]

    @property
    def step(self) -> int:
        return self.facts["step"]


class Store:
    """The checkpoints of one run; the newest `keep` of them."""

    def __init__(self, run_folder: Path, keep: int) -> None:
        self.folder, self.keep = run_folder / FOLDER, keep

    def save(self, step: int, facts: Mapping[str, Any], tensors: Groups) -> Path:
        """Write the checkpoint of a step, then remove those too old, and those of later steps (of another past).

        Raises:
            OSError: the disk refuses. What was there is untouched.
        """
        if not self.folder.is_dir():
            self.folder.mkdir()  # not its parents: a run's folder that was deleted stays deleted
        sweep_partial(self.folder)
        target = self.folder / f"step-{step:06d}"
        with whole_folder(target) as partial:
            _write(partial, {"format": FORMAT, "step": step, **facts}, tensors)
        for other, path in steps(self.folder):
            if other > step:
                shutil.rmtree(path, ignore_errors=True)
        for _, path in list(steps(self.folder))[: -self.keep]:
            shutil.rmtree(path, ignore_errors=True)
        return target

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole; each damaged one is told of in the log and passed over."""
        return newest(self.folder)


def newest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint below `folder` that is whole; None without any. Damaged ones are told of in the log."""
    for step, path in reversed(list(steps(folder))):
        try:
            return read(path)
        except UserError as error:
            log.warning("The checkpoint of step %d is not used: %s The one before is tried.", step, error)
    return None


def steps(folder: Path) -> Iterator[tuple[int, Path]]:
    """Step and folder of each checkpoint that there seems to be, oldest first."""
    found = [(int(match[1]), path) for path in folder.glob("step-*") if (match := NAME.fullmatch(path.name))]
    yield from sorted(found)


def _write(folder: Path, facts: Mapping[str, Any], tensors: Groups) -> None:
    (folder / STATE).write_text(json.dumps(facts, allow_nan=False), encoding="utf-8")
    for name, group in tensors.items():
        try:
            save_file(dict(group), folder / f"{name}.safetensors")
        except SafetensorError as error:
            raise as_os_error(error) or error from error
    sums = {path.name: [path.stat().st_size, _sha256(path)] for path in sorted(folder.iterdir())}
    (folder / CHECKSUMS).write_text(json.dumps(sums, indent=1) + "\n", encoding="utf-8")
    fsync(folder / CHECKSUMS)


def read(path: Path) -> Checkpoint:
    """Read a checkpoint and check every byte of it.

    Raises:
        UserError: names the file that is missing, damaged, of another format, or lies elsewhere.
    """
    sums = read_json(path / CHECKSUMS)
    if not isinstance(sums, dict) or STATE not in sums:
        raise UserError(f"{path / CHECKSUMS} lists no {STATE}.")
    for name, noted in sums.items():
        file = path / str(name)
        if Path(str(name)).name != name or not inside(file, path):
            raise UserError(f"{path / CHECKSUMS} names {name}, which lies outside of the checkpoint.")
        _check(file, noted)
    facts = read_json(path / STATE)
    if not isinstance(facts, dict) or facts.get("format") != FORMAT or not isinstance(facts.get("step"), int):
        raise UserError(f"{path / STATE} is not of format {FORMAT}, which this cdiff reads.")
    try:
        files = [path / name for name in sums if name.endswith(".safetensors")]
        return Checkpoint(path, facts, {file.stem: load_file(file) for file in files})
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} holds tensors that can't be read: {str(error).splitlines()[0]}.") from error


def _check(file: Path, noted: Any) -> None:
    if not file.is_file():
        raise UserError(f"{file} is missing.")
    size = file.stat().st_size
    if not isinstance(noted, list) or len(noted) != 2:
        raise UserError(f"{file.parent / CHECKSUMS} has no size and checksum of {file.name}.")
    if size != noted[0]:
        raise UserError(f"{file} is damaged: {size} bytes, {noted[0]} were written.")
    try:
        digest = _sha256(file)
    except OSError as error:
        raise UserError(f"{file} can't be read: {error.strerror or error}.") from error
    if digest != noted[1]:
        raise UserError(f"{file} is damaged: its checksum is not the one that was noted.")


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
