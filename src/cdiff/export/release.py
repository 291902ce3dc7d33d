"""The files of the ClassDiffusion release, which are those of diffusers' Custom Diffusion script.

    pytorch_custom_diffusion_weights.bin   {"LAYER.processor.to_k_custom_diffusion.weight": W, ...}
    <new1>.bin                             {"<new1>": vector (D,)}

Pickles of plain tensors. A self-attention layer, which nothing trains, stands there as "LAYER.processor": {}, since
diffusers' loader wants every layer named.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from cdiff.adapter import UNET_FILE, Adapter


def write_release(adapter: Adapter, layers: Iterable[str], folder: Path) -> list[str]:
    """Write the files; `layers`: the UNet's modules that have an attention processor ("....attn1.processor")."""
    files = []
    if adapter.unet:
        content = {name: tensor.detach().cpu().clone() for name, tensor in adapter.unet.items()}
        trained = {name.partition(".processor.")[0] for name in content}
        content |= {layer: {} for layer in layers if layer.removesuffix(".processor") not in trained}
        torch.save(content, folder / f"{UNET_FILE}.bin")
        files.append(f"{UNET_FILE}.bin")
    for token, vector in adapter.tokens.items():
        torch.save({token: vector.detach().cpu().clone()}, folder / f"{token}.bin")
        files.append(f"{token}.bin")
    return files
