"""Single-file checkpoints (.safetensors, as ComfyUI and A1111 keep them): unpacked once into a folder of the cache."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cdiff.cache import cache_folder
from cdiff.errors import UserError

XL_MARK = "conditioner.embedders.1."  # the second text encoder in Stability's names
MARKS = ("model.diffusion_model.", "first_stage_model.")
HASHED = 1 << 20  # bytes of a file's start and end that tell it apart, beside its size and time of change


def unpacked(file: Path, config: str | None = None) -> Path:
    """The folder that a checkpoint was unpacked into, in the layout of its pipeline; made when it is missing.

    config: a folder or hub id whose configuration files and tokenizers fit; null: those of the published model of its
    family, from the hub.

    Raises:
        UserError: the file is no such checkpoint, or its configuration can't be found.
    """
    keys = _keys(file)
    if not all(any(key.startswith(mark) for key in keys) for mark in MARKS):
        raise UserError(
            f"model.path={file} is no whole checkpoint of Stable Diffusion (it lacks {MARKS[0]}* or {MARKS[1]}*); a "
            "LoRA or a UNet alone can't be a base. For a pipeline name the folder that holds model_index.json."
        )
    target = cache_folder() / "checkpoints" / _label(file, config)
    if not target.is_dir():
        _unpack(file, any(key.startswith(XL_MARK) for key in keys), config, target)
    return target


def _keys(file: Path) -> list[str]:
    """The tensors' names, from the header alone."""
    if file.suffix != ".safetensors":
        raise UserError(
            f"model.path={file} is a file and no .safetensors checkpoint; convert it (pickles may hold code), or name "
            "the folder that holds model_index.json."
        )
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as content:
            return list(content.keys())
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"model.path={file} is damaged, or no safetensors file ({error}).") from error


def _label(file: Path, config: str | None) -> str:
    """A name that changes with the file and with the configuration. Several gigabytes are not read for it at every
    run: the time of change tells of weights that changed in the middle."""
    state = file.stat()
    size = state.st_size
    found = hashlib.sha256(f"{size}\n{state.st_mtime_ns}\n{config}\n".encode())
    with file.open("rb") as stream:
        for place in (0, max(0, size - HASHED)):
            stream.seek(place)
            found.update(stream.read(HASHED))
    return f"{file.stem[:60]}-{found.hexdigest()[:16]}"


def _unpack(file: Path, is_sdxl: bool, config: str | None, target: Path) -> None:
    """diffusers converts the names; the folder appears whole or not at all."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=target.parent))
    except OSError as error:
        raise UserError(
            f"The cache {target.parent} can't be written ({error.strerror}): set CDIFF_CACHE=DIR."
        ) from error
    try:
        with _quiet():
            _convert(file, is_sdxl, config).save_pretrained(partial, safe_serialization=True)
        (partial / "source.json").write_text(json.dumps({"file": file.name, "config": config}) + "\n")
        partial.chmod(0o755)
        partial.rename(target)
    except OSError as error:
        if not target.is_dir():  # else another process was first
            raise UserError(f"{file} can't be unpacked into {target} ({error.strerror or error}).") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _convert(file: Path, is_sdxl: bool, config: str | None) -> Any:
    import torch
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    kind = StableDiffusionXLPipeline if is_sdxl else StableDiffusionPipeline
    options = {} if config is None else {"config": str(Path(config).expanduser())}
    if config is not None and Path(config).expanduser().is_dir():
        options["local_files_only"] = True
    extra = {} if is_sdxl else {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    try:
        return kind.from_single_file(str(file), torch_dtype=torch.float32, **options, **extra)
    except Exception as error:  # missing configuration, network, shapes: each library in its own words
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"model.path={file} can't be opened as a {kind.__name__} ({lines[0].rstrip('.')}): set model.config to a "
            "folder or hub id with the configuration files of its family."
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the libraries' bars and warnings; what matters of them, missing weights, is checked when loading."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries = (diffusers_logging, transformers_logging)
    before = [(library, library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, level, bar in before:
            library.set_verbosity(level)
            if bar:
                library.enable_progress_bar()
