"""A folder's weights as one checkpoint file under the names of Stability's code, as ComfyUI and A1111 keep them.

Written from the layout of the two UNets and VAEs; diffusers converts the other way round.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
VAE_PARTS = {
    "conv_norm_out": "norm_out",
    "conv_shortcut": "nin_shortcut",
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.attentions.0": "mid.attn_1",
    "mid_block.resnets.1": "mid.block_2",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OPEN_CLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def write_checkpoint(folder: Path, file: Path) -> Path:
    """All weights of a tiny base in one .safetensors file."""
    sdxl = (folder / "text_encoder_2").is_dir()
    tensors = {}
    for name, value in _weights(folder, "unet").items():
        tensors[f"model.diffusion_model.{unet_name(name)}"] = value
    for name, value in _weights(folder, "vae").items():
        own = vae_name(name)
        is_linear = ".attn_1." in own and own.endswith("weight") and value.ndim == 2
        tensors[f"first_stage_model.{own}"] = value[:, :, None, None] if is_linear else value
    text = "conditioner.embedders.0.transformer" if sdxl else "cond_stage_model.transformer"
    for name, value in _weights(folder, "text_encoder").items():
        tensors[f"{text}.text_model.{name}"] = value
    if sdxl:
        tensors |= open_clip(_weights(folder, "text_encoder_2"), "conditioner.embedders.1.model.")
    save_file({name: value.contiguous().clone() for name, value in tensors.items()}, file)
    return file


def unet_name(name: str) -> str:
    for ours, theirs in UNET_ENDS.items():
        if name.startswith(f"{ours}."):
            return _inside(theirs + name.removeprefix(ours), ".resnets." in name)
    side, block, kind, place, rest = re.fullmatch(
        r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", name
    ).groups()
    first, place = 3 * int(block), int(place)
    if kind == "downsamplers":
        return f"input_blocks.{first + 3}.0.op.{rest.removeprefix('conv.')}"
    if kind == "upsamplers":  # last in its block, after the attention where there is one
        return f"output_blocks.{first + 2}.{1 + place}.{rest}"
    part = 0 if kind == "resnets" else 1
    where = f"input_blocks.{first + 1 + place}" if side == "down" else f"output_blocks.{first + place}"
    return _inside(f"{where}.{part}.{rest}", kind == "resnets")


def vae_name(name: str) -> str:
    found = re.fullmatch(
        r"(encoder|decoder)\.(down|up)_blocks\.(\d+)\.(resnets|downsamplers|upsamplers)\.(\d+)\.(.+)", name
    )
    if found:
        half, side, block, kind, place, rest = found.groups()
        level = int(block) if side == "down" else 3 - int(block)
        part = f"block.{place}" if kind == "resnets" else f"{side}sample"
        name = f"{half}.{side}.{level}.{part}.{rest}"
    for ours, theirs in VAE_PARTS.items():
        name = name.replace(ours, theirs)
    if ".attn_1." in name:
        for ours, theirs in VAE_ATTENTION.items():
            name = name.replace(f".attn_1.{ours}.", f".attn_1.{theirs}.")
    return name


def open_clip(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """transformers' CLIPTextModelWithProjection under OpenCLIP's names."""
    fixed = {
        "embeddings.token_embedding.weight": "token_embedding.weight",
        "embeddings.position_embedding.weight": "positional_embedding",
        "final_layer_norm.weight": "ln_final.weight",
        "final_layer_norm.bias": "ln_final.bias",
    }
    tensors = {}
    for name, value in weights.items():
        name = name.removeprefix("text_model.")
        if name == "text_projection.weight":
            tensors[f"{prefix}text_projection"] = value.T
        elif name in fixed:
            tensors[prefix + fixed[name]] = value
        elif ".self_attn.q_proj." in name:
            parts = [weights[f"text_model.{name}".replace("q_proj", f"{side}_proj")] for side in "qkv"]
            layer, kind = re.fullmatch(r"encoder\.layers\.(\d+)\.self_attn\.q_proj\.(weight|bias)", name).groups()
            tensors[f"{prefix}transformer.resblocks.{layer}.attn.in_proj_{kind}"] = torch.cat(parts)
        elif not re.search(r"self_attn\.[kv]_proj", name):
            layer, rest = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)", name).groups()
            for ours, theirs in OPEN_CLIP.items():
                rest = rest.replace(ours, theirs)
            tensors[f"{prefix}transformer.resblocks.{layer}.{rest}"] = value
    return tensors


def _inside(name: str, is_resnet: bool) -> str:
    for ours, theirs in RESNET.items() if is_resnet else ():
        name = re.sub(rf"\.{ours}\.(weight|bias)$", rf".{theirs}.\1", name)
    return name


def _weights(folder: Path, part: str) -> dict[str, Tensor]:
    """A part's tensors; an upsampler's number says whether its block has attention."""
    tensors = load_file(next((folder / part).glob("*.safetensors")))
    attended = {name.split(".attentions.")[0] for name in tensors if ".attentions." in name}

    def numbered(name: str) -> str:
        block, mark, rest = name.partition(".upsamplers.0.")
        return f"{block}.upsamplers.1.{rest}" if mark and block in attended else name

    return {numbered(name): value for name, value in tensors.items()}
