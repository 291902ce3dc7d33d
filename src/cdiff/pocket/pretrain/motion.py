"""Stage `motion`: a MotionAdapter that makes the frozen base draw clips.

It is trained, and meant to be sampled, under the base's own noise schedule (Stable Diffusion's scaled_linear betas),
not under the linear betas of AnimateDiff (2307.04725): the pocket UNet is frozen and knows each timestep's noise level
from that schedule alone. motion/scheduler_config.json carries it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import PartialState
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, MotionAdapter, UNet2DConditionModel, UNetMotionModel
from transformers import CLIPTextModel

from cdiff.errors import UserError
from cdiff.frame_attention import anchor_frames
from cdiff.frame_noise import share_noise
from cdiff.pocket.pretrain import base_of_motion
from cdiff.pocket.pretrain.clips import CAPTIONS, LENGTH, ClipLatents
from cdiff.pocket.pretrain.loop import compiled, fit, part_ways, save_half, wait_for
from cdiff.pocket.pretrain.tokenizer import MAX_LENGTH, build_tokenizer, check_vocabulary
from cdiff.pocket.pretrain.unet import SCHEDULE, min_snr_weight
from cdiff.pocket.world.motion import FRAMES


def build_motion(unet: UNet2DConditionModel, layers: tuple[int, ...] = (1, 0), mid: bool = False) -> MotionAdapter:
    """Temporal attention at the level of 16 x 16 alone, which keeps the file at 1.6 MB (fp16).

    layers: temporal transformer layers in each motion module of a level (0: a module that does not look at other
    frames, which diffusers wants there all the same). Starts as the identity: every module's output is zero.
    """
    channels = tuple(unet.config.block_out_channels)
    adapter = MotionAdapter(
        block_out_channels=channels,
        motion_layers_per_block=unet.config.layers_per_block,
        motion_transformer_layers_per_block=tuple(layers),
        motion_num_attention_heads=tuple(c // 32 for c in channels),
        motion_max_seq_length=2 * FRAMES,
        use_motion_mid_block=mid,
    )
    for name, parameter in adapter.named_parameters():
        if ".proj_out." in name:
            torch.nn.init.zeros_(parameter)
    return adapter


def joined(unet: UNet2DConditionModel, adapter: MotionAdapter) -> UNetMotionModel:
    """The base with the adapter inside it: they share the adapter's parameters, and the base's are frozen."""
    model = UNetMotionModel.from_unet2d(unet, adapter).requires_grad_(False)
    blocks = [(adapter.down_blocks, model.down_blocks), (adapter.up_blocks, model.up_blocks)]
    if adapter.mid_block is not None:
        blocks.append(([adapter.mid_block], [model.mid_block]))
    for own, others in blocks:
        for mine, other in zip(own, others):
            other.motion_modules = mine.motion_modules
    adapter.requires_grad_(True)
    return model


def shared_range(given: object) -> tuple[float, float]:
    """The least and the most share of the noise that a clip's frames have in common.

    Raises:
        UserError: not two numbers from 0 to 1, in order.
    """
    values = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else []
    if len(values) != 2 or not all(isinstance(v, int | float) for v in values) or not 0 <= values[0] <= values[1] <= 1:
        raise UserError(
            "pretrain.settings.motion.shared_noise must be the least and the most share, two numbers from 0 to 1 "
            f"such as [0.3,0.5], got {given}."
        )
    return float(values[0]), float(values[1])


def train_motion(clips: Path, device: torch.device, settings: dict, minutes: float | None, folder: Path, log) -> int:
    torch.manual_seed(5)
    base, tokenizer = base_of_motion(folder, settings), build_tokenizer()
    least, most = shared_range(settings.get("shared_noise", (0.0, 0.0)))
    check_vocabulary(tokenizer, base / "tokenizer")
    vae = AutoencoderKL.from_pretrained(base / "vae", dtype=torch.float32).to(device).eval()
    text_encoder = CLIPTextModel.from_pretrained(base / "text_encoder", dtype=torch.float32).to(device).eval()
    text_encoder.requires_grad_(False)
    unet = UNet2DConditionModel.from_pretrained(base / "unet", torch_dtype=torch.float32).to(device)
    if settings.get("warm_start"):
        adapter = MotionAdapter.from_pretrained(folder / "motion", torch_dtype=torch.float32).to(device)
    else:
        adapter = build_motion(unet, settings.get("layers", (1, 0)), settings.get("mid", False)).to(device)
    model = joined(unet, adapter).to(device).train()
    if settings.get("anchor"):
        anchor_frames(model, LENGTH, settings["anchor"])
    del unet
    part_ways(5)
    alphas = DDPMScheduler(**SCHEDULE).alphas_cumprod.to(device)
    weights = min_snr_weight(alphas, settings["min_snr_gamma"])
    latents = ClipLatents(clips, vae, settings["latents"], device)
    wait_for(latents.refresh, f"clips in {clips}", settings)
    for _ in range(settings.get("first_shards", 4) - 1):
        latents.refresh()
    empty = torch.tensor(tokenizer([""], padding="max_length", max_length=MAX_LENGTH).input_ids, device=device)
    size = settings["batch_size"]

    def noise_loss(clean: torch.Tensor, ids: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor):
        """clean, noise: (B, C, F, h, w); one timestep a clip. Gives the squared error of each clip (B,)."""
        with torch.no_grad():
            hidden = text_encoder(ids).last_hidden_state.repeat_interleave(LENGTH, dim=0)
        a = alphas[timesteps].view(-1, 1, 1, 1, 1)
        noisy = a.sqrt() * clean + (1 - a).sqrt() * noise
        predicted = model(noisy, timesteps, hidden, return_dict=False)[0]
        return (predicted.float() - noise).pow(2).mean(dim=(1, 2, 3, 4))

    forward = compiled(noise_loss, device, settings)

    def draw(step: int) -> tuple[torch.Tensor, ...]:
        if step % 10 == 0:
            latents.refresh()
        index = torch.randint(latents.filled, (size,), device=device)
        variant = torch.randint(len(CAPTIONS), (size,), device=device)
        ids = latents.ids[index, variant].long()
        ids = torch.nn.functional.pad(ids, (0, MAX_LENGTH - ids.shape[-1]), value=tokenizer.pad_token_id)
        dropped = torch.rand(size, 1, device=device) < settings["caption_drop"]
        clean = latents.latents[index].float().transpose(1, 2).contiguous()
        timesteps = torch.randint(0, len(alphas), (size,), device=device)
        shared = least + (most - least) * torch.rand(size, 1, 1, 1, 1, device=device)
        noise = share_noise(torch.randn_like(clean), torch.randn_like(clean[:, :, :1]), shared)
        return clean, torch.where(dropped, empty, ids), noise, timesteps

    def loss_of(
        clean: torch.Tensor, ids: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        each = forward(clean, ids, noise, timesteps)
        return {"loss": (weights[timesteps] * each).mean(), "mse": each.mean()}

    average, steps = fit(adapter, draw, loss_of, settings, minutes, log, lambda average: save_motion(average, folder))
    if PartialState().is_main_process:
        save_motion(average, folder)
    log(f"trained on {latents.filled} clips")
    return steps


def save_motion(adapter: MotionAdapter, folder: Path) -> None:
    save_half(adapter, folder / "motion")
    DDIMScheduler(**SCHEDULE, set_alpha_to_one=False).save_pretrained(folder / "motion")
