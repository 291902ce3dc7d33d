"""Stage `unet`: the text-conditioned noise predictor on the frozen VAE's latents."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from accelerate import PartialState
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel

from cdiff.pocket.pretrain import wait_for_stages
from cdiff.pocket.pretrain.clip import build_clip
from cdiff.pocket.pretrain.loop import compiled, fit, half_precision, part_ways, save_half
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
    """Latents of the pictures, encoded shard by shard as they are rendered: (N, C, 16, 16) fp16 on the device."""

    def __init__(self, pictures: Pictures, vae: AutoencoderKL, count: int):
        self.pictures, self.vae, self.filled = pictures, vae, 0
        state = PartialState()
        self.next, self.stride = state.process_index, state.num_processes  # each process has shards of its own
        rows = max(1, count // pictures.shard) * pictures.shard
        device = pictures.device
        self.latents = torch.empty((rows, LATENT_CHANNELS, 16, 16), dtype=torch.float16, device=device)
        self.ids = torch.empty((rows, *pictures.ids.shape[1:]), dtype=torch.int16, device=device)

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
            self.latents[self.filled + rows] = (latents * self.vae.config.scaling_factor).half()
        self.ids[self.filled : self.filled + shard] = self.pictures.ids[:shard]
        self.filled += shard
        self.next += self.stride
        return True


def min_snr_weight(alphas_cumprod: torch.Tensor, gamma: float) -> torch.Tensor:
    """Weight of each timestep for noise prediction, min(SNR, gamma) / SNR (Hang et al. 2023, eq. 5)."""
    snr = alphas_cumprod / (1 - alphas_cumprod)
    return snr.clamp(max=gamma) / snr


def train_unet(pictures: Pictures, settings: dict, minutes: float | None, folder: Path, log) -> int:
    device = pictures.device
    tokenizer = build_tokenizer()
    text_folder, wait = folder / "base" / "text_encoder", settings.get("wait", False)
    if wait:  # its weights come later
        text_encoder = CLIPTextModel(build_clip(tokenizer, settings.get("text", {}), {}).config.text_config)
    else:
        text_encoder = CLIPTextModel.from_pretrained(text_folder, dtype=torch.float32)
    text_encoder = text_encoder.to(device).eval().requires_grad_(False)
    torch.manual_seed(2)
    if settings.get("warm_start"):
        unet = UNet2DConditionModel.from_pretrained(folder / "base" / "unet", torch_dtype=torch.float32)
    else:
        unet = build_unet(settings.get("channels", (96, 160)), text_encoder.config.hidden_size)
    unet = unet.to(device, memory_format=torch.channels_last)
    part_ways(2)
    scheduler = DDPMScheduler(**SCHEDULE)
    alphas = scheduler.alphas_cumprod.to(device)
    weights = min_snr_weight(alphas, settings["min_snr_gamma"])
    empty = torch.tensor(tokenizer([""], padding="max_length", max_length=MAX_LENGTH).input_ids, device=device)
    size = settings["batch_size"]

    def noise_loss(
        clean: torch.Tensor, ids: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        with torch.no_grad():
            hidden = text_encoder(ids).last_hidden_state
        a = alphas[timesteps].view(-1, 1, 1, 1)
        noisy = a.sqrt() * clean + (1 - a).sqrt() * noise
        predicted = unet(noisy, timesteps, hidden, return_dict=False)[0]
        return (predicted.float() - noise).pow(2).mean(dim=(1, 2, 3))

    forward = compiled(noise_loss, device, settings)
    if wait:
        _compile(forward, size, empty)
        log("compiled, waits for the stages it stands on")
        wait_for_stages(folder, "unet", settings)
        text_encoder.load_state_dict(CLIPTextModel.from_pretrained(text_folder, dtype=torch.float32).state_dict())
    check_vocabulary(tokenizer, folder / "base" / "tokenizer")
    vae = AutoencoderKL.from_pretrained(folder / "base" / "vae", dtype=torch.float32).to(device).eval()
    latents = Latents(pictures, vae, settings["latents"])
    for _ in range(settings.get("first_shards", 5)):
        latents.refresh()

    def draw(step: int) -> tuple[torch.Tensor, ...]:
        if step % 25 == 0:
            latents.refresh()
        index = torch.randint(latents.filled, (size,), device=device)
        variant = torch.randint(len(CAPTIONS), (size,), device=device)
        ids = torch.nn.functional.pad(
            latents.ids[index, variant].long(), (0, MAX_LENGTH - latents.ids.shape[-1]), value=tokenizer.pad_token_id
        )
        dropped = torch.rand(size, 1, device=device) < settings["caption_drop"]
        clean = latents.latents[index].float()
        timesteps = torch.randint(0, len(alphas), (size,), device=device)
        return clean, torch.where(dropped, empty, ids), torch.randn_like(clean), timesteps

    def loss_of(
        clean: torch.Tensor, ids: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        each = forward(clean, ids, noise, timesteps)
        return {"loss": (weights[timesteps] * each).mean(), "mse": each.mean()}

    average, steps = fit(unet, draw, loss_of, settings, minutes, log, lambda average: save_base(average, folder))
    if PartialState().is_main_process:
        save_base(average, folder)
    log(f"trained on {latents.filled} pictures")
    return steps


def _compile(forward: Callable, size: int, empty: torch.Tensor) -> None:
    """A step on nothing, for the compiler. In a function of its own, so that nothing of its graph outlives it: what
    accumulates gradients would stay bound to this stream, and a capture on another one would fail."""
    clean = torch.zeros(size, LATENT_CHANNELS, 16, 16, device=empty.device)
    timesteps = torch.zeros(size, dtype=torch.long, device=empty.device)
    with half_precision(empty.device):
        loss = forward(clean, empty.expand(size, -1).contiguous(), torch.zeros_like(clean), timesteps)
    loss.mean().backward()


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
