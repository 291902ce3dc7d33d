"""Prompts x seeds -> clips, with diffusers' AnimateDiffPipeline around the parts in memory.

A clip depends on (base, adapters, prompt, seed, settings) alone: its noise comes from its own generator on the CPU, as
an image's does, and in fp32 the frames are those of the stock pipeline with that generator.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import torch
from PIL import Image

from cdiff.errors import UserError
from cdiff.frame_attention import anchor_frames
from cdiff.frame_noise import share_noise
from cdiff.models import Base
from cdiff.pixels import Decoded
from cdiff.sampling import DECODE_PIXELS, Progress, Request, inference, make_sampler, quiet_import
from cdiff.schema import SamplerConfig, VideoConfig
from cdiff.tokens import PromptEncoder
from cdiff.video.motion import quiet_diffusers

if TYPE_CHECKING:
    from diffusers import AnimateDiffPipeline, MotionAdapter

CPU = torch.device("cpu")


def make_clip_pipeline(
    base: Base, motion: MotionAdapter, conf: VideoConfig, sampler: SamplerConfig, device: torch.device
) -> AnimateDiffPipeline:
    """diffusers' pipeline around the parts of a base that `animated` gave, with the memory settings of `conf`.

    Raises:
        UserError: CPU offload without a GPU; a sampler or a number of steps that make_sampler refuses.
    """
    check_memory(conf, device)
    with quiet_import():
        from diffusers import AnimateDiffPipeline
    schedule = {name: value for name, value in asdict(conf.schedule).items() if value is not None}
    pipe = AnimateDiffPipeline(
        vae=base.vae,
        text_encoder=base.text_encoder,
        tokenizer=base.tokenizer,
        unet=base.unet,
        motion_adapter=motion if conf.free_noise else None,  # FreeNoise asks it for its length; its weights are in unet
        scheduler=make_sampler(base, sampler, **schedule),
    )
    pipe.set_progress_bar_config(disable=True)
    if conf.vae_slicing:
        base.vae.enable_slicing()
    if conf.anchor is not None:
        anchor_frames(base.unet, conf.drawn_frames, conf.anchor)
    if conf.free_noise is not None:
        pipe.enable_free_noise(context_length=conf.free_noise, context_stride=conf.free_noise_stride)
    if conf.cpu_offload:
        pipe.enable_model_cpu_offload(device=device)
    return pipe


def check_memory(conf: VideoConfig, device: torch.device) -> None:
    """Raises UserError for a memory setting that the device has no use for."""
    if conf.cpu_offload and device.type != "cuda":
        raise UserError("video.cpu_offload=true needs a GPU, and this run is on the CPU: leave it out.")


def draw_clips(
    base: Base,
    pipe: AnimateDiffPipeline,
    requests: Sequence[Request],
    conf: VideoConfig,
    sampler: SamplerConfig,
    *,
    resolution: int | None = None,
    progress: Progress | None = None,
) -> Iterator[tuple[Request, list[Image.Image]]]:
    """Each request with its frames, `sampler.batch_size` clips drawn at once.

    Args:
        base: as `animated` gave it; `pipe` is around its parts.
        resolution: pixels of a side; null: what the UNet was trained at.
        progress: told after each sampler step of a batch.

    Raises:
        UserError: frames that aren't finite numbers.
    """
    PromptEncoder(base).tokenize([*dict.fromkeys(request.prompt for request in requests), sampler.negative_prompt])
    side = resolution or base.unet.config.sample_size * pipe.vae_scale_factor
    for start in range(0, len(requests), sampler.batch_size):
        batch = requests[start : start + sampler.batch_size]
        yield from zip(batch, _draw(base, pipe, batch, conf, sampler, side, progress), strict=True)


@torch.no_grad()
def _draw(
    base: Base,
    pipe: AnimateDiffPipeline,
    batch: Sequence[Request],
    conf: VideoConfig,
    sampler: SamplerConfig,
    side: int,
    progress: Progress | None,
) -> list[list[Image.Image]]:
    """The frames of each request of a batch."""

    def after_step(_pipe: object, _step: int, _timestep: object, _tensors: dict) -> dict:
        if progress is not None:
            progress(1)
        return {}

    generators = [torch.Generator().manual_seed(request.seed) for request in batch]
    size = (1, base.unet.config.in_channels, conf.drawn_frames, side, side, torch.float32, CPU)
    # The pipeline's own noise (FreeNoise shuffles it), in fp32 whatever the precision; it scales by sigma itself.
    noise = torch.cat([pipe.prepare_latents(*size, generator) for generator in generators])
    noise = noise / pipe.scheduler.init_noise_sigma
    if conf.shared_noise:
        common = torch.cat([torch.randn(*noise[:1, :, :1].shape, generator=generator) for generator in generators])
        noise = share_noise(noise, common, conf.shared_noise)
    prompts = [request.prompt for request in batch]
    alone = len(batch) == 1  # FreeNoise takes no lists
    with inference(base), quiet_diffusers():  # it tells once more which words of a long prompt are cut off
        latents = pipe(
            prompt=prompts[0] if alone else prompts,
            negative_prompt=sampler.negative_prompt if alone else [sampler.negative_prompt] * len(batch),
            num_frames=conf.drawn_frames,
            height=side,
            width=side,
            num_inference_steps=sampler.steps,
            guidance_scale=sampler.guidance_scale,
            eta=sampler.eta,
            generator=generators,
            latents=noise,
            output_type="latent",
            callback_on_step_end=after_step,
        ).frames
        at_once = conf.decode_frames or max(1, DECODE_PIXELS // side**2)
        kept = latents[:, :, conf.margin : conf.margin + conf.frames]
        clips = [decode_frames(base, clip.transpose(0, 1), at_once) for clip in kept]
    pipe.maybe_free_model_hooks()
    return clips


def decode_frames(base: Base, latents: torch.Tensor, at_once: int) -> list[Image.Image]:
    """Latents (F, C, h, w) -> F pictures, `at_once` at a time, in the very steps of the stock pipeline."""
    latents = (1 / base.vae.config.scaling_factor * latents).to(base.vae.dtype)
    decoded = [Decoded(base.vae.decode(part).sample, base.path) for part in latents.split(at_once)]
    return [image for part in decoded for image in part.images()]
