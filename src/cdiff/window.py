"""The losses since the last log, and what happens when one of them is not a finite number.

A loss is read from the device at logs and checkpoints only, so a bad one is found out late. Until then nothing may be
lost: the step that gave it, and every step behind it that it forbids, leaves weights and optimiser as they were. The
optimiser's own `found_inf` does that on the device, with no wait: torch made it for gradient scaling.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from torch import Tensor

from cdiff.errors import UserError

log = logging.getLogger("cdiff")

PARTS = ("loss/total", "loss/recon", "loss/prior", "loss/spl")
GRAD_NORM = "grad_norm"


class NotFinite(UserError):
    """A loss or gradient that is no finite number. `step`, from 1; weights are those before it where `intact`."""

    def __init__(self, step: int, sentence: str, intact: bool) -> None:
        super().__init__(sentence)
        self.step, self.intact = step, intact


class Guard:
    """Keeps updates away that are not finite, and all updates once more than `allowed` steps had one.

    With gradient scaling (fp16 on a GPU) the scaler leaves such updates out by itself, and overflows of the gradient
    are its daily work: then only losses count, and later steps go on until the bad one is found out.
    """

    def __init__(self, accelerator: Accelerator, optimizer: torch.optim.Optimizer, allowed: int) -> None:
        self.accelerator, self.allowed = accelerator, allowed
        self.scaled = accelerator.scaler is not None
        self.optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper hides the attribute
        self.skipped = torch.zeros((), device=accelerator.device)  # steps so far that were not finite

    def judge(self, loss: Tensor, norm: Tensor) -> None:
        """Before the update: whether it may happen. loss, norm: scalars of this step, over all micro-batches."""
        seen = loss if self.scaled else loss + norm
        bad = (~torch.isfinite(seen)).to(self.skipped.dtype)
        # no process may take a step that another leaves out
        self.decide(self.accelerator.reduce(bad, "sum").clamp(max=1))

    def decide(self, bad: Tensor) -> None:
        """As `judge`, of what all processes agree on: a scalar that is 0 or false for a good step."""
        bad = bad.to(self.skipped.dtype)
        self.skipped += bad  # in place: a graph of the step finds it where it was
        if not self.scaled:
            self.optimizer.found_inf = torch.maximum(bad, (self.skipped > self.allowed).to(bad.dtype))


@dataclass
class Window:
    """Steps since the last log. Values stay on the device: reading one would make every step wait for the GPU."""

    steps: list[int] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    values: list[dict[str, Tensor]] = field(default_factory=list)
    batches: Callable[[int], str] = "step {}".format  # names the batch of a step
    skipped: int = 0  # bad steps of earlier windows
    told: int = 0  # the last bad step that was warned of

    def add(self, step: int, rate: float, values: dict[str, Tensor]) -> None:
        self.steps.append(step)
        self.rates.append(rate)
        self.values.append(values)

    def names(self) -> list[str]:
        return list(self.values[0]) if self.values else []

    def table(self, accelerator: Accelerator) -> Tensor:
        """Every value, (steps, names) fp32 on the CPU, averaged over processes; the one wait for the device."""
        if not self.values:
            return torch.zeros(0, 0)
        table = torch.stack([torch.stack([row[name].float() for name in self.names()]) for row in self.values])
        return accelerator.reduce(table, "mean").cpu()

    def inspect(self, table: Tensor, guard: Guard) -> list[int]:
        """The rows of the steps that were skipped, each told once in the log.

        Raises:
            NotFinite: more steps than the guard allows gave values that are not finite; names the first too many.
        """
        bad = []
        for place, (step, rate) in enumerate(zip(self.steps, self.rates, strict=True)):
            row = dict(zip(self.names(), table[place].tolist(), strict=True))
            names = PARTS if guard.scaled else (*PARTS, GRAD_NORM)
            broken = [name for name in names if not math.isfinite(row.get(name, 0.0))]
            if not broken:
                continue
            bad.append(place)
            losses = [name for name in broken if name != GRAD_NORM]
            part = losses[-1] if losses else GRAD_NORM  # the total comes first: name the part that broke it
            what = f"step {step}: {part} is {row[part]} at learning rate {rate:.3g} ({self.batches(step)})"
            if self.skipped + len(bad) > guard.allowed:
                raise NotFinite(step, f"Training broke at {what}", intact=not guard.scaled)
            if step > self.told:
                self.told = step
                log.warning("Skipped %s; %d of %d allowed.", what, self.skipped + len(bad), guard.allowed)
        return bad

    def close(self, accelerator: Accelerator, guard: Guard) -> dict[str, float]:
        """Means by name over the window and over processes, skipped steps left out; empties the window.

        Raises:
            NotFinite: see `inspect`.
        """
        table, names = self.table(accelerator), self.names()
        bad = self.inspect(table, guard)
        self.skipped += len(bad)
        good = table[[place for place in range(len(table)) if place not in bad]] if bad else table
        self.steps, self.rates, self.values = [], [], []
        return dict(zip(names, good.mean(dim=0).tolist(), strict=True)) if len(good) else {}
