"""Prompts x seeds -> images, with diffusers' own pipeline around the parts in memory.

An image depends on (base, adapter, prompt, seed, sampler) alone: it has its own generator, on the CPU, so neither the
batch it was drawn in nor the device's random state changes it. What is left is rounding: matrix products of another
batch size may differ in the last bits, seen as at most a few 255ths in few pixels in fp32.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    SchedulerMixin,
)
from PIL import Image
from transformers.utils import logging as transformers_logging

from cdiff import processes
from cdiff.errors import UserError
from cdiff.execution import Graphed, choose, compiled, graph_recorder
from cdiff.fused.fusing import unfuse
from cdiff.fused.guidance import halves_at_once
from cdiff.models import Base
from cdiff.pixels import Decoded
from cdiff.schema import SamplerConfig
from cdiff.tokens import PromptEncoder

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

log = logging.getLogger("cdiff")

SCHEDULERS = {
    "ddim": DDIMScheduler,
    "dpmpp": DPMSolverMultistepScheduler,
    "euler": EulerDiscreteScheduler,
    "euler_a": EulerAncestralDiscreteScheduler,
}
DECODE_PIXELS = 4 * 512 * 512  # decoded at once: the VAE needs far more memory a pixel than the UNet

Progress = Callable[[int], None]  # told the number of sampler steps just done


@dataclass(frozen=True)
class Request:
    """One image to draw: `index` counts the images of its prompt, `seed` is the seed of its own generator."""

    prompt: str
    index: int
    seed: int


def image_seed(seed: int, prompt: str, index: int) -> int:
    """The 32-bit seed of image `index` of a prompt under the run's seed: the same everywhere and in every order."""
    key = f"{seed}\n{index}\n{prompt}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(key).digest()[:4], "big")


def make_requests(prompts: Sequence[str], images_per_prompt: int, seed: int) -> list[Request]:
    """`images_per_prompt` requests a prompt, prompts in order; a prompt listed twice is drawn once, since its images
    would be the same."""
    unique = list(dict.fromkeys(prompts))
    if len(unique) < len(prompts):
        log.warning("%d repeated prompts are drawn once", len(prompts) - len(unique))
    return [Request(p, i, image_seed(seed, p, i)) for p in unique for i in range(images_per_prompt)]


def make_sampler(base: Base, conf: SamplerConfig, **schedule: Any) -> SchedulerMixin:
    """The sampler named by `conf` on the prediction type and noise schedule of the base, but for what `schedule` says
    of the latter ("beta_schedule": "linear").

    Raises:
        UserError: unknown name, or more steps than the noise schedule has.
    """
    if conf.name not in SCHEDULERS:
        raise UserError(f"sampler.name={conf.name} is unknown; choose one of {', '.join(SCHEDULERS)}.")
    steps = base.scheduler.config.num_train_timesteps
    if not 1 <= conf.steps <= steps:
        raise UserError(f"sampler.steps={conf.steps} must lie between 1 and the {steps} steps of the noise schedule.")
    config = dict(base.scheduler.config) | {"clip_sample": False} | schedule
    return SCHEDULERS[conf.name].from_config(config)


def make_pipeline(base: Base, conf: SamplerConfig) -> StableDiffusionPipeline | StableDiffusionXLPipeline:
    """diffusers' pipeline around the base's parts, without a safety checker."""
    with quiet_import():
        from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
    parts = {
        "vae": base.vae,
        "text_encoder": base.text_encoder,
        "tokenizer": base.tokenizer,
        "unet": base.unet,
        "scheduler": make_sampler(base, conf),
        "feature_extractor": None,
    }
    if base.is_sdxl:
        pipe = StableDiffusionXLPipeline(
            **parts,
            text_encoder_2=base.text_encoder_2,
            tokenizer_2=base.tokenizer_2,
            force_zeros_for_empty_prompt=base.zero_empty_prompt,
            add_watermarker=False,
        )
    else:
        pipe = StableDiffusionPipeline(**parts, safety_checker=None, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@contextmanager
def quiet_import() -> Iterator[None]:
    """Pipelines' imports warn that torchvision is missing; nothing here needs it."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


@torch.no_grad()
def sample(
    base: Base,
    requests: Sequence[Request],
    conf: SamplerConfig,
    encoder: PromptEncoder | None = None,
    *,
    resolution: int | None = None,
    progress: Progress | None = None,
) -> list[Image.Image]:
    """Draw one image a request, in batches of `conf.batch_size`.

    Args:
        encoder: gives the prompts' hidden states, with token rows that are still training; null: the base's own table.
        resolution: pixels of a side; null: what the UNet was trained at.
        progress: told after each sampler step of a batch; `sampling_steps` of them in all.

    Raises:
        UserError: unknown sampler, or images that aren't finite (a precision the model can't take).
    """
    pipe = make_pipeline(base, conf)
    device = base.unet.device
    side = resolution or base.unet.config.sample_size * pipe.vae_scale_factor
    shape = (base.unet.config.in_channels, side // pipe.vae_scale_factor, side // pipe.vae_scale_factor)
    guided = conf.guidance_scale > 1

    def after_step(_pipe: object, _step: int, _timestep: object, _tensors: dict) -> dict:
        if progress is not None:
            progress(1)
        return {}

    batches = -(-len(requests) // conf.batch_size)
    execution = choose("sampler.execution", conf.execution, batches * conf.steps, device)
    with inference(base, execution), halves_at_once(base.unet) if guided else nullcontext():
        prompts = {request.prompt for request in requests} | {conf.negative_prompt}
        embeds = _embed(prompts, encoder or PromptEncoder(base))
        if base.zero_empty_prompt and "" in embeds:  # of no request: an empty prompt would be refused before
            embeds[""] = {name: torch.zeros_like(value) for name, value in embeds[""].items()}
        images: list[Image.Image] = []
        waiting: list[Decoded] = []
        # Never more than are drawn at once: with sampler.batch_size=1 an image is bit for bit the stock pipeline's.
        at_once = min(conf.batch_size, max(1, DECODE_PIXELS // side**2))
        for start in range(0, len(requests), conf.batch_size):
            batch = requests[start : start + conf.batch_size]
            generators = [torch.Generator().manual_seed(request.seed) for request in batch]
            # Noise in fp32 whatever the precision, so that a seed means the same noise everywhere.
            noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
            latents = pipe(
                **_stacked([embeds[request.prompt] for request in batch], ""),
                **_stacked([embeds[conf.negative_prompt]] * len(batch) if guided else [], "negative_"),
                height=side,
                width=side,
                num_inference_steps=conf.steps,
                guidance_scale=conf.guidance_scale,
                eta=conf.eta,
                generator=generators,
                latents=noise.to(device),
                output_type="latent",
                callback_on_step_end=after_step,
            ).images
            decoded = [decode(base, part) for part in latents.split(at_once)]
            images += [image for part in waiting for image in part.images()]  # while a GPU draws what was just asked
            waiting = decoded
        return images + [image for part in waiting for image in part.images()]


def sample_together(
    base: Base,
    requests: Sequence[Request],
    conf: SamplerConfig,
    encoder: PromptEncoder | None = None,
    *,
    resolution: int | None = None,
    progress: Progress | None = None,
) -> list[Image.Image]:
    """As `sample`, the batches shared out among the processes of this command; all get all images. Whole batches, so
    that an image has the same bits however many processes there are."""
    if processes.count() == 1:
        return sample(base, requests, conf, encoder, resolution=resolution, progress=progress)
    batches = [list(requests[start : start + conf.batch_size]) for start in range(0, len(requests), conf.batch_size)]

    def steps(done: int) -> None:
        if progress is not None:
            progress(done * processes.count())  # of all processes, if they are as fast as this one

    own = [
        sample(base, batch, conf, encoder, resolution=resolution, progress=steps)
        for batch in processes.in_turns(batches)
    ]
    return [image for batch in processes.together(own) for image in batch]


def sampling_steps(requests: Sequence[Request], conf: SamplerConfig) -> int:
    """How often `sample` will call its progress."""
    return -(-len(requests) // conf.batch_size) * conf.steps


def decode(base: Base, latents: torch.Tensor) -> Decoded:
    """Latents (B, C, h, w) as the UNet sees them -> RGB images."""
    config = base.vae.config
    latents = latents.to(base.vae.dtype) / config.scaling_factor + (getattr(config, "shift_factor", None) or 0.0)
    return Decoded(base.vae.decode(latents, return_dict=False)[0], base.path)


def _embed(prompts: set[str], encoder: PromptEncoder) -> dict[str, dict[str, torch.Tensor]]:
    """What the pipeline takes of each prompt, each encoded once: `prompt_embeds` (L, D), of SDXL
    `pooled_prompt_embeds` (P,) too."""
    found = {}
    for prompt in sorted(prompts):
        encoded = encoder.encode_sample([prompt])  # alone, so that other prompts of the batch change no bit of it
        found[prompt] = {"prompt_embeds": encoded.hidden[0]}
        if encoded.pooled is not None:
            found[prompt]["pooled_prompt_embeds"] = encoded.pooled[0]
    return found


def _stacked(embeds: Sequence[dict[str, torch.Tensor]], prefix: str) -> dict[str, torch.Tensor]:
    """The pipeline's arguments of a batch; none for no prompts."""
    names = embeds[0] if embeds else ()
    return {prefix + name: torch.stack([own[name] for own in embeds]) for name in names}


@contextmanager
def inference(base: Base, execution: str = "eager") -> Iterator[None]:
    """Run the UNet, or the motion UNet in its place, in its own precision while latents and the sampler's arithmetic
    stay in fp32: in bf16 a hundred small steps lose what they add. During training the trained weights are fp32 among
    half-precision ones: autocast, whose casts no graph may keep.
    """
    unet = base.unet
    weights = {parameter.dtype for parameter in unet.parameters()}
    lowest = min(weights, key=lambda dtype: torch.finfo(dtype).bits)
    mixed = torch.autocast(unet.device.type, lowest) if len(weights) > 1 else nullcontext()

    def narrow(_unet: object, inputs: tuple, named: dict) -> tuple[tuple, dict]:
        # The pipeline hands over embeddings in the text encoder's precision, which need not be the UNet's.
        hidden = named["encoder_hidden_states"].to(lowest)
        return (inputs[0].to(lowest), *inputs[1:]), named | {"encoder_hidden_states": hidden}

    def widen(_unet: object, _inputs: tuple, output: Any) -> Any:
        if isinstance(output, tuple):
            return (output[0].float(), *output[1:])
        return type(output)(sample=output.sample.float())

    hooks = [unet.register_forward_pre_hook(narrow, with_kwargs=True), unet.register_forward_hook(widen)]
    training = unet.training
    unet.eval()
    if execution == "compile":
        unfuse(unet)
        unet.forward = compiled(unet.forward, "The UNet")
    if execution in ("graph", "compile") and len(weights) == 1:
        recorder = graph_recorder(torch.cuda.Stream(unet.device), hurried=True)
        unet.forward = Graphed(unet.forward, recorder, "The UNet")
    # On a CPU torch computes a linear layer in other steps where its weight may take a gradient, though none is asked
    # for: the last bits differ. A stock pipeline's weights may, so ours do while they draw.
    frozen = [parameter for model in base.models() for parameter in model.parameters() if not parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        with mixed:
            yield
    finally:
        unet.__dict__.pop("forward", None)  # the class's own again
        unet.train(training)
        for parameter in frozen:
            parameter.requires_grad_(False)
        for hook in hooks:
            hook.remove()
