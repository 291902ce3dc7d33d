"""Judges of drawings must not ask for the sharpness of renders: half of what they learn from went through the VAE."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from cdiff.pocket.pretrain.loop import half_precision, wait_for
from cdiff.pocket.pretrain.pictures import Pictures


def softener(pictures: Pictures, folder: Path, settings: dict) -> Callable[[], None]:
    """Gives a function that puts every other picture loaded since its last call through folder/base/vae, in place.

    The VAE may still be in training. With settings["wait"] its first weights are waited for.
    """
    place = folder / "base" / "vae"
    files = [place / name for name in ("config.json", "diffusion_pytorch_model.safetensors")]
    patience = settings.get("patience", 300) if settings.get("wait") else 0.0
    wait_for(lambda: all(file.exists() for file in files), "weights of stage vae", {"patience": patience})
    vae = AutoencoderKL.from_pretrained(place, dtype=torch.float32)
    vae = vae.to(pictures.device, memory_format=torch.channels_last).eval().requires_grad_(False)
    softened = 0

    @torch.no_grad()
    def soften() -> None:
        nonlocal softened
        if softened == len(pictures):
            return
        rows = torch.arange(softened, len(pictures), 2, device=pictures.device)
        for some in rows.split(250):
            with half_precision(pictures.device):
                decoded = vae.decode(vae.encode(pictures.images(some)).latent_dist.mode()).sample
            pixels = decoded.float().clamp(-1, 1).add(1).mul(127.5).round().byte()
            pictures.pixels[some] = pixels.permute(0, 2, 3, 1)
        softened = len(pictures)

    return soften
