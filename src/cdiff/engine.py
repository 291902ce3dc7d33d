"""The training loop: accelerate around one module that turns a batch into its loss parts."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from diffusers.optimization import get_scheduler
from torch import Tensor, nn

from cdiff.batches import Batch, Batches
from cdiff.concepts import Concept
from cdiff.data.latents import TrainingViews
from cdiff.errors import UserError
from cdiff.losses import phrases, prior_loss, reconstruction_loss, semantic_preservation_loss
from cdiff.methods import Trainables
from cdiff.models import Base, resolve_device
from cdiff.schema import Config
from cdiff.tokens import PromptEncoder, feature_positions, read_features

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LRScheduler

    from cdiff.tokens import Encoded

log = logging.getLogger("cdiff")

PARTS = ("loss/total", "loss/recon", "loss/prior", "loss/spl")


class Tracker(Protocol):
    """Where numbers go (cdiff.tracking)."""

    def log(self, values: dict[str, float], step: int) -> None: ...


@dataclass
class TrainResult:
    """What training made. Weights are fp32, on the CPU, and the engine's copy alone."""

    steps: int
    losses: dict[str, float]  # means over the last logged steps, by the names of PARTS
    seconds: float  # of the loop, validation images left out
    learning_rate: float  # after scaling
    unet_weights: dict[str, Tensor]
    token_rows: Tensor  # (tokens, D)
    text_encoder_weights: dict[str, Tensor] = field(default_factory=dict)  # where it trains (dreambooth)


@dataclass
class State:
    """All that changes from step to step: a checkpoint is this."""

    step: int
    module: Personalizer
    optimizer: torch.optim.Optimizer
    schedule: LRScheduler
    trained: list[nn.Parameter]


class Personalizer(nn.Module):
    """What is trained and how it is judged, as one module: accelerate wraps it, so gradients average over processes."""

    def __init__(self, base: Base, concepts: list[Concept], rows: nn.Parameter, conf: Config) -> None:
        super().__init__()
        self.unet = base.unet
        self.text_encoder = base.text_encoder  # most methods leave it as it is
        self.rows = rows
        self.encoder = PromptEncoder(base, rows)
        self.loss = conf.loss
        pairs = [phrases(concept.token, concept.class_word) for concept in concepts]
        self.concept_phrases = [concept for concept, _ in pairs]
        self.class_phrases = [of_class for _, of_class in pairs]
        self.positions: Tensor | None = None  # where SPL reads its features: the same at every step
        # Of each text encoder of the base: one that trains leaves them where they were.
        self.class_features: list[Tensor] | None = None

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Loss parts by name, unweighted, and their weighted total; all scalars in fp32."""
        conf = self.loss
        encoded = self.encoder.encode(batch.prompts, self.concept_phrases if conf.spl_weight else [])
        conditions = sdxl_conditions(encoded[0], batch.time_ids)
        prediction = self.unet(
            batch.noisy, batch.timesteps, encoded[0].hidden, added_cond_kwargs=conditions, return_dict=False
        )[0]
        count = len(batch.mask)
        parts = {"loss/recon": reconstruction_loss(prediction[:count], batch.target[:count], batch.mask)}
        total = parts["loss/recon"]
        if len(batch.noisy) > count:
            parts["loss/prior"] = prior_loss(prediction[count:], batch.target[count:])
            total = total + conf.prior_weight * parts["loss/prior"]
        if conf.spl_weight:
            parts["loss/spl"] = self._spl(encoded[1].states)
            total = total + conf.spl_weight * parts["loss/spl"]
        return {"loss/total": total, **parts}

    @torch.no_grad()
    def spl(self) -> Tensor:
        """SPL as it stands, for logging where it is no part of the loss."""
        return self._spl(self.encoder.encode(self.concept_phrases)[0].states)

    def _spl(self, states: Sequence[Tensor]) -> Tensor:
        """states: of the concept phrases, (concepts, L, D_i) of each text encoder; the mean over encoders."""
        if self.class_features is None:
            ids = self.encoder.tokenize(self.concept_phrases)
            self.positions = feature_positions(ids, self.encoder.eos_id, self.loss.spl_feature)
            constant = self.encoder.constant(self.class_phrases)
            self.class_features = self.encoder.features(constant, self.loss.spl_feature)
        pairs = zip(read_features(states, self.positions), self.class_features, strict=True)
        losses = [semantic_preservation_loss(features, of_class) for features, of_class in pairs]
        return sum(losses) / len(losses)


def sdxl_conditions(encoded: Encoded, time_ids: Tensor | None) -> dict[str, Tensor] | None:
    """What SDXL's UNet is told beside the text: its pooled feature, and size and crop of the picture (B, 6)."""
    return None if encoded.pooled is None else {"text_embeds": encoded.pooled, "time_ids": time_ids}


@dataclass
class Window:
    """Losses since the last log, kept on the device: reading one would make every step wait for the GPU."""

    steps: list[int] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    values: list[dict[str, Tensor]] = field(default_factory=list)

    def add(self, step: int, rate: float, values: dict[str, Tensor]) -> None:
        self.steps.append(step)
        self.rates.append(rate)
        self.values.append(values)

    def close(self, accelerator: Accelerator) -> dict[str, float]:
        """Means by name over the window and over processes; empties the window.

        Raises:
            UserError: a loss was not a finite number; names the first such step, the part and the learning rate.
        """
        names = list(self.values[0])
        table = torch.stack([torch.stack([values[name] for name in names]) for values in self.values])
        table = accelerator.reduce(table, "mean").cpu()  # (steps, names); the one wait for the device
        for step, rate, row in zip(self.steps, self.rates, table.tolist(), strict=True):
            losses = dict(zip(names, row, strict=True))
            broken = [name for name in PARTS if not math.isfinite(losses.get(name, 0.0))]
            if broken:
                part = broken[-1]  # the total comes first: name the part that broke it
                raise UserError(
                    f"Training broke at step {step}: {part} is {losses[part]} at learning rate {rate:.3g}; "
                    "nothing was saved. Lower optimizer.learning_rate, or use precision=fp32."
                )
        self.steps, self.rates, self.values = [], [], []
        return dict(zip(names, table.mean(dim=0).tolist(), strict=True))


def train(
    conf: Config,
    base: Base,
    concepts: list[Concept],
    rows: nn.Parameter,
    trainables: Trainables,
    views: TrainingViews,
    tracker: Tracker,
    *,
    prior_views: TrainingViews | None = None,
    progress: Callable[[dict[str, float]], None] | None = None,
    on_validation: Callable[[int], None] | None = None,
) -> TrainResult:
    """Train `rows` and `trainables` in place for `conf.train.steps` optimiser steps.

    Args:
        rows: embeddings of the new tokens (tokens.add_tokens).
        trainables: the UNet's trained weights (methods.prepare), fp32.
        prior_views: views of class images; given, each batch holds as many of them again.
        progress: told after each step; the losses last logged.
        on_validation: told the step, every `conf.validation.every` steps, on the main process.

    Raises:
        UserError: nothing to train, or a loss that is not finite.
    """
    with accelerated(conf, base) as accelerator:
        module = Personalizer(base, concepts, rows, conf)
        rows.requires_grad_(trainables.train_token)
        scale = learning_rate_scale(conf, accelerator.num_processes, prior_views is not None)
        rate = conf.optimizer.learning_rate * scale
        token_rate = (conf.optimizer.token_learning_rate or conf.optimizer.learning_rate) * scale
        optimizer = make_optimizer(conf, rate, token_rate, trainables, rows)
        schedule = get_scheduler(
            conf.lr_schedule.name,
            optimizer,
            num_warmup_steps=conf.lr_schedule.warmup_steps,
            num_training_steps=conf.train.steps,
        )
        log.info("learning rate %.3g, of tokens %.3g: as configured times %d", rate, token_rate, scale)
        prepared, optimizer = accelerator.prepare(module, optimizer)
        if trainables.text:
            with accelerator.autocast():
                module.spl()  # remembers the class's features, before the encoder that they come from moves
        batches = Batches(base.scheduler, views, prior_views, conf.train.batch_size, conf.seed, accelerator.device)
        trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        state = State(0, module, optimizer, schedule, trained)
        losses, seconds = _loop(conf, accelerator, prepared, state, batches, tracker, progress, on_validation)
        return TrainResult(
            steps=state.step,
            losses=losses,
            seconds=seconds,
            learning_rate=rate,
            unet_weights=trainables.unet_state(),
            token_rows=rows.detach().float().cpu().clone(),
            text_encoder_weights=trainables.text_encoder_state(),
        )


def _loop(
    conf: Config,
    accelerator: Accelerator,
    module: nn.Module,
    state: State,
    batches: Batches,
    tracker: Tracker,
    progress: Callable[[dict[str, float]], None] | None,
    on_validation: Callable[[int], None] | None,
) -> tuple[dict[str, float], float]:
    """Run the steps that are left; returns the losses last logged and the seconds without validation."""
    samples = conf.train.batch_size * conf.train.gradient_accumulation_steps * accelerator.num_processes
    last, window, training_seconds = {}, Window(), 0.0
    started = time.perf_counter()
    while state.step < conf.train.steps:
        rate = state.schedule.get_last_lr()[0]
        values = _step(conf, accelerator, module, state, batches)
        window.add(state.step, rate, values)
        if state.step == 1 or state.step % conf.train.log_every == 0 or state.step == conf.train.steps:
            count = len(window.values)
            last = window.close(accelerator)
            seconds = time.perf_counter() - started
            training_seconds += seconds
            _log(accelerator, state, last, rate, samples * count / seconds, tracker)
            started = time.perf_counter()
        if progress is not None:
            progress(last)
        if on_validation is not None and conf.validation.every and state.step % conf.validation.every == 0:
            before = time.perf_counter()
            if accelerator.is_main_process:
                on_validation(state.step)
            accelerator.wait_for_everyone()
            started += time.perf_counter() - before
    return {name: value for name, value in last.items() if name in PARTS}, training_seconds


def _step(
    conf: Config, accelerator: Accelerator, module: nn.Module, state: State, batches: Batches
) -> dict[str, Tensor]:
    """One optimiser step: its micro-batches, clipping, the update. Returns losses and gradient norm on the device."""
    count = conf.train.gradient_accumulation_steps
    micro_losses = []
    for micro in range(count):
        number = (state.step * count + micro) * accelerator.num_processes + accelerator.process_index
        with accelerator.accumulate(module):
            parts = module(batches[number])
            accelerator.backward(parts["loss/total"])
            if accelerator.sync_gradients:
                limit = conf.train.max_grad_norm or math.inf
                norm = accelerator.clip_grad_norm_(state.trained, limit)
            state.optimizer.step()
            state.optimizer.zero_grad()
        micro_losses.append({name: value.detach() for name, value in parts.items()})
    state.schedule.step()
    state.step += 1
    means = {name: sum(losses[name] for losses in micro_losses) / count for name in micro_losses[0]}
    return means | {"grad_norm": norm.detach()}


def _log(
    accelerator: Accelerator, state: State, means: dict[str, float], rate: float, speed: float, tracker: Tracker
) -> None:
    if "loss/spl" not in means:  # no part of the loss, but how far the token drifts is what one wants to see
        with accelerator.autocast():
            means["loss/spl"] = state.module.spl().item()
    if accelerator.is_main_process:
        norm = state.module.rows.detach().float().norm(dim=-1).mean().item()
        tracker.log(means | {"lr": rate, "token_norm": norm, "images_per_second": speed}, state.step)


def learning_rate_scale(conf: Config, processes: int, with_prior: bool) -> int:
    """What the configured learning rates are multiplied by. The released rule: batch x accumulation x processes, and
    x 2 with prior preservation, whose batches are twice as large. 1 without optimizer.scale_learning_rate."""
    if not conf.optimizer.scale_learning_rate:
        return 1
    return conf.train.batch_size * conf.train.gradient_accumulation_steps * processes * (2 if with_prior else 1)


def make_optimizer(
    conf: Config, rate: float, token_rate: float, trainables: Trainables, rows: nn.Parameter
) -> torch.optim.Optimizer:
    """AdamW over what trains and nothing else: a frozen weight in an optimiser drifts by its decay."""
    if conf.optimizer.name != "adamw":
        raise UserError(f"optimizer.name={conf.optimizer.name} is unknown; adamw is the one there is.")
    groups = [
        {"params": trainables.trainable_parameters(), "lr": rate},
        {"params": [rows] if trainables.train_token else [], "lr": token_rate},
    ]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise UserError("Nothing would be trained; set method.train_token=true or method.train_unet=crossattn_kv.")
    optimizer = conf.optimizer
    return torch.optim.AdamW(
        groups,
        betas=(optimizer.beta1, optimizer.beta2),
        weight_decay=optimizer.weight_decay,
        eps=optimizer.epsilon,
        fused=True,
    )


def process_device(device: str) -> torch.device:
    """`device=` for this process: under `accelerate launch` each has a GPU of its own."""
    resolved = resolve_device(device)
    if resolved.type == "cuda" and resolved.index is None and "LOCAL_RANK" in os.environ:
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return resolved


@contextmanager
def accelerated(conf: Config, base: Base) -> Iterator[Accelerator]:
    """An Accelerator for one training. Its state is global, so a second job of this process would inherit it: reset."""
    _reset_accelerate()
    precision = {torch.float16: "fp16", torch.bfloat16: "bf16"}.get(base.dtype, "no")
    if base.device.type == "cuda" and base.device.index is not None:
        torch.cuda.set_device(base.device)
    try:
        yield Accelerator(
            cpu=base.device.type == "cpu",
            mixed_precision=precision,
            gradient_accumulation_steps=conf.train.gradient_accumulation_steps,
        )
    finally:
        _reset_accelerate()


def _reset_accelerate() -> None:
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
