"""Stage `vae`: an AutoencoderKL, 128 px to 16 x 16 latents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import PartialState
from diffusers import AutoencoderKL

from cdiff.pocket.pretrain.loop import compiled, fit, part_ways, save_half
from cdiff.pocket.pretrain.pictures import RESOLUTION, Pictures

LATENT_CHANNELS = 12


def build_vae(channels: Sequence[int] = (32, 64, 96, 128)) -> AutoencoderKL:
    """Halves the side three times; channels are multiples of 16."""
    return AutoencoderKL(
        sample_size=RESOLUTION,
        latent_channels=LATENT_CHANNELS,
        block_out_channels=tuple(channels),
        layers_per_block=1,
        norm_num_groups=16,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
    )


@torch.no_grad()
def whiten(vae: AutoencoderKL, latents: torch.Tensor) -> None:
    """Moves and scales the latent channels to mean 0 and deviation 1, inside the two 1 x 1 convolutions around them.

    The reconstruction stays the same; `scaling_factor` becomes 1. latents: (N, C, h, w), samples of the posterior.
    """
    mean, std = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
    channels = len(mean)
    quant, post = vae.quant_conv, vae.post_quant_conv
    quant.bias[:channels] -= mean
    quant.weight[:channels] /= std.view(-1, 1, 1, 1)
    quant.bias[:channels] /= std
    quant.bias[channels:] -= 2 * std.log()
    post.bias += post.weight[:, :, 0, 0] @ mean
    post.weight *= std.view(1, -1, 1, 1)
    vae.register_to_config(scaling_factor=1.0)


def gradients(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return images[..., 1:, :] - images[..., :-1, :], images[..., 1:] - images[..., :-1]


def reconstruction_loss(decoded: torch.Tensor, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Absolute and squared error, and the same error of the picture's gradients, which keeps outlines sharp."""
    pixel = F.l1_loss(decoded, images) + 8.0 * F.mse_loss(decoded, images)
    edge = sum(F.l1_loss(a, b) for a, b in zip(gradients(decoded), gradients(images)))
    return pixel, edge


def train_vae(pictures: Pictures, settings: dict, minutes: float | None, folder: Path, log) -> int:
    device = pictures.device
    torch.manual_seed(0)
    place = folder / "base" / "vae"
    vae = (
        AutoencoderKL.from_pretrained(place, dtype=torch.float32)
        if settings.get("warm_start")
        else build_vae(settings.get("channels", (32, 64, 96, 128)))
    )
    vae = vae.to(device, memory_format=torch.channels_last).train()
    part_ways(0)
    if settings.get("decoder_only"):  # the latents stay as they are, so a UNet trained on them stays right
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)

    def autoencode(images: torch.Tensor, noise: torch.Tensor):
        mean, logvar = vae.quant_conv(vae.encoder(images)).chunk(2, dim=1)
        logvar = logvar.clamp(-30, 20)
        return vae.decoder(vae.post_quant_conv(mean + (0.5 * logvar).exp() * noise)), mean, logvar

    forward = compiled(autoencode, device, settings)

    def draw(step: int) -> tuple[torch.Tensor, ...]:
        if step % 20 == 0:
            pictures.refresh()
        images = pictures.images(torch.randint(len(pictures), (settings["batch_size"],), device=device))
        noise = torch.randn(len(images), LATENT_CHANNELS, RESOLUTION // 8, RESOLUTION // 8, device=device)
        return images, noise.to(memory_format=torch.channels_last)

    def loss_of(images: torch.Tensor, noise: torch.Tensor) -> dict[str, torch.Tensor]:
        decoded, mean, logvar = forward(images, noise)
        decoded, mean, logvar = decoded.float(), mean.float(), logvar.float()
        pixel, edge = reconstruction_loss(decoded, images)
        kl = 0.5 * (mean.pow(2) + logvar.exp() - 1 - logvar).mean()
        psnr = -10 * torch.log10((decoded.detach().clamp(-1, 1) - images).pow(2).mean() / 4)
        return {"loss": pixel + 0.5 * edge + settings["kl_weight"] * kl, "pixel": pixel, "kl": kl, "psnr": psnr}

    # what is saved on the way is whole but for the whitening: the probe stage may use it
    vae_average, steps = fit(vae, draw, loss_of, settings, minutes, log, lambda average: save_half(average, place))
    if not settings.get("decoder_only"):
        with torch.no_grad():
            images = pictures.images(torch.arange(min(500, len(pictures)), device=device))
            whiten(vae_average, vae_average.encode(images).latent_dist.sample())
    if PartialState().is_main_process:
        save_half(vae_average, place)
    return steps
