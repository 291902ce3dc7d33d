"""The published bases: class names and configuration values of every part, and folders of their layout at tiny width.

`TRUE` holds what the published config.json files say where it differs from a class's defaults; `build(name, folder)`
writes a whole folder of that layout whose widths alone are smaller: the same levels, layers a block and key names.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from tiny import SCHEDULER, VOCABULARY, write_tokenizer
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

CLASSES = {
    "text_encoder": ("transformers", "CLIPTextModel"),
    "text_encoder_2": ("transformers", "CLIPTextModelWithProjection"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
    "tokenizer_2": ("transformers", "CLIPTokenizer"),
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
}
CLIP_L = {
    "vocab_size": VOCABULARY,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "projection_dim": 768,
    "bos_token_id": 0,
    "pad_token_id": 1,
    "eos_token_id": 2,
}
OPENCLIP_H = CLIP_L | {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "hidden_act": "gelu",
    "projection_dim": 512,
}
OPENCLIP_G = CLIP_L | {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_act": "gelu",
    "projection_dim": 1280,
}
VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}
UNET_15 = {
    "sample_size": 64,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
}
UNET_21 = UNET_15 | {
    "sample_size": 96,
    "attention_head_dim": (5, 10, 20, 20),
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
    "upcast_attention": True,
}
UNET_XL = {
    "sample_size": 128,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
DDIM_V = {
    "_class_name": "DDIMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
EULER = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "trained_betas": None,
    "use_karras_sigmas": False,
}
PAD = "!"  # of OpenCLIP's tokenizers, where CLIP's pads with the end-of-text token
TRUE: dict[str, dict[str, Any]] = {
    "sd15": {"text_encoder": CLIP_L, "unet": UNET_15, "vae": VAE, "scheduler": SCHEDULER, "resolution": 512},
    "sd21": {
        "text_encoder": OPENCLIP_H,
        "unet": UNET_21,
        "vae": VAE | {"sample_size": 768},
        "scheduler": DDIM_V,
        "pad": PAD,
        "resolution": 768,
    },
    "sd21_base": {
        "text_encoder": OPENCLIP_H,
        "unet": UNET_21 | {"sample_size": 64, "upcast_attention": False},
        "vae": VAE | {"sample_size": 768},
        "scheduler": SCHEDULER | {"prediction_type": "epsilon"},
        "pad": PAD,
        "resolution": 512,
    },
    "sdxl": {
        "text_encoder": CLIP_L,
        "text_encoder_2": OPENCLIP_G,
        "unet": UNET_XL,
        "vae": VAE | {"sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True},
        "scheduler": EULER,
        "pad_2": PAD,
        "resolution": 1024,
    },
}


def tiny(name: str) -> dict[str, Any]:
    """The parts of a base with smaller widths: 8 to 32 channels, text of width 32 (of SDXL 32 + 48), 64 px."""
    parts = copy.deepcopy(TRUE[name])
    widths = {"text_encoder": 32, "text_encoder_2": 48}
    for part, width in widths.items():
        if part in parts:
            layers = min(3, parts[part]["num_hidden_layers"])
            parts[part] |= {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers}
            parts[part] |= {"num_attention_heads": 4, "projection_dim": width}
    unet = parts["unet"]
    levels = len(unet["block_out_channels"])
    heads = unet["attention_head_dim"]
    unet |= {
        "sample_size": 8,
        "block_out_channels": (8, 16, 32, 32)[:levels],
        "norm_num_groups": 8,
        "attention_head_dim": heads if isinstance(heads, int) else (2,) * levels,
        "cross_attention_dim": sum(width for part, width in widths.items() if part in parts),
    }
    if "text_encoder_2" in parts:
        unet |= {"addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 6 * 8 + 48}
    parts["vae"] |= {
        "block_out_channels": (4, 8, 16, 16),
        "norm_num_groups": 4,
        "sample_size": 64,
    }
    parts["resolution"] = 64
    return parts


def make(part: str, config: dict[str, Any]) -> torch.nn.Module:
    """A part with random weights, on torch's default device and in its default dtype."""
    if part == "unet":
        return UNet2DConditionModel(**config)
    if part == "vae":
        return AutoencoderKL(**config)
    kind = CLIPTextModel if part == "text_encoder" else CLIPTextModelWithProjection
    model = kind(CLIPTextConfig(**config))
    with torch.no_grad():  # the published initialisation is too faint to tell two words apart at a small width
        model.get_input_embeddings().weight.normal_(std=0.5)
    return model


def model_index(parts: dict[str, Any]) -> dict[str, Any]:
    """model_index.json."""
    xl = "text_encoder_2" in parts
    names = [name for name in CLASSES if xl or not name.endswith("_2")]
    index = {name: list(CLASSES[name]) for name in names}
    index["scheduler"] = ["diffusers", parts["scheduler"]["_class_name"]]
    if xl:
        return {"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True, **index}
    empty = {"feature_extractor": [None, None], "safety_checker": [None, None], "requires_safety_checker": False}
    return {"_class_name": "StableDiffusionPipeline", **empty, **index}


def build(name: str, folder: Path, seed: int = 0, variant: str | None = None) -> Path:
    """Write the tiny folder of a base; `variant`: fp16 weights under names that say so, as the hub has them."""
    torch.set_num_threads(1)  # models this small lose time to threads
    parts = tiny(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        models = {part: make(part, parts[part]) for part in CLASSES if part in parts}
    for part, model in models.items():
        (model.half() if variant else model).save_pretrained(folder / part, variant=variant)
    write_tokenizer(folder / "tokenizer", parts.get("pad"))
    if "text_encoder_2" in parts:
        write_tokenizer(folder / "tokenizer_2", parts.get("pad_2"))
    write_json(folder / "scheduler" / "scheduler_config.json", parts["scheduler"])
    write_json(folder / "model_index.json", model_index(parts))
    return folder


def write_json(file: Path, content: dict) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=1), encoding="utf-8")
