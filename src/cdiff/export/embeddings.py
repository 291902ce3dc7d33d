"""Trained tokens as the embedding files of other tools.

One text encoder: one tensor (1, D). Two (SDXL): `clip_l` (1, 768) and `clip_g` (1, 1280), the names that ComfyUI, A1111
and diffusers' own training script use.
"""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from cdiff.adapter import TOKEN_PARTS, Adapter


def parts_of(adapter: Adapter, token: str) -> list[Tensor]:
    """The token's vector in each text encoder, (1, D_i)."""
    vector = adapter.tokens[token].float().reshape(1, -1)
    widths = adapter.info.get("token_widths") or [vector.shape[1]]
    return list(vector.split(widths, dim=1))


def file_name(token: str) -> str:
    """`<new1>` -> `new1.safetensors`: A1111 and ComfyUI take the file's name for the word to write in prompts."""
    return f"{token.strip('<>')}.safetensors"


def write_embeddings(adapter: Adapter, folder: Path, one_name: str | None = None) -> dict[str, str]:
    """Write a file a token; returns token -> file. `one_name`: what the only tensor of one encoder is called, null for
    the token itself, which diffusers then takes for the name."""
    files = {}
    folder.mkdir(parents=True, exist_ok=True)
    for token in adapter.tokens:
        parts = parts_of(adapter, token)
        names = TOKEN_PARTS if len(parts) > 1 else (one_name or token,)
        tensors = {name: part.contiguous().clone() for name, part in zip(names, parts, strict=True)}
        save_file(tensors, folder / file_name(token), metadata={"format": "pt"})
        files[token] = file_name(token)
    return files
