"""Writing an adapter: into a folder beside, renamed when it is whole."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from cdiff.adapter.formats import FILES, FORMAT, INFO_FILE, TEXT_FILE, TOKEN_PARTS, check_token_name, kind_of
from cdiff.errors import UserError


def save_adapter(
    folder: Path | str,
    unet_weights: Mapping[str, Tensor],
    token_rows: Mapping[str, Tensor],
    info: Mapping[str, Any],
    text_encoder_weights: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write an adapter folder: all of it or nothing. An adapter already there is replaced at the end.

    unet_weights: named as in Adapter.unet (Trainables.unet_state), which tells the kind; may be empty. token_rows:
    {"<new1>": (D,)}, of SDXL both encoders' rows joined, whose widths info["token_widths"] tells. info: JSON values
    for adapter.json (base model, method, concepts with their class words); tokens, counts and versions are added.
    Tensors keep their dtype.

    Raises:
        UserError: the place can't be written, or a token can't name a file.
    """
    folder = Path(folder)
    for token in token_rows:
        check_token_name(token)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", suffix=".partial", dir=folder.parent))
    except OSError as error:
        raise UserError(f"the adapter can't be written to {folder}: {error.strerror or error}.") from error
    try:
        _write_files(partial, unet_weights, token_rows, info, text_encoder_weights or {})
        _put_in_place(partial, folder)
    except OSError as error:
        raise UserError(f"the adapter can't be written to {folder}: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _write_files(
    folder: Path, unet: Mapping[str, Tensor], tokens: Mapping[str, Tensor], info: Mapping, text: Mapping[str, Tensor]
) -> None:
    os.chmod(folder, 0o777 & ~_umask())  # mkdtemp makes it private
    for stem, tensors in ((FILES[kind_of(unet)], unet), (TEXT_FILE, text)):
        if tensors:
            # diffusers and transformers ask for the framework's name before they open a file
            save_file(_plain(tensors), folder / f"{stem}.safetensors", metadata={"format": "pt"})
    for token, vector in tokens.items():
        save_file(_plain(_token_tensors(token, vector, info)), folder / f"{token}.safetensors")
    content = {
        "format": FORMAT,
        **info,
        "tokens": list(tokens),
        "unet_tensors": len(unet),
        "text_encoder_tensors": len(text),
        "versions": {**_versions(), **info.get("versions", {})},
    }
    (folder / INFO_FILE).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    for path in (*folder.iterdir(), folder):
        _fsync(path)


def _token_tensors(token: str, vector: Tensor, info: Mapping[str, Any]) -> dict[str, Tensor]:
    """One vector, or of a base with two text encoders (info["token_widths"]) one for each."""
    widths = info.get("token_widths") or []
    if len(widths) < 2:
        return {token: vector.reshape(-1)}
    return dict(zip(TOKEN_PARTS, vector.reshape(-1).split(widths), strict=True))


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def _put_in_place(partial: Path, folder: Path) -> None:
    """Rename the finished folder to its name; a rename can't replace a full folder, so an old one steps aside."""
    old = partial.with_suffix(".old")
    if folder.exists():
        os.rename(folder, old)
    try:
        os.rename(partial, folder)
    except BaseException:
        if old.exists():
            os.rename(old, folder)
        raise
    _fsync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _versions() -> dict[str, str]:
    from importlib import metadata

    found = {}
    for package in ("cdiff", "torch", "diffusers", "transformers"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
