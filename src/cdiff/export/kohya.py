"""Key names of kohya's sd-scripts, which ComfyUI, A1111 and diffusers read.

    lora_unet_LAYER.lora_down.weight (r, in)    lora_unet_LAYER.lora_up.weight (out, r)    lora_unet_LAYER.alpha ()

LAYER has underscores for dots. Of Stable Diffusion 1.x and 2.x it is diffusers' name of the layer; of SDXL that of
Stability's own code (input_blocks_4_1_...), whose UNet sd-scripts trains. The update is alpha / r * up @ down, and
alpha = r.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from cdiff.export.low_rank import LowRank

BLOCK = re.compile(r"(down_blocks|up_blocks)\.(\d+)\.attentions\.(\d+)\.(.+)")


def kohya_tensors(found: LowRank, sdxl: bool, layers_per_block: int = 2) -> dict[str, Tensor]:
    """The factors under kohya's names."""
    tensors = {}
    for name, (down, up) in found.layers.items():
        layer = stability_name(name, layers_per_block) if sdxl else name
        stem = f"lora_unet_{layer.replace('.', '_')}"
        tensors[f"{stem}.lora_down.weight"] = down.contiguous()
        tensors[f"{stem}.lora_up.weight"] = up.contiguous()
        tensors[f"{stem}.alpha"] = torch.tensor(float(down.shape[0]))
    return tensors


def stability_name(layer: str, layers_per_block: int = 2) -> str:
    """diffusers' name of an attention layer -> Stability's: block b, attention a of the way down is input block
    1 + b (n + 1) + a (block 0 is the first convolution, and each level ends in a downsampler); of the way up, with one
    layer more a level, output block b (n + 1) + a. Attention is part 1 of its block, after the residual layer."""
    if layer.startswith("mid_block.attentions.0."):
        return layer.replace("mid_block.attentions.0.", "middle_block.1.", 1)
    side, block, attention, rest = BLOCK.fullmatch(layer).groups()
    place = int(block) * (layers_per_block + 1) + int(attention)
    return f"input_blocks.{1 + place}.1.{rest}" if side == "down_blocks" else f"output_blocks.{place}.1.{rest}"
