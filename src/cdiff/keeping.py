"""When a training's state goes to disk: every so many steps, when a signal asks for it, and before it breaks."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator

from cdiff.checkpoint import Checkpoint, Store
from cdiff.schema import CheckpointConfig
from cdiff.signals import Interrupted, StopRequest
from cdiff.snapshot import State, capture, restore
from cdiff.window import NotFinite

log = logging.getLogger("cdiff")

SHARE = 0.02  # of the training time that checkpoints may take where checkpoints.every is null
APART = 10.0  # seconds from one to the next there, at least, but for the one at the end
FIRST_GUESS = (0.05, 50e6)  # seconds and bytes a second: what a checkpoint costs before one was written
BYTES_A_WEIGHT = 12  # fp32: the weight and AdamW's two moments


class Keeping:
    """Keeps nothing: the training of a test, or of a caller that wants none."""

    @contextmanager
    def watching(self) -> Iterator[None]:
        """In here a first signal waits for `after_step`."""
        yield

    def restore(self, accelerator: Accelerator, state: State) -> None:
        """Start where a checkpoint ended, if there is one."""

    def after_step(self, accelerator: Accelerator, state: State, last: bool) -> None:
        """Save if it is time; after a signal save and stop.

        Raises:
            Interrupted: the training was asked to stop, and what it needs to go on is on disk.
        """

    def rescue(self, accelerator: Accelerator, state: State, fault: NotFinite) -> str:
        """Save the state before the step that broke; returns a half-sentence on what is kept."""
        return "nothing was saved"


@dataclass
class Keeper(Keeping):
    """Keeps checkpoints in a run's folder."""

    conf: CheckpointConfig
    store: Store
    facts: Callable[[], dict[str, Any]]  # what a checkpoint notes beside the state: size of the events, tracker
    stop: StopRequest
    start: Checkpoint | None = None
    saved: int = -1  # the step that was saved last
    cost: float | None = None  # seconds that the last checkpoint took
    spent: float = 0.0  # on all of them
    seconds_before: float = field(default=0.0, repr=False)  # of training, when this process began
    saved_at: float = field(default=-APART, repr=False)  # seconds of training, at the last checkpoint

    @contextmanager
    def watching(self) -> Iterator[None]:
        with self.stop.deferred():
            yield

    def restore(self, accelerator: Accelerator, state: State) -> None:
        if self.start is not None:
            restore(accelerator, state, self.start)
            self.saved, self.seconds_before = state.step, state.seconds

    def after_step(self, accelerator: Accelerator, state: State, last: bool) -> None:
        asked = self._asked(accelerator, state)
        if (asked or self._due(accelerator, state, last)) and self.saved != state.step:
            self._save(accelerator, state)
        if asked:
            raise Interrupted(f"Stopped by {asked} at step {state.step} and saved")

    def rescue(self, accelerator: Accelerator, state: State, fault: NotFinite) -> str:
        if not fault.intact:
            return f"the checkpoint of step {self.saved} is kept" if self.saved >= 0 else "nothing was saved"
        if fault.step - 1 not in (0, self.saved):
            self._save(accelerator, state, before=fault.step)
        return (
            f"the state before it is kept (step {fault.step - 1})" if fault.step > 1 else "no step was done before it"
        )

    def _asked(self, accelerator: Accelerator, state: State) -> str | None:
        """The signal that asks to stop. Several processes must agree, which costs a wait: they do where they log."""
        if accelerator.num_processes == 1:
            return self.stop.asked
        if state.window.steps:
            return None
        asked = torch.tensor(float(self.stop.asked is not None), device=accelerator.device)
        return (self.stop.asked or "a signal") if accelerator.reduce(asked, "sum").item() else None

    def _due(self, accelerator: Accelerator, state: State, last: bool) -> bool:
        if self.conf.every is not None:
            return self.conf.every > 0 and (last or state.step % self.conf.every == 0)
        if accelerator.num_processes == 1:
            return self._fits(state, last)
        if state.window.steps:
            return False
        fits = torch.tensor(float(self._fits(state, last)), device=accelerator.device)
        return bool(accelerator.reduce(fits, "mean").item() > 0.5)

    def _fits(self, state: State, last: bool) -> bool:
        """Whether one more checkpoint leaves the cost of all below SHARE of this process's training time."""
        if state.seconds < self.saved_at + APART and not last:
            return False
        cost = self.cost
        if cost is None:
            fixed, speed = FIRST_GUESS
            cost = fixed + BYTES_A_WEIGHT * sum(parameter.numel() for parameter in state.trained) / speed
        return self.spent + cost <= SHARE * (state.seconds - self.seconds_before)

    def _save(self, accelerator: Accelerator, state: State, before: int | None = None) -> None:
        started = time.perf_counter()
        facts, tensors = capture(accelerator, state, before)
        if accelerator.is_main_process:
            path = self.store.save(facts["step"], {**facts, **self.facts()}, tensors)
            log.info("checkpoint %s (%.2f s)", path, time.perf_counter() - started)
        accelerator.wait_for_everyone()
        self.saved, self.saved_at = facts["step"], state.seconds
        self.cost = time.perf_counter() - started
        self.spent += self.cost
