"""Writing an adapter: into a folder beside, renamed when it is whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from cdiff.adapter.formats import FILES, FORMAT, INFO_FILE, TEXT_FILE, TOKEN_PARTS, check_token_name, kind_of
from cdiff.errors import UserError
from cdiff.provenance import versions
from cdiff.storage import as_os_error, whole_folder


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
        with whole_folder(folder) as partial:
            _write_files(partial, unet_weights, token_rows, info, text_encoder_weights or {})
    except (OSError, SafetensorError) as error:
        reason = as_os_error(error) or error
        raise UserError(f"the adapter can't be written to {folder}: {getattr(reason, 'strerror', reason)}.") from error
    return folder


def _write_files(
    folder: Path, unet: Mapping[str, Tensor], tokens: Mapping[str, Tensor], info: Mapping, text: Mapping[str, Tensor]
) -> None:
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
        "versions": {**versions(), **info.get("versions", {})},
    }
    (folder / INFO_FILE).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _token_tensors(token: str, vector: Tensor, info: Mapping[str, Any]) -> dict[str, Tensor]:
    """One vector, or of a base with two text encoders (info["token_widths"]) one for each."""
    widths = info.get("token_widths") or []
    if len(widths) < 2:
        return {token: vector.reshape(-1)}
    return dict(zip(TOKEN_PARTS, vector.reshape(-1).split(widths), strict=True))


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
