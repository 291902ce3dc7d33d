"""The training loop: accelerate around one module that turns a batch into its loss parts."""

from __future__ import annotations

import logging
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
from torch.utils.checkpoint import checkpoint

from cdiff.batches import Batch, Batches
from cdiff.concepts import Concept
from cdiff.data.latents import TrainingViews
from cdiff.errors import UserError
from cdiff.execution import choose, compiled, graph_recorder
from cdiff.fused.fusing import unfuse
from cdiff.keeping import Keeping
from cdiff.losses import phrases, prior_loss, reconstruction_loss, semantic_preservation_loss
from cdiff.methods import Trainables
from cdiff.models import Base
from cdiff.schema import Config
from cdiff.snapshot import State
from cdiff.stepping import EagerStep, StaticStep
from cdiff.tokens import PromptEncoder, feature_positions, read_features
from cdiff.window import PARTS, Guard, NotFinite

if TYPE_CHECKING:
    from cdiff.tokens import Encoded

log = logging.getLogger("cdiff")


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
        self.narrow: torch.dtype | None = None  # the UNet's precision, where no autocast sees to it
        self.predict: Callable | None = None  # stands in for the UNet's own call
        self.positions: Tensor | None = None  # where SPL reads its features: the same at every step
        # Of each text encoder of the base: one that trains leaves them where they were.
        self.class_features: list[Tensor] | None = None

    def tokenize(self, prompts: Sequence[str]) -> tuple[Tensor, ...]:
        """Ids of the prompts and, behind them, of the phrases of SPL: one pass of each text encoder does for both."""
        return self.encoder.ids(prompts, self.concept_phrases if self.loss.spl_weight else [])

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Loss parts by name, unweighted, and their weighted total; all scalars in fp32."""
        conf = self.loss
        ids, own = batch.ids or self.tokenize(batch.prompts), len(batch.prompts)
        encoded = self.encoder.encode_ids(ids, [own, len(ids[0]) - own])
        conditions = sdxl_conditions(encoded[0], batch.time_ids)
        noisy = batch.noisy if self.narrow is None else batch.noisy.to(self.narrow)
        prediction = (self.predict or self.unet)(
            noisy, batch.timesteps, encoded[0].hidden, added_cond_kwargs=conditions, return_dict=False
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
    keeping: Keeping | None = None,
    probe: Callable[[int], None] | None = None,
) -> TrainResult:
    """Train `rows` and `trainables` in place up to `conf.train.steps` optimiser steps.

    Args:
        rows: embeddings of the new tokens (tokens.add_tokens).
        trainables: the UNet's trained weights (methods.prepare), fp32.
        prior_views: views of class images; given, each batch holds as many of them again.
        progress: told after each step; the losses last logged.
        on_validation: told the step, every `conf.validation.every` steps, on the main process.
        keeping: writes checkpoints and starts from one; None keeps nothing.
        probe: told every step on the main process, and 0 before the first one; its time does not count as training's.

    Raises:
        UserError: nothing to train, a checkpoint of another training, or a loss that is not finite.
        Interrupted: a signal asked to stop, and the state was saved.
    """
    with accelerated(conf, base, trainables.needs_autocast) as accelerator:
        module = Personalizer(base, concepts, rows, conf)
        module.narrow = base.dtype if accelerator.mixed_precision == "no" else None
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
        scaled = "fp16" if accelerator.scaler is not None else None
        execution = choose("train.execution", conf.train.execution, conf.train.steps, base.device, scaled)
        optimizer = accelerator.prepare_optimizer(optimizer)
        if trainables.text:
            with accelerator.autocast():
                module.spl()  # remembers the class's features, before the encoder that they come from moves
        batches = Batches(
            base.scheduler, views, prior_views, conf.train.batch_size, conf.seed, accelerator.device, module.tokenize
        )
        guard = Guard(accelerator, optimizer, conf.train.skip_not_finite)
        state = State(named_parameters(trainables, rows), optimizer, schedule, guard)
        state.window.batches = batch_names(conf, accelerator.num_processes, batches)
        keeping = keeping or Keeping()
        keeping.restore(accelerator, state)
        if probe is not None and state.step == 0 and accelerator.is_main_process:
            probe(0)
        step = make_step(execution, conf, accelerator, module, state, batches)
        log.info("every step runs %s", {"eager": "as it comes (eager)"}.get(execution, f"as {execution}"))
        with keeping.watching(), saving_memory(base.unet, conf.memory == "low"):
            _loop(conf, accelerator, step, module, state, tracker, keeping, progress, on_validation, probe)
        return TrainResult(
            steps=state.step,
            losses={name: value for name, value in state.last.items() if name in PARTS},
            seconds=state.seconds,
            learning_rate=rate,
            unet_weights=trainables.unet_state(),
            token_rows=rows.detach().float().cpu().clone(),
            text_encoder_weights=trainables.text_encoder_state(),
        )


def named_parameters(trainables: Trainables, rows: nn.Parameter) -> dict[str, nn.Parameter]:
    """Everything that trains, by the name it has in a checkpoint."""
    named = {f"unet.{name}": parameter for name, parameter in trainables.named.items()}
    named |= {f"text_encoder.{name}": parameter for name, parameter in trainables.text.items()}
    return named | ({"rows": rows} if trainables.train_token else {})


def batch_names(conf: Config, processes: int, batches: Batches) -> Callable[[int], str]:
    """What `batches` hold for a step (from 1), in words; all micro-batches of all processes."""
    each = conf.train.gradient_accumulation_steps * processes
    return lambda step: batches.describe(range((step - 1) * each, step * each))


def activation_checkpoint(module: nn.Module, *inputs: object) -> object:
    """Compute a block's activations again in the backward pass. Its random state is not kept: nothing in the UNet draws
    numbers, and a graph can't hold it."""
    return checkpoint(module.__call__, *inputs, use_reentrant=False, preserve_rng_state=False)


@contextmanager
def saving_memory(unet: nn.Module, low: bool) -> Iterator[None]:
    """memory=low: the UNet keeps what goes into its blocks, and not what is in them."""
    if not low:
        yield
        return
    unet.enable_gradient_checkpointing(activation_checkpoint)
    try:
        yield
    finally:
        unet.disable_gradient_checkpointing()


def make_step(
    execution: str, conf: Config, accelerator: Accelerator, module: Personalizer, state: State, batches: Batches
) -> Callable[[], dict[str, Tensor]]:
    """What does one optimiser step when it is called. execution: see stepping.choose."""
    if execution == "eager":
        return EagerStep(conf, accelerator, accelerator.prepare_model(module), state, batches)
    if execution == "compile":
        unfuse(module.unet)
        module.predict = compiled(module.unet.forward, "The UNet")
    stream = torch.cuda.Stream(accelerator.device)
    autocast = None
    if accelerator.mixed_precision == "bf16":  # its cache of casts must not outlive the capture
        autocast = torch.autocast("cuda", torch.bfloat16, cache_enabled=False)
    record = graph_recorder(stream)
    return StaticStep(conf, accelerator, module, state, batches, autocast=autocast, record=record, stream=stream)


def _loop(
    conf: Config,
    accelerator: Accelerator,
    do_step: Callable[[], dict[str, Tensor]],
    module: Personalizer,
    state: State,
    tracker: Tracker,
    keeping: Keeping,
    progress: Callable[[dict[str, float]], None] | None,
    on_validation: Callable[[int], None] | None,
    probe: Callable[[int], None] | None,
) -> None:
    """Step, log, draw and save until the last step is done."""
    samples = conf.train.batch_size * conf.train.gradient_accumulation_steps * accelerator.num_processes
    watch, done = Stopwatch(), 0
    try:
        while state.step < conf.train.steps:
            rate = state.schedule.get_last_lr()[0]
            values = do_step()
            state.window.add(state.step, rate, values)
            done, last = done + 1, state.step == conf.train.steps
            if state.step == 1 or state.step % conf.train.log_every == 0 or last:
                means = state.window.close(accelerator, state.guard)
                seconds = watch.lap()
                state.seconds += seconds
                _log(accelerator, state, module, means, rate, samples * done / seconds, tracker)
                done = 0
            if progress is not None:
                progress(state.last)
            with watch.paused():
                if probe is not None and accelerator.is_main_process:
                    probe(state.step)
                if on_validation is not None and conf.validation.every and state.step % conf.validation.every == 0:
                    if accelerator.is_main_process:
                        on_validation(state.step)
                    accelerator.wait_for_everyone()
                keeping.after_step(accelerator, state, last)
    except NotFinite as fault:
        kept = keeping.rescue(accelerator, state, fault)
        remedy = "Lower optimizer.learning_rate, use precision=fp32, or allow some with train.skip_not_finite=N"
        raise UserError(f"{fault}; {kept}. {remedy}.") from fault


class Stopwatch:
    """Seconds from lap to lap, without pauses."""

    def __init__(self) -> None:
        self.started = time.perf_counter()

    def lap(self) -> float:
        now = time.perf_counter()
        seconds, self.started = now - self.started, now
        return seconds

    @contextmanager
    def paused(self) -> Iterator[None]:
        before = time.perf_counter()
        yield
        self.started += time.perf_counter() - before


def _log(
    accelerator: Accelerator,
    state: State,
    module: Personalizer,
    means: dict[str, float],
    rate: float,
    speed: float,
    tracker: Tracker,
) -> None:
    if not means:
        return  # every step of the window was skipped
    state.last = means
    if "loss/spl" not in means:  # no part of the loss, but how far the token drifts is what one wants to see
        with accelerator.autocast():
            means["loss/spl"] = module.spl().item()
    if accelerator.is_main_process:
        norm = module.rows.detach().float().norm(dim=-1).mean().item()
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


@contextmanager
def accelerated(conf: Config, base: Base, needs_autocast: bool = True) -> Iterator[Accelerator]:
    """An Accelerator for one training. Its state is global, so a second job of this process would inherit it: reset.

    Without autocast a bf16 UNet's norms read and write bf16 (they compute in fp32 either way); fp16 always has it, and
    gradient scaling with it.
    """
    _reset_accelerate()
    half = {torch.float16: "fp16", torch.bfloat16: "bf16"} if needs_autocast else {torch.float16: "fp16"}
    precision = half.get(base.dtype, "no")
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
