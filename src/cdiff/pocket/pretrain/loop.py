"""The loop that all pretraining stages share: AdamW, warm-up and cosine by progress, EMA, bf16 on GPU."""

from __future__ import annotations

import copy
import math
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch.optim.swa_utils import AveragedModel

from cdiff.errors import UserError

SETTLE = 2  # steps before the clock of a schedule by time starts: they compile


def fit(
    module: torch.nn.Module,
    loss_of: Callable[[int], dict[str, torch.Tensor]],
    settings: dict,
    minutes: float | None,
    log: Callable[[str], None],
    save: Callable[[torch.nn.Module], None] | None = None,
) -> tuple[torch.nn.Module, int]:
    """Trains the parameters of `module` that want a gradient; returns its averaged copy (EMA) and the steps made.

    loss_of(step) gives the parts of the loss, of which `loss` is minimised. The learning rate falls to zero, and the
    run ends, after settings["steps"]; with `minutes`, after that time instead, counted once the first steps have
    compiled; and in any case at settings["deadline"] (unix time), if that comes first.
    `save(average)` is called by the first process every settings["save_every"] minutes, so that a run that is cut off
    leaves usable weights.
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
    begun = said = saved = time.time()
    step = since = 0
    schedule = Schedule(settings, minutes)
    while (progress := schedule.at(step, device)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = rate * max(cosine(progress, warmup), 0.002)
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
            said, since = time.time(), step
        if save and "save_every" in settings and time.time() - saved > 60 * settings["save_every"]:
            if PartialState().is_main_process:
                save(average.module)
            saved = time.time()
    if schedule.start:
        log(f"the first {SETTLE} steps took {schedule.start - begun:.0f} s")
    log(f"done: {step} steps in {time.time() - begun:.0f} s")
    return average.module.eval(), step


class Schedule:
    """The share of a run that is done: of its steps or its minutes, or of the time to its deadline if that is more."""

    def __init__(self, settings: dict, minutes: float | None):
        self.steps, self.minutes, self.deadline = settings.get("steps"), minutes, settings.get("deadline")
        self.start = self.done = 0.0

    def at(self, step: int, device: torch.device) -> float:
        """0 to 1. By time it is looked up at every tenth step, and agreed between processes."""
        by_steps = 0.0 if self.minutes or not self.steps else step / self.steps
        if self.minutes or self.deadline:
            if not self.start and step >= SETTLE:
                if device.type == "cuda":
                    torch.cuda.synchronize()
                self.start = time.time()
            if step == SETTLE or (step > SETTLE and step % 10 == 0):
                self.done = agreed(self._by_time(time.time()))
        return max(by_steps, self.done)

    def _by_time(self, now: float) -> float:
        shares = [(now - self.start) / 60 / self.minutes] if self.minutes else []
        if self.deadline:
            left = self.deadline - self.start
            shares.append((now - self.start) / left if left > 0 else 1.0)
        return max(shares)


def cosine(progress: float, warmup: float) -> float:
    """The learning rate's factor: a linear rise over the share `warmup`, then half a cosine down to 0."""
    if progress < warmup:
        return progress / warmup
    return 0.5 + 0.5 * math.cos(math.pi * (progress - warmup) / (1 - warmup))


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


def wait_for(ready: Callable[[], bool], what: str, settings: dict) -> None:
    """Waits for the first shard, which may still be rendering.

    Raises:
        UserError: it did not come within settings["patience"] seconds.
    """
    until = time.time() + settings.get("patience", 300)
    while not ready():
        if time.time() > until:
            raise UserError(f"no {what} came in time: is the stage that renders them still running?")
        time.sleep(0.5)


def part_ways(seed: int) -> None:
    """Called once the model is built, the same in all processes: from here each draws other pictures and noise."""
    torch.manual_seed(1000 * (seed + 1) + PartialState().process_index)


def agreed(number: float) -> float:
    """The number of the first process, in all of them, so that they end at the same step."""
    if not dist.is_initialized():
        return number
    shared = [number]
    dist.broadcast_object_list(shared)
    return shared[0]


def average_gradients(params: list[torch.Tensor]) -> None:
    """Over all processes, in one message; nothing to do in a single one. Parameters without a gradient are left out."""
    if not dist.is_initialized():
        return
    grads = [p.grad for p in params if p.grad is not None]
    flat = torch.cat([grad.reshape(-1) for grad in grads])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for grad, part in zip(grads, flat.split([grad.numel() for grad in grads])):
        grad.copy_(part.view_as(grad))


def compiled(function: Callable, device: torch.device, settings: dict) -> Callable:
    """torch.compile on a GPU unless settings["compile"] is false; on the CPU it does not pay."""
    if device.type != "cuda" or not settings.get("compile", True):
        return function
    torch._dynamo.config.suppress_errors = True  # what can't be compiled runs as it is
    return torch.compile(function, dynamic=False)


def save_half(model, folder: Path) -> None:
    """`save_pretrained` in fp16 safetensors, file by file put in place, so that a reader never meets half a file.

    The configuration goes on saying float32, the precision to compute in.
    """
    half = copy.deepcopy(model).half()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".part-") as place:
        half.save_pretrained(place, safe_serialization=True)
        config = Path(place) / "config.json"
        config.write_text(config.read_text().replace('"float16"', '"float32"'))
        for file in Path(place).iterdir():
            os.replace(file, folder / file.name)
            (folder / file.name).chmod(0o644)
