"""The loop that all pretraining stages share: AdamW, warm-up and cosine by progress, EMA, bf16 on GPU."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch.optim.swa_utils import AveragedModel


def fit(
    module: torch.nn.Module,
    loss_of: Callable[[int], dict[str, torch.Tensor]],
    settings: dict,
    minutes: float | None,
    log: Callable[[str], None],
    every: Callable[[int, torch.nn.Module], None] | None = None,
) -> tuple[torch.nn.Module, int]:
    """Trains `module` and returns its averaged copy (EMA) and the number of steps made.

    loss_of(step) gives the parts of the loss, of which `loss` is minimised. The run ends after
    settings["steps"] or, with `minutes`, after that time: the schedule follows whichever is set.
    `every(step, average)` is called at each log line.
    """
    device = next(module.parameters()).device
    params = [p for p in module.parameters() if p.requires_grad]
    rate, warmup = settings["learning_rate"], settings.get("warmup", 0.03)
    optimizer = torch.optim.AdamW(
        params,
        lr=rate,
        betas=(0.9, settings.get("beta2", 0.99)),
        weight_decay=settings.get("weight_decay", 0.01),
        fused=device.type == "cuda",
    )
    average = AveragedModel(module, multi_avg_fn=warmed_ema(settings.get("ema", 0.998)), use_buffers=True)
    cast = torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()
    start = said = time.time()
    step = since = 0
    while True:
        if step % 10 == 0 or not minutes:
            progress = agreed((time.time() - start) / 60 / minutes) if minutes else step / settings["steps"]
        if progress >= 1:
            break
        factor = (
            progress / warmup
            if progress < warmup
            else 0.5 + 0.5 * math.cos(math.pi * (progress - warmup) / (1 - warmup))
        )
        for group in optimizer.param_groups:
            group["lr"] = rate * max(factor, 0.002)
        with cast:
            parts = loss_of(step)
        optimizer.zero_grad(set_to_none=True)
        parts["loss"].backward()
        average_gradients(params)
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        average.update_parameters(module)
        step += 1
        if time.time() - said > settings.get("log_seconds", 10):
            numbers = " ".join(f"{k} {v.item():.4f}" for k, v in parts.items())
            log(f"step {step} {100 * progress:.0f}% {(step - since) / (time.time() - said):.1f} step/s {numbers}")
            if every:
                every(step, average.module)
            said, since = time.time(), step
    log(f"done: {step} steps in {time.time() - start:.0f} s")
    return average.module.eval(), step


def warmed_ema(decay: float) -> Callable:
    """An exponential average that is short at first, so that no weight of the random start stays in it."""

    @torch.no_grad()
    def update(averages: list[torch.Tensor], currents: list[torch.Tensor], count: torch.Tensor | int) -> None:
        keep = min(decay, (1 + int(count)) / (10 + int(count)))
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, currents, 1 - keep)
        else:
            torch._foreach_copy_(averages, currents)

    return update


def agreed(number: float) -> float:
    """The number of the first process, in all of them, so that they end at the same step."""
    if not dist.is_initialized():
        return number
    shared = [number]
    dist.broadcast_object_list(shared)
    return shared[0]


def average_gradients(params: list[torch.Tensor]) -> None:
    """Over all processes, in one message; nothing to do in a single one."""
    if not dist.is_initialized():
        return
    flat = torch.cat([p.grad.reshape(-1) for p in params])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for p, part in zip(params, flat.split([p.numel() for p in params])):
        p.grad.copy_(part.view_as(p))


def compiled(function: Callable, device: torch.device) -> Callable:
    """torch.compile on a GPU; on the CPU it does not pay."""
    if device.type != "cuda":
        return function
    torch._dynamo.config.suppress_errors = True  # what can't be compiled runs as it is
    return torch.compile(function, dynamic=False)


def save_half(model, folder) -> None:
    """`save_pretrained` in fp16 safetensors. The configuration goes on saying float32, the precision to compute in."""
    half = copy.deepcopy(model).half()
    half.save_pretrained(folder, safe_serialization=True)
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"float16"', '"float32"'))
