"""Micro-batches of training samples, each made from its number alone.

Everything random in a training sample (the order of the views, its noise, its timestep, its draw from the VAE's
posterior) follows from (seed, number of the sample) on the CPU. So a step can be repeated exactly, two accumulated
batches of one equal one batch of two, and processes share out the very samples that one process would see.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from cdiff.data.latents import TrainingViews
from cdiff.losses import diffusion_target
from cdiff.tokens import to_device

SHOWN = 4  # views of a batch that a sentence names


@dataclass
class Batch:
    """One micro-batch as the UNet meets it, on the device. The first `len(mask)` samples show the concepts; what
    follows, if anything, is the prior's. Tensors (B, C, h, w) but timesteps (B,) and mask (b, 1, h, w)."""

    noisy: Tensor
    timesteps: Tensor
    target: Tensor
    mask: Tensor
    prompts: list[str]
    time_ids: Tensor | None = None  # (B, 6) of SDXL: data.latents.TrainingViews
    ids: tuple[Tensor, ...] = ()  # of each text encoder: prompts, and behind them the phrases of SPL (engine)

    def tensors(self) -> list[Tensor]:
        """Everything on the device, in one order: what a graph of the step reads."""
        named = [self.noisy, self.timesteps, self.target, self.mask, *self.ids]
        return named if self.time_ids is None else [*named, self.time_ids]


class Batches:
    """Makes any micro-batch of the run from its number alone."""

    def __init__(
        self,
        noise_schedule: DDPMScheduler,
        views: TrainingViews,
        prior: TrainingViews | None,
        size: int,
        seed: int,
        device: torch.device,
        tokenize: Callable[[list[str]], tuple[Tensor, ...]] | None = None,  # gives a batch its ids
    ) -> None:
        self.tokenize = tokenize
        self.noise_schedule = noise_schedule
        self.views, self.prior = views, prior
        self.size, self.seed, self.device = size, seed, device
        self._orders: dict[tuple[int, int], Tensor] = {}

    def __getitem__(self, number: int) -> Batch:
        samples = range(number * self.size, (number + 1) * self.size)
        kinds = [("concept", self.views)] + ([("prior", self.prior)] if self.prior is not None else [])
        drawn = [self._draw(kind, views, sample) for kind, views in kinds for sample in samples]
        latents, noise, timesteps, masks, prompts, time_ids = zip(*drawn, strict=True)
        latents, noise, timesteps = torch.stack(latents), torch.stack(noise), torch.cat(timesteps)
        return Batch(
            noisy=self._move(self.noise_schedule.add_noise(latents, noise, timesteps)),
            timesteps=self._move(timesteps),
            target=self._move(diffusion_target(self.noise_schedule, latents, noise, timesteps)),
            mask=self._move(torch.stack(masks[: self.size])),
            prompts=list(prompts),
            time_ids=None if time_ids[0] is None else self._move(torch.stack(time_ids)),
            ids=() if self.tokenize is None else self.tokenize(list(prompts)),
        )

    def describe(self, numbers: range) -> str:
        """What micro-batches hold, in words: "batch 12: view 3 'a photo of a <new1> dog', ..."."""
        samples = range(numbers.start * self.size, numbers.stop * self.size)
        views = [self._view("concept", len(self.views), sample) for sample in samples]
        shown = ", ".join(f"view {view} '{self.views.prompts[view]}'" for view in views[:SHOWN])
        more = f" and {len(views) - SHOWN} more" if len(views) > SHOWN else ""
        name = f"batch {numbers.start}" if len(numbers) == 1 else f"batches {numbers.start} to {numbers.stop - 1}"
        return f"{name}: {shown}{more}"

    def _draw(self, kind: str, views: TrainingViews, sample: int) -> tuple:
        """Latents (C, h, w), noise (C, h, w), timestep (1,), mask (1, h, w), prompt and size and crop (6,) of one
        training sample."""
        view = self._view(kind, len(views.prompts), sample)
        generator = torch.Generator().manual_seed(_mix(self.seed, kind, sample))
        mean = views.mean[view]
        latents = mean + views.std[view] * torch.randn(mean.shape, generator=generator)
        noise = torch.randn(mean.shape, generator=generator)
        steps = self.noise_schedule.config.num_train_timesteps
        timestep = torch.randint(steps, (1,), generator=generator)
        sizes = None if views.time_ids is None else views.time_ids[view]
        return latents, noise, timestep, views.masks[view], views.prompts[view], sizes

    def _view(self, kind: str, count: int, sample: int) -> int:
        """Every view once in a random order, then again in another: none is used twice before each was used."""
        epoch = sample // count
        if (kind, epoch) not in self._orders:
            generator = torch.Generator().manual_seed(_mix(self.seed, kind + " order", epoch))
            self._orders = {k: v for k, v in self._orders.items() if k[1] >= epoch - 1}
            self._orders[kind, epoch] = torch.randperm(count, generator=generator)
        return int(self._orders[kind, epoch][sample % count])

    def _move(self, tensor: Tensor) -> Tensor:
        return to_device(tensor, self.device)


def _mix(*parts: object) -> int:
    """A 63-bit seed from anything printable; neighbours give unrelated seeds."""
    key = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.sha256(key).digest()[:8], "big") >> 1
