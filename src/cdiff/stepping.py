"""One optimiser step of the training: as it comes, or as CUDA graphs that are captured once and replayed.

Eager is accelerate's way, bit for bit the same in every run on a CPU, and the one there is for fp16 (its gradient
scaling waits for the GPU). Static keeps every tensor of the step at one place: the batch is copied in, the gradients
lie in one buffer, the losses are copied out, so the whole step can be two graphs, and a step costs the time of its
kernels and not of launching some four thousand of them. Between the two graphs several processes add up their
gradients.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from cdiff.errors import UserError
from cdiff.window import GRAD_NORM

if TYPE_CHECKING:
    from accelerate import Accelerator

    from cdiff.batches import Batch, Batches
    from cdiff.schema import Config
    from cdiff.snapshot import State

log = logging.getLogger("cdiff")

SETTLE = 3  # steps before a capture: libraries choose their kernels and allocate in them
# Steps from which an execution is taken by itself. A capture costs about as much as a hundred steps save at most; what
# compiling costs against what it saves is not measured yet, so it is never taken unasked.
GRAPH_FROM = 50
COMPILE_FROM: int | None = None

Record = Callable[[Callable[[], None]], Callable[[], None]]  # a function on fixed tensors -> what does the same again


class Loss(Protocol):
    """The module that trains (engine.Personalizer): a batch to its loss parts."""

    predict: Callable | None  # stands in for the UNet's own call

    def __call__(self, batch: Batch) -> dict[str, Tensor]: ...


def choose(wanted: str, steps: int, device: torch.device, scaled: bool) -> str:
    """What `train.execution` means here: eager | graph | compile. scaled: with gradient scaling (fp16 on a GPU)."""
    if device.type != "cuda":
        if wanted in ("graph", "compile"):
            log.warning("train.execution=%s needs a CUDA GPU, and this run is on the CPU: it goes on eager.", wanted)
        return "eager"
    if scaled:
        if wanted in ("graph", "compile"):
            log.warning("train.execution=%s does not work with precision=fp16: it goes on eager.", wanted)
        return "eager"
    if wanted != "auto":
        return wanted
    if COMPILE_FROM is not None and steps >= COMPILE_FROM:
        return "compile"
    return "graph" if steps >= GRAPH_FROM else "eager"


class EagerStep:
    """One optimiser step: its micro-batches, clipping, the update; by accelerate."""

    def __init__(
        self, conf: Config, accelerator: Accelerator, module: nn.Module, state: State, batches: Batches
    ) -> None:
        self.conf, self.accelerator, self.module = conf, accelerator, module
        self.state, self.batches = state, batches

    def __call__(self) -> dict[str, Tensor]:
        """Losses and gradient norm, on the device."""
        accelerator, state = self.accelerator, self.state
        count = self.conf.train.gradient_accumulation_steps
        micro_losses = []
        for number in numbers(state.step, count, accelerator):
            with accelerator.accumulate(self.module):
                parts = self.module(self.batches[number])
                accelerator.backward(parts["loss/total"])
                micro_losses.append({name: value.detach() for name, value in parts.items()})
                if accelerator.sync_gradients:
                    limit = self.conf.train.max_grad_norm or math.inf
                    norm = accelerator.clip_grad_norm_(state.trained, limit).detach()
                    state.guard.judge(sum(losses["loss/total"] for losses in micro_losses), norm)
                state.optimizer.step()
                state.optimizer.zero_grad()
        state.schedule.step()
        state.step += 1
        means = {name: sum(losses[name] for losses in micro_losses) / count for name in micro_losses[0]}
        return means | {GRAD_NORM: norm}


def numbers(step: int, count: int, accelerator: Accelerator) -> list[int]:
    """The micro-batches of this process in the step after `step`: processes share out what one would see."""
    return [(step * count + micro) * accelerator.num_processes + accelerator.process_index for micro in range(count)]


class StaticStep:
    """The same step on tensors that stay where they are. `record` makes it graphs; without it everything runs as it
    comes, on a CPU too."""

    def __init__(
        self,
        conf: Config,
        accelerator: Accelerator,
        module: Loss,
        state: State,
        batches: Batches,
        *,
        autocast: AbstractContextManager | None = None,
        record: Record | None = None,
        stream: torch.cuda.Stream | None = None,
    ) -> None:
        self.conf, self.accelerator, self.module = conf, accelerator, module
        self.state, self.batches = state, batches
        self.autocast, self.record, self.stream = autocast or nullcontext(), record, stream
        self.optimizer = getattr(state.optimizer, "optimizer", state.optimizer)  # accelerate's wrapper counts its steps
        self.count = conf.train.gradient_accumulation_steps
        self.flat = gradient_buffer(state.trained)
        self.rates = [torch.full((), group["lr"], device=self.flat.device) for group in self.optimizer.param_groups]
        self.told = [group["lr"] for group in self.optimizer.param_groups]
        self.batch: Batch | None = None
        self.names: list[str] = []
        self.sums = self.values = torch.zeros(0, device=self.flat.device)
        self.backward, self.apply = self._backward, self._apply
        self.done = 0

    def __call__(self) -> dict[str, Tensor]:
        """Losses and gradient norm, on the device."""
        state = self.state
        self._tell_rates()
        if self.record is not None and self.done == SETTLE:
            self._capture()
        with self._side_by_side():
            for number in numbers(state.step, self.count, self.accelerator):
                self._load(self.batches[number])
                self.backward()
            self._average()
            self.apply()
            row = self.values.clone()
        self.done += 1
        state.schedule.step()
        state.step += 1
        return dict(zip(self.names, row.unbind(), strict=True))

    @property
    def captured(self) -> bool:
        return self.backward != self._backward

    def _side_by_side(self) -> AbstractContextManager:
        """Steps before a capture run on its stream, as CUDA asks."""
        return on_stream(self.stream) if self.stream is not None and not self.captured else nullcontext()

    def _tell_rates(self) -> None:
        for place, group in enumerate(self.optimizer.param_groups):
            if group["lr"] != self.told[place]:
                self.rates[place].fill_(group["lr"])
                self.told[place] = group["lr"]

    def _load(self, batch: Batch) -> None:
        if self.batch is None:
            time_ids = None if batch.time_ids is None else batch.time_ids.clone()
            self.batch = replace(
                batch,
                noisy=batch.noisy.clone(),
                timesteps=batch.timesteps.clone(),
                target=batch.target.clone(),
                mask=batch.mask.clone(),
                ids=tuple(ids.clone() for ids in batch.ids),
                time_ids=time_ids,
            )
            return
        for place, tensor in zip(self.batch.tensors(), batch.tensors(), strict=True):
            place.copy_(tensor)

    def _backward(self) -> None:
        """Adds a micro-batch's gradients and losses to what is there."""
        with self.autocast:
            parts = self.module(self.batch)
        (parts["loss/total"] / self.count).backward()
        losses = torch.stack([part.detach().float() for part in parts.values()])
        if not self.names:
            self.names = [*parts, GRAD_NORM]
            self.sums = torch.zeros_like(losses)
        self.sums += losses

    @torch.no_grad()
    def _average(self) -> None:
        """Over processes: the gradients, and the loss so that all judge alike."""
        self.flat[-1] = self.sums[0]
        if self.accelerator.num_processes > 1:
            torch.distributed.all_reduce(self.flat)
            self.flat /= self.accelerator.num_processes

    @torch.no_grad()
    def _apply(self) -> None:
        """Clip, judge, update; gradients and losses begin again at 0."""
        gradients = self.flat[:-1]
        norm = torch.linalg.vector_norm(gradients)
        if self.conf.train.max_grad_norm:
            gradients *= (self.conf.train.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)  # as clip_grad_norm_
        self.state.guard.decide(~torch.isfinite(self.flat[-1] + norm))
        with rates_on_device(self.optimizer, self.rates):
            self.optimizer.step()
        values = torch.cat([self.sums / self.count, norm.reshape(1)])
        if self.values.shape != values.shape:
            self.values = torch.zeros_like(values)
        self.values.copy_(values)
        self.flat.zero_()
        self.sums.zero_()

    def _capture(self) -> None:
        """From now on the two halves are replays; where that fails, one sentence, and on as before."""
        try:
            backward = self.record(self._backward)
            self.backward, self.apply = backward, self.record(self._apply)
        except RuntimeError as error:
            self.backward, self.apply, self.record = self._backward, self._apply, None
            reason = str(error).splitlines()[0]
            try:
                torch.rand(1, device=self.flat.device)
            except RuntimeError:  # a capture that was cut off can leave the random numbers unusable
                raise UserError(
                    f"The step can't be made a CUDA graph ({reason}): run it with train.execution=eager."
                ) from error
            log.warning("The step can't be made a CUDA graph (%s): it goes on without, only slower.", reason)


def gradient_buffer(parameters: list[nn.Parameter]) -> Tensor:
    """One fp32 tensor that holds all gradients, one after the other, and a number behind them; every parameter's `grad`
    becomes its part. Laid out as the parameter is, which the fused optimiser asks for."""
    device = parameters[0].device
    flat = torch.zeros(sum(parameter.numel() for parameter in parameters) + 1, device=device)
    start = 0
    for parameter in parameters:
        assert parameter.dtype == torch.float32, "what trains is kept in fp32"
        part = flat[start : start + parameter.numel()]
        parameter.grad = part.as_strided(parameter.shape, parameter.stride(), part.storage_offset())
        start += parameter.numel()
    return flat


@contextmanager
def rates_on_device(optimizer: torch.optim.Optimizer, rates: list[Tensor]) -> Iterator[None]:
    """In here the optimiser reads its learning rates from the device, so that a graph follows their schedule."""
    groups = optimizer.param_groups
    before = [(group["lr"], group["capturable"]) for group in groups]
    for group, rate in zip(groups, rates, strict=True):
        group["lr"], group["capturable"] = rate, rate.device.type == "cuda"
    try:
        yield
    finally:
        for group, (rate, capturable) in zip(groups, before, strict=True):
            group["lr"], group["capturable"] = rate, capturable


def graph_recorder(stream: torch.cuda.Stream) -> Record:
    """Captures functions into CUDA graphs that share one pool of memory."""
    pool: list = []

    def record(function: Callable[[], None]) -> Callable[[], None]:
        if not pool:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()  # what the steps before had for themselves is the graph's now
        graph = torch.cuda.CUDAGraph()
        shared = {"pool": pool[0]} if pool else {}
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local", **shared):
            function()
        pool.append(graph.pool())
        return graph.replay

    return record


@contextmanager
def on_stream(stream: torch.cuda.Stream) -> Iterator[None]:
    """Work on a side stream, in order with what the current one did before and does after."""
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream().wait_stream(stream)


def compile_unet(module: Loss, unet: nn.Module) -> None:
    """Let the module call a compiled UNet. What can't be compiled goes on uncompiled, with one sentence."""
    compiled = torch.compile(unet.forward, dynamic=False)

    def predict(*inputs: object, **named: object) -> object:
        try:
            return compiled(*inputs, **named)
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            log.warning("The UNet can't be compiled (%s): it goes on uncompiled.", reason)
            module.predict = None
            return unet(*inputs, **named)

    module.predict = predict
