"""Arithmetic of a training step, counted on the architecture (no memory, no GPU), and what a GPU can do at the most."""

from __future__ import annotations

import statistics
import time

import torch
from diffusers import UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode


def step_flop(config: dict, batch: int, cells: int, length: int = 77) -> dict[str, float]:
    """FLOP of the UNet's forward pass, and of forward and backward where cross-attention K and V alone train (input
    gradients everywhere else). cells: latent cells of a side."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config).requires_grad_(False)
        for name, parameter in unet.named_parameters():
            parameter.requires_grad_(name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")))
        noisy = torch.zeros(batch, unet.config.in_channels, cells, cells)
        hidden = torch.zeros(batch, length, unet.config.cross_attention_dim, requires_grad=True)
        timesteps = torch.zeros(batch, dtype=torch.long)
        with FlopCounterMode(display=False) as forward:
            prediction = unet(noisy, timesteps, hidden, return_dict=False)[0]
        with FlopCounterMode(display=False) as backward:
            prediction.square().mean().backward()
    found = forward.get_total_flops()
    return {"forward": found, "step": found + backward.get_total_flops()}


def vae_flop(config: dict, pixels: int) -> dict[str, float]:
    """FLOP of encoding one picture and of decoding one."""
    from diffusers import AutoencoderKL

    with torch.device("meta"), torch.no_grad():
        vae = AutoencoderKL.from_config(config)
        with FlopCounterMode(display=False) as encode:
            latents = vae.encode(torch.zeros(1, 3, pixels, pixels)).latent_dist.mean
        with FlopCounterMode(display=False) as decode:
            vae.decode(latents)
    return {"encode": encode.get_total_flops(), "decode": decode.get_total_flops()}


def peak_rate(device: torch.device, size: int = 8192, repeats: int = 9) -> float:
    """FLOP a second of a large matrix product in bf16 of random numbers: the median of several timings."""
    if device.type != "cuda":
        size, repeats = 512, 3
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for _ in range(repeats + 3):
        wait(device)
        start = time.perf_counter()
        for _ in range(5):
            left @ right
        wait(device)
        seconds.append((time.perf_counter() - start) / 5)
    return 2 * size**3 / statistics.median(seconds[3:])


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
