"""Stage `unet`: the text-conditioned noise predictor on the frozen VAE's latents."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import PartialState
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, ViTModel

from cdiff.pocket.pretrain.individuals import Individuals, Naming, features_of, open_individuals, read_text
from cdiff.pocket.pretrain.loop import compiled, fit, part_ways, save_half
from cdiff.pocket.pretrain.pictures import CAPTIONS, Pictures
from cdiff.pocket.pretrain.tokenizer import MAX_LENGTH, build_tokenizer, check_vocabulary
from cdiff.pocket.pretrain.vae import LATENT_CHANNELS

# Stable Diffusion 1.5's noise schedule.
SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "clip_sample": False,
    "steps_offset": 1,
}


def build_unet(channels: Sequence[int] = (96, 160), cross_attention_dim: int = 256) -> UNet2DConditionModel:
    """Attention at every level, one layer a block; heads of 32 channels."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        layers_per_block=1,
        block_out_channels=tuple(channels),
        down_block_types=("CrossAttnDownBlock2D",) * len(channels),
        up_block_types=("CrossAttnUpBlock2D",) * len(channels),
        cross_attention_dim=cross_attention_dim,
        attention_head_dim=tuple(c // 32 for c in channels),  # diffusers reads it as the number of heads
    )


class Latents:
    """Latents of the pictures, encoded shard by shard as they are rendered: (N, C, 16, 16) fp16 on the device.

    With `identity`, also the features (N, D) by which it tells individuals apart.
    """

    def __init__(self, pictures: Pictures, vae: AutoencoderKL, count: int, identity: ViTModel | None = None):
        self.pictures, self.vae, self.identity, self.filled = pictures, vae, identity, 0
        state = PartialState()
        self.next, self.stride = state.process_index, state.num_processes  # each process has shards of its own
        rows = max(1, count // pictures.shard) * pictures.shard
        device = pictures.device
        self.latents = torch.empty((rows, LATENT_CHANNELS, 16, 16), dtype=torch.float16, device=device)
        self.ids = torch.empty((rows, *pictures.ids.shape[1:]), dtype=torch.int16, device=device)
        self.labels = torch.empty((rows, *pictures.labels.shape[1:]), dtype=torch.int8, device=device)
        width = identity.config.hidden_size if identity else 0
        self.features = torch.empty((rows, width), dtype=torch.float16, device=device)

    @torch.no_grad()
    def refresh(self) -> bool:
        """Encodes the next shard if there is one and room for it."""
        if self.filled == len(self.latents) or not self.pictures.load_shard(self.next, 0):  # one buffer for all shards
            return False
        shard = self.pictures.shard
        for rows in torch.arange(shard, device=self.pictures.device).split(500):
            images = self.pictures.images(rows)
            with torch.autocast(images.device.type, torch.bfloat16, enabled=images.device.type == "cuda"):
                latents = self.vae.encode(images).latent_dist.sample()
                features = features_of(self.identity, images) if self.identity else None
            self.latents[self.filled + rows] = (latents * self.vae.config.scaling_factor).half()
            if features is not None:
                self.features[self.filled + rows] = features.half()
        self.ids[self.filled : self.filled + shard] = self.pictures.ids[:shard]
        self.labels[self.filled : self.filled + shard] = self.pictures.labels[:shard]
        self.filled += shard
        self.next += self.stride
        return True


def min_snr_weight(alphas_cumprod: torch.Tensor, gamma: float) -> torch.Tensor:
    """Weight of each timestep for noise prediction, min(SNR, gamma) / SNR (Hang et al. 2023, eq. 5)."""
    snr = alphas_cumprod / (1 - alphas_cumprod)
    return snr.clamp(max=gamma) / snr


class Learner(torch.nn.Module):
    """What stage `unet` trains: the noise predictor, and the words of individuals that only the training reads."""

    def __init__(self, unet: UNet2DConditionModel, individuals: Individuals | None):
        super().__init__()
        self.unet, self.individuals = unet, individuals

    def save(self, folder: Path) -> None:
        save_base(self.unet, folder)
        if self.individuals:
            self.individuals.save(folder / "training")


def train_unet(pictures: Pictures, settings: dict, minutes: float | None, folder: Path, log) -> int:
    device, size = pictures.device, settings["batch_size"]
    tokenizer, share = build_tokenizer(), settings.get("individuals", 0.0)
    check_vocabulary(tokenizer, folder / "base" / "tokenizer")
    text_encoder = CLIPTextModel.from_pretrained(folder / "base" / "text_encoder", dtype=torch.float32)
    text_encoder = text_encoder.to(device).eval().requires_grad_(False)
    torch.manual_seed(2)
    if settings.get("warm_start"):
        unet = UNet2DConditionModel.from_pretrained(folder / "base" / "unet", torch_dtype=torch.float32)
    else:
        unet = build_unet(settings.get("channels", (96, 160)), text_encoder.config.hidden_size)
    unet = unet.to(device, memory_format=torch.channels_last)
    individuals = open_individuals(folder, text_encoder, tokenizer).to(device) if share else None
    learner = Learner(unet, individuals)
    part_ways(2)
    alphas = DDPMScheduler(**SCHEDULE).alphas_cumprod.to(device)
    weights = min_snr_weight(alphas, settings["min_snr_gamma"])
    empty = torch.tensor(tokenizer([""], padding="max_length", max_length=MAX_LENGTH).input_ids, device=device)

    def noise_loss(
        clean: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor, ids: torch.Tensor, *named: torch.Tensor
    ) -> torch.Tensor:
        if named:
            mask, features = named
            hidden = read_text(text_encoder, ids, mask, individuals(features))
        else:
            with torch.no_grad():
                hidden = text_encoder(ids).last_hidden_state
        a = alphas[timesteps].view(-1, 1, 1, 1)
        noisy = a.sqrt() * clean + (1 - a).sqrt() * noise
        predicted = unet(noisy, timesteps, hidden, return_dict=False)[0]
        return (predicted.float() - noise).pow(2).mean(dim=(1, 2, 3))

    forward = compiled(noise_loss, device, settings)
    latents = _latents(pictures, settings, folder, share > 0)
    naming = Naming(tokenizer, device)

    def captions(index: torch.Tensor) -> tuple[torch.Tensor, ...]:
        variant = torch.randint(len(CAPTIONS), (size,), device=device)
        ids = torch.nn.functional.pad(
            latents.ids[index, variant].long(), (0, MAX_LENGTH - latents.ids.shape[-1]), value=tokenizer.pad_token_id
        )
        ids = torch.where(torch.rand(size, 1, device=device) < settings["caption_drop"], empty, ids)
        if not share:
            return (ids,)
        partner = naming.partners(index)
        fits = naming.fits(ids, latents.labels[index], latents.labels[partner])
        ids, mask = naming.insert(ids, fits & (torch.rand(size, device=device) < share))
        return ids, mask, latents.features[partner].float()

    def draw(step: int) -> tuple[torch.Tensor, ...]:
        if step % 25 == 0:
            latents.refresh()
        index = torch.randint(latents.filled, (size,), device=device)
        clean = latents.latents[index].float()
        timesteps = torch.randint(0, len(alphas), (size,), device=device)
        return clean, torch.randn_like(clean), timesteps, *captions(index)

    def loss_of(
        clean: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor, *text: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        each = forward(clean, noise, timesteps, *text)
        parts = {"loss": (weights[timesteps] * each).mean(), "mse": each.mean()}
        if share:
            named = text[1].any(1).float()
            parts |= {"mse_named": (each * named).sum() / named.sum().clamp(min=1)}
        return parts

    average, steps = fit(learner, draw, loss_of, settings, minutes, log, lambda average: average.save(folder))
    if PartialState().is_main_process:
        average.save(folder)
    log(f"trained on {latents.filled} pictures")
    return steps


def _latents(pictures: Pictures, settings: dict, folder: Path, identities: bool) -> Latents:
    vae = AutoencoderKL.from_pretrained(folder / "base" / "vae", dtype=torch.float32).to(pictures.device).eval()
    identity = None
    if identities:
        identity = ViTModel.from_pretrained(folder / "identity", dtype=torch.float32, add_pooling_layer=False)
        identity = identity.to(pictures.device).eval()
    latents = Latents(pictures, vae, settings["latents"], identity)
    for _ in range(settings.get("first_shards", 5)):
        latents.refresh()
    return latents


def save_base(unet: UNet2DConditionModel, folder: Path) -> None:
    """The whole pipeline folder, in Stable Diffusion 1.5's layout."""
    base = folder / "base"
    save_half(unet, base / "unet")
    DDIMScheduler(**SCHEDULE, set_alpha_to_one=False).save_pretrained(base / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "image_encoder": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (base / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
