"""What each setting may be: its choices, or its range. How settings go together is cdiff.checks' part."""

from __future__ import annotations

from collections.abc import Callable

from cdiff.schema import ANCHORS, METHODS, TASKS

CHOICES = {
    "task": TASKS,
    "precision": ("auto", "fp32", "fp16", "bf16"),
    "memory": ("normal", "low"),
    "model.world": ("pocket", "photo"),
    "train.execution": ("auto", "eager", "graph", "compile"),
    "sampler.execution": ("auto", "eager", "graph", "compile"),
    "method.name": tuple(METHODS),
    "method.train_unet": tuple(dict.fromkeys(name for names in METHODS.values() for name in names)),
    "method.save_precision": ("fp32", "fp16"),
    "loss.spl_feature": ("eos", "release"),
    "prior.name": ("none", "generated", "folder"),
    "optimizer.name": ("adamw",),
    "lr_schedule.name": ("constant", "constant_with_warmup", "linear", "cosine"),
    "sampler.name": ("ddim", "dpmpp", "euler", "euler_a"),
    "format": ("diffusers", "lora", "kohya", "release", "hub"),
    "export.precision": ("fp32", "fp16"),
    "metrics.dino_preprocessing": ("auto", "dino", "folder"),
    "evaluate.prompt_rule": ("drop", "keep", "class"),
    "logger.name": ("wandb", "tensorboard", "none"),
    "logger.mode": ("auto", "online", "offline"),
}
THEN = ("sample", "evaluate")
VIDEO_CHOICES = {  # or null
    "video.schedule.beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "video.schedule.timestep_spacing": ("leading", "linspace", "trailing"),
    "video.anchor": ANCHORS,
}
MOST_FRAMES = 1024
MAX_SEED = 2**63 - 1
PLAIN_NAME = r"\w[\w.-]{0,99}"  # of what names a folder

Rule = tuple[Callable[[float], bool], str]


def at_least(low: float) -> Rule:
    return (lambda x: x >= low), f"at least {low}"


def between(low: float, high: float) -> Rule:
    return (lambda x: low <= x <= high), f"from {low} to {high}"


ABOVE_0: Rule = ((lambda x: x > 0), "above 0")
BETA: Rule = ((lambda x: 0 <= x < 1), "at least 0 and below 1")

RANGES: dict[str, Rule] = {
    "seed": between(0, MAX_SEED),
    "images_per_prompt": between(1, 10_000),
    "method.rank": between(1, 4096),
    "method.alpha": ABOVE_0,
    "loss.spl_weight": at_least(0),
    "loss.prior_weight": at_least(0),
    "prior.count": at_least(1),
    "prior.seed": between(0, MAX_SEED),
    "train.steps": at_least(1),
    "train.batch_size": at_least(1),
    "train.gradient_accumulation_steps": at_least(1),
    "train.max_grad_norm": ABOVE_0,
    "train.log_every": at_least(1),
    "train.skip_not_finite": at_least(0),
    "augment.shrink_probability": between(0, 1),
    "augment.shrink_min": ((lambda x: 0 < x <= 1), "above 0 and at most 1"),
    "augment.zoom_min": at_least(1),
    "augment.zoom_max": between(1, 8),
    "augment.background": between(0, 1),
    "augment.views": at_least(1),
    "validation.every": at_least(0),
    "validation.images_per_prompt": at_least(1),
    "validation.steps": between(1, 1000),
    "probes.every": at_least(0),
    "report.megabytes": between(0.5, 500),
    "checkpoints.every": at_least(0),
    "checkpoints.keep": at_least(1),
    "optimizer.learning_rate": ((lambda x: 0 < x <= 1), "above 0 and at most 1"),
    "optimizer.token_learning_rate": ((lambda x: 0 < x <= 1), "above 0 and at most 1"),
    "optimizer.beta1": BETA,
    "optimizer.beta2": BETA,
    "optimizer.weight_decay": at_least(0),
    "optimizer.epsilon": ABOVE_0,
    "lr_schedule.warmup_steps": at_least(0),
    "sampler.steps": between(1, 1000),
    "sampler.guidance_scale": between(0, 100),
    "sampler.eta": between(0, 1),
    "sampler.batch_size": at_least(1),
    "sampler.token_adjust.alpha": between(0, 1),
    "sampler.token_adjust.beta": ABOVE_0,
    "video.frames": between(1, MOST_FRAMES),
    "video.margin": between(0, 64),
    "video.fps": between(1, 120),
    "video.schedule.steps_offset": between(0, 999),
    "video.decode_frames": at_least(1),
    "video.free_noise": at_least(2),
    "video.free_noise_stride": at_least(1),
    "video.shared_noise": between(0, 1),
    "export.rank": between(1, 4096),
    "export.tolerance": ((lambda x: 0 < x < 1), "above 0 and below 1"),
    "export.images": between(0, 100),
    "metrics.batch_size": at_least(1),
    "metrics.workers": between(0, 256),
    "protocol.images_per_prompt": between(1, 10_000),
    "evaluate.max_bad_share": between(0, 1),
    "evaluate.resamples": between(100, 1_000_000),
    "pretrain.pictures": at_least(1),
    "pretrain.workers": at_least(0),
    "pretrain.minutes": ABOVE_0,
    "pretrain.deadline": ABOVE_0,
}
