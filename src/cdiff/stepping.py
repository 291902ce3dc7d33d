"""One optimiser step of the training: as it comes, or as CUDA graphs that are captured once and replayed.

Eager is accelerate's way, bit for bit the same in every run on a CPU, and the one there is for fp16 (its gradient
scaling waits for the GPU). Static keeps every tensor of the step at one place: the batch is copied in, the gradients
lie in one buffer, the losses are copied out. So the whole step can be two graphs, and costs the time of its kernels
instead of the time of launching them one by one. Between the two graphs several processes add up their gradients.
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
from cdiff.execution import SETTLE, Record, first_line, on_stream
from cdiff.window import GRAD_NORM

if TYPE_CHECKING:
    from accelerate import Accelerator

    from cdiff.batches import Batch, Batches
    from cdiff.schema import Config
    from cdiff.snapshot import State

log = logging.getLogger("cdiff")


class Loss(Protocol):
    """The module that trains (engine.Personalizer): a batch to its loss parts."""

    predict: Callable | None  # stands in for the UNet's own call

    def __call__(self, batch: Batch) -> dict[str, Tensor]: ...


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
            reason = first_line(error)
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
