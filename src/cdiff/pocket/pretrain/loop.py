"""The loop that all pretraining stages share: AdamW, warm-up and cosine by progress, EMA, on a GPU bf16 and graphs."""

from __future__ import annotations

import copy
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import PartialState

from cdiff.errors import UserError

SETTLE = 3  # steps before the clock of a schedule by time starts: they compile, and the next one captures the graphs

Parts = dict[str, torch.Tensor]


def fit(
    module: torch.nn.Module,
    draw: Callable[[int], tuple[torch.Tensor, ...]],
    loss_of: Callable[..., Parts],
    settings: dict,
    minutes: float | None,
    log: Callable[[str], None],
    save: Callable[[torch.nn.Module], None] | None = None,
) -> tuple[torch.nn.Module, int]:
    """Trains the parameters of `module` that want a gradient; returns its averaged copy (EMA) and the steps made.

    draw(step) gives the tensors of a batch, of the same shapes at every step; loss_of(*batch) the parts of the loss,
    of which `loss` is minimised. It is captured into a CUDA graph: nothing in it may depend on anything but the batch.
    The learning rate falls to zero, and the run ends, after settings["steps"]; with `minutes`, after that time
    instead, counted once the first steps have compiled; and in any case at settings["deadline"] (unix time), if that
    comes first.
    `save(average)` is called by the first process every settings["save_every"] minutes, so that a run that is cut off
    leaves usable weights.
    """
    device = next(module.parameters()).device
    update = Update(module, loss_of, settings, log)
    begun = said = saved = time.time()
    step = since = 0
    schedule = Schedule(settings, minutes)
    while (progress := schedule.at(step, device)) < 1:
        factor = max(cosine(progress, settings.get("warmup", 0.03)), 0.002)
        parts = update(draw(step), settings["learning_rate"] * factor)
        step += 1
        if time.time() - said > settings.get("log_seconds", 10):
            numbers = " ".join(f"{k} {v.item():.4f}" for k, v in parts.items())
            log(f"step {step} {100 * progress:.0f}% {(step - since) / (time.time() - said):.1f} step/s {numbers}")
            said, since = time.time(), step
        if save and "save_every" in settings and time.time() - saved > 60 * settings["save_every"]:
            if PartialState().is_main_process:
                save(update.average)
            saved = time.time()
    if schedule.start:
        log(f"the first {SETTLE} steps took {schedule.start - begun:.0f} s")
    log(f"done: {step} steps in {time.time() - begun:.0f} s")
    return update.average.eval(), step


class Update:
    """One training step on a batch: loss and gradients, their mean over processes, AdamW, the average.

    On a GPU the step is captured into two CUDA graphs after SETTLE ordinary steps (models of this size cost more to
    launch kernel by kernel than to run); the gradients of several processes are averaged between the two.
    """

    def __init__(self, module: torch.nn.Module, loss_of: Callable[..., Parts], settings: dict, log: Callable):
        device = next(module.parameters()).device
        self.loss_of, self.log, self.on_gpu = loss_of, log, device.type == "cuda"
        self.params = [p for p in module.parameters() if p.requires_grad]
        self.rate = torch.zeros((), device=device) if self.on_gpu else 0.0
        self.optimizer = torch.optim.AdamW(
            self.params,
            lr=self.rate,
            betas=(0.9, settings.get("beta2", 0.99)),
            weight_decay=settings.get("weight_decay", 0.01),
            fused=self.on_gpu,
            capturable=self.on_gpu,
        )
        self.average = copy.deepcopy(module).requires_grad_(False)
        self.pairs = [*zip(self.average.parameters(), module.parameters())]
        self.pairs += zip(self.average.buffers(), module.buffers())
        self.decay, self.count = settings.get("ema", 0.998), 0
        self.share = torch.zeros((), device=device)  # of the newest weights in the average
        self.wanted, self.graphs = self.on_gpu and settings.get("graph", True), ()
        self.side = torch.cuda.Stream() if self.wanted else None
        self.cast = half_precision(device)

    def __call__(self, batch: tuple[torch.Tensor, ...], rate: float) -> Parts:
        self._set(rate)
        if self.wanted and not self.graphs and self.count > SETTLE:
            self._capture(batch)
        if self.graphs:
            for place, tensor in zip(self.batch, batch):
                place.copy_(tensor)
            self.graphs[0].replay()
            average_gradients(self.params)
            self.graphs[1].replay()
            return self.parts
        # the ordinary steps before a capture run on the stream of the capture, as CUDA asks
        with on_stream(self.side) if self.wanted else nullcontext():
            parts = self._backward(batch)
            average_gradients(self.params)
            self._apply()
        return parts

    def _set(self, rate: float) -> None:
        self.count += 1
        self.share.fill_(1 - warmed(self.decay, self.count))
        if self.on_gpu:
            self.rate.fill_(rate)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate if self.on_gpu else rate

    def _backward(self, batch: tuple[torch.Tensor, ...]) -> Parts:
        self.optimizer.zero_grad(set_to_none=True)
        with self.cast:
            parts = self.loss_of(*batch)
        parts["loss"].backward()
        return {name: part.detach() for name, part in parts.items()}

    def _apply(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.params, 1.0)
        self.optimizer.step()
        move_average(self.pairs, self.share)

    def _capture(self, batch: tuple[torch.Tensor, ...]) -> None:
        self.batch = tuple(tensor.clone() for tensor in batch)
        first, second = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()  # thread_local: NCCL's watchdog may go on
        try:
            torch.cuda.synchronize()
            with torch.cuda.graph(first, stream=self.side, capture_error_mode="thread_local"):
                self.parts = self._backward(self.batch)
            with torch.cuda.graph(second, first.pool(), self.side, capture_error_mode="thread_local"):
                self._apply()
            self.graphs = (first, second)
        except RuntimeError as error:
            self.wanted, reason = False, str(error).splitlines()[0]
            try:
                torch.rand(1, device=self.share.device)
            except RuntimeError:  # a capture that was cut off leaves the random numbers unusable
                raise UserError(f"the step can't be made a CUDA graph ({reason}): run with graph=false") from error
            self.log(f"goes on without CUDA graphs: {reason}")


def half_precision(device: torch.device):
    """bf16 autocast on a GPU. Without its cache of casts, which must not outlive a captured step."""
    if device.type != "cuda":
        return nullcontext()
    return torch.autocast("cuda", torch.bfloat16, cache_enabled=False)


@contextmanager
def on_stream(stream: torch.cuda.Stream) -> Iterator[None]:
    """Work on a side stream, in order with what the current one did before and does after."""
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream().wait_stream(stream)


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


def warmed(decay: float, count: int) -> float:
    """The decay of the average at update `count`: short at first, so that no weight of the random start stays in it."""
    return min(decay, (1 + count) / (10 + count))


@torch.no_grad()
def move_average(pairs: list[tuple[torch.Tensor, torch.Tensor]], share: torch.Tensor) -> None:
    """Moves each average by `share` (a scalar tensor) of its way to the current value; whole numbers are copied."""
    floats = [pair for pair in pairs if pair[0].is_floating_point()]
    averages, currents = map(list, zip(*floats))
    ways = torch._foreach_sub(currents, averages)
    torch._foreach_mul_(ways, share)
    torch._foreach_add_(averages, ways)
    for average, current in pairs:
        if not average.is_floating_point():
            average.copy_(current)


def wait_for(ready: Callable[[], bool], what: str, settings: dict) -> None:
    """Waits for what another process is making.

    Raises:
        UserError: it did not come within settings["patience"] seconds.
    """
    until = time.time() + settings.get("patience", 300)
    while not ready():
        if time.time() > until:
            raise UserError(f"no {what} came in time: is the stage that makes them still running?")
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

    The configuration goes on saying float32, the precision to compute in, and nothing of where a model that training
    went on from was read.
    """
    half = copy.deepcopy(model).half()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".part-") as place:
        half.save_pretrained(place, safe_serialization=True)
        config = Path(place) / "config.json"
        lines = config.read_text().replace('"float16"', '"float32"').splitlines(keepends=True)
        config.write_text("".join(line for line in lines if not line.startswith('  "_name_or_path"')))
        for file in Path(place).iterdir():
            os.replace(file, folder / file.name)
            (folder / file.name).chmod(0o644)
