"""All that changes from step to step, as tensors and plain numbers, and back."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from cdiff.errors import UserError
from cdiff.window import Guard, Window

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LRScheduler

    from cdiff.checkpoint import Checkpoint


@dataclass
class State:
    """What a training changes. `named`: the trained parameters; the order of the data follows from the step."""

    named: dict[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    schedule: LRScheduler
    guard: Guard
    step: int = 0
    window: Window = field(default_factory=Window)
    last: dict[str, float] = field(default_factory=dict)  # what was logged last
    seconds: float = 0.0  # of training, without validation and checkpoints

    @property
    def trained(self) -> list[nn.Parameter]:
        return list(self.named.values())


def capture(accelerator: Accelerator, state: State, before: int | None = None) -> tuple[dict, dict[str, dict]]:
    """Facts (JSON values) and tensors by group, of now; all processes take part.

    before: a step whose update and all later ones were kept away (window.Guard): the state is that of the step before.

    Raises:
        NotFinite: the losses not yet logged tell of a state that is no good.
    """
    table = state.window.table(accelerator)
    held = len(state.window.steps)
    if before is not None:
        held = state.window.steps.index(before)
    rows = table[:held]
    seen = Window(state.window.steps[:held], state.window.rates[:held], state.window.values[:held])
    seen.batches, seen.skipped, seen.told = state.window.batches, state.window.skipped, state.window.told
    bad = seen.inspect(rows, state.guard)
    state.window.told = seen.told
    step = state.step if before is None else before - 1
    generators = gather_object([_generators()])
    facts = {
        "step": step,
        "window": {
            "steps": seen.steps,
            "rates": seen.rates,
            "names": seen.names(),
            "skipped": seen.skipped,
            "told": seen.told,
        },
        "skipped": seen.skipped + len(bad),
        "last": {name: value for name, value in state.last.items() if np.isfinite(value)},
        "seconds": state.seconds,
        "schedule": {"last_epoch": step},
        "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else None,
        "random": [{"python": one["python"], "numpy": one["numpy"]} for one in generators],
    }
    rest = {"window": rows.contiguous().clone()}
    for process, one in enumerate(generators):
        rest |= {f"random.{process}.{name}": tensor for name, tensor in one["torch"].items()}
    return facts, {"weights": _weights(state), "optimizer": _moments(state), "rest": rest}


def restore(accelerator: Accelerator, state: State, checkpoint: Checkpoint) -> None:
    """Put a checkpoint's state into a training that was set up afresh with the same configuration.

    Raises:
        UserError: the checkpoint is of another training: names the first tensor that does not fit.
    """
    facts, tensors = checkpoint.facts, checkpoint.tensors
    try:
        _put_weights(state, tensors["weights"], checkpoint)
        _put_moments(state, tensors["optimizer"])
        _put_window(state, facts, tensors["rest"]["window"], accelerator.device)
        _put_generators(facts["random"], tensors["rest"], accelerator.process_index)
        state.last, state.seconds = dict(facts["last"]), float(facts["seconds"])
        if accelerator.scaler is not None and facts["scaler"]:
            accelerator.scaler.load_state_dict(facts["scaler"])
        _put_step(state, facts["step"])
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{checkpoint.path} does not fit this training ({type(error).__name__}: {reason}).") from error


def _weights(state: State) -> dict[str, Tensor]:
    return {name: parameter.detach().cpu().contiguous().clone() for name, parameter in state.named.items()}


def _moments(state: State) -> dict[str, Tensor]:
    """The optimiser's tensors as "PARAMETER::exp_avg"; AdamW keeps nothing else."""
    found = {}
    for name, parameter in state.named.items():
        for key, value in _inner(state).state.get(parameter, {}).items():
            found[f"{name}::{key}"] = value.detach().cpu().contiguous().clone()
    return found


def _inner(state: State) -> torch.optim.Optimizer:
    """Without accelerate's wrapper."""
    return getattr(state.optimizer, "optimizer", state.optimizer)


@torch.no_grad()
def _put_weights(state: State, weights: dict[str, Tensor], checkpoint: Checkpoint) -> None:
    for name, parameter in state.named.items():
        saved = weights.get(name)
        if saved is None or saved.shape != parameter.shape or saved.dtype != parameter.dtype:
            what = "lacks" if saved is None else "has another shape or precision of"
            raise UserError(f"{checkpoint.path} {what} {name}: it is of another training.")
    if extra := sorted(set(weights) - set(state.named)):
        raise UserError(f"{checkpoint.path} holds {extra[0]}, which does not train here: it is of another training.")
    for name, parameter in state.named.items():
        parameter.copy_(weights[name])


def _put_moments(state: State, moments: dict[str, Tensor]) -> None:
    optimizer = _inner(state)
    for name, parameter in state.named.items():
        own = {key.rpartition("::")[2]: value for key, value in moments.items() if key.rpartition("::")[0] == name}
        for key, value in own.items():
            if key != "step" and value.shape != parameter.shape:
                raise ValueError(f"{name}::{key} has another shape")
            # fused AdamW keeps its count on the device, in fp32, and its moments laid out as the parameter is
            own[key] = value.to(parameter.device) if key == "step" else torch.empty_like(parameter.data).copy_(value)
        if own:
            optimizer.state[parameter] = own


def _put_window(state: State, facts: dict[str, Any], rows: Tensor, device: torch.device) -> None:
    noted = facts["window"]
    state.window.steps = [int(step) for step in noted["steps"]]
    state.window.rates = [float(rate) for rate in noted["rates"]]
    state.window.values = [dict(zip(noted["names"], row.to(device), strict=True)) for row in rows]
    state.window.skipped, state.window.told = int(noted["skipped"]), int(noted["told"])
    if len(state.window.steps) != len(state.window.values):
        raise ValueError("its losses and their steps are not as many")
    state.guard.skipped = torch.full_like(state.guard.skipped, float(facts["skipped"]))


def _put_step(state: State, step: int) -> None:
    """The schedule is a function of the step, of this run's own settings: a learning rate changed on purpose holds."""
    state.step = step
    schedule, optimizer = state.schedule, _inner(state)
    schedule.last_epoch = step
    schedule._step_count = step + 1
    rates = [base * curve(step) for base, curve in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    schedule._last_lr = rates


def _generators() -> dict[str, Any]:
    """The states of every random generator of this process."""
    version, numbers, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    found = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        found |= {f"cuda.{place}": device for place, device in enumerate(torch.cuda.get_rng_state_all())}
    return {
        "python": [version, list(numbers), gauss],
        "numpy": [kind, keys.tolist(), int(position), int(has_gauss), float(cached)],
        "torch": found,
    }


def _put_generators(noted: list[dict], tensors: dict[str, Tensor], process: int) -> None:
    """A process that was not there when the checkpoint was written, or a GPU, keeps its own states."""
    if process >= len(noted):
        return
    version, numbers, gauss = noted[process]["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, *rest = noted[process]["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(tensors[f"random.{process}.cpu"])
    for device in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        if (state := tensors.get(f"random.{process}.cuda.{device}")) is not None:
            torch.cuda.set_rng_state(state, device)
