"""A motion adapter for the tiny Stable Diffusion 1.5 (tiny.py), with random weights that move something."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import MotionAdapter

LONGEST = 8  # frames
FITTING = {
    "block_out_channels": (16, 16, 16, 16),
    "motion_layers_per_block": 2,
    "motion_num_attention_heads": 2,
    "motion_norm_num_groups": 8,
    "motion_max_seq_length": LONGEST,
}


def build_motion_adapter(folder: Path, **changes: Any) -> Path:
    """Write the adapter into `folder`; `changes` to what fits the tiny base."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        adapter = MotionAdapter(**FITTING | changes)
        for parameter in adapter.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.3)
        adapter.save_pretrained(folder)
    return folder


def video_words(folder: Path, *more: str) -> list[str]:
    """Of a short clip by that adapter."""
    return [f"video.motion_adapter={folder}", "video.frames=4", "sampler.steps=2", *more]
