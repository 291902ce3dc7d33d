"""Ranges of the configuration, and what must hold between its parts. Everything wrong is told at once."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from cdiff.errors import UserError
from cdiff.schema import TASKS, ConceptConfig, Config
from cdiff.suggest import did_you_mean

CHOICES = {
    "task": TASKS,
    "precision": ("auto", "fp32", "fp16", "bf16"),
    "model.world": ("pocket", "photo"),
    "method.name": ("class_diffusion", "custom_diffusion"),
    "method.train_unet": ("crossattn_kv", "crossattn", "none"),
    "loss.spl_feature": ("eos", "release"),
    "prior.name": ("none",),
    "optimizer.name": ("adamw",),
    "lr_schedule.name": ("constant", "constant_with_warmup", "linear", "cosine"),
    "sampler.name": ("ddim", "dpmpp"),
    "logger.name": ("wandb", "tensorboard", "none"),
    "logger.mode": ("auto", "online", "offline"),
}
THEN = ("sample",)
MAX_SEED = 2**63 - 1

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
    "loss.spl_weight": at_least(0),
    "loss.prior_weight": at_least(0),
    "prior.count": at_least(1),
    "train.steps": at_least(1),
    "train.batch_size": at_least(1),
    "train.gradient_accumulation_steps": at_least(1),
    "train.max_grad_norm": ABOVE_0,
    "train.log_every": at_least(1),
    "augment.shrink_probability": between(0, 1),
    "augment.shrink_min": ((lambda x: 0 < x <= 1), "above 0 and at most 1"),
    "augment.zoom_min": at_least(1),
    "augment.zoom_max": between(1, 8),
    "augment.views": at_least(1),
    "validation.every": at_least(0),
    "validation.images_per_prompt": at_least(1),
    "validation.steps": between(1, 1000),
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
    "pretrain.pictures": at_least(1),
    "pretrain.workers": at_least(0),
    "pretrain.minutes": ABOVE_0,
}


def check(config: Config) -> None:
    """Raise one UserError that tells every mistake, a sentence a line; return when there is none."""
    mistakes = [*_choices(config), *_ranges(config), *_texts(config)]
    if config.task == "train":
        mistakes += [*_training(config), *_concepts(config)]
    if config.task == "pretrain" and config.pretrain.stage is None:
        mistakes.append("task=pretrain needs the stage to make: pretrain.stage=NAME.")
    if mistakes:
        raise UserError("\n".join(mistakes))


def value_at(config: Config, dotted: str) -> Any:
    value: Any = config
    for name in dotted.split("."):
        value = getattr(value, name)
    return value


def _choices(config: Config) -> list[str]:
    mistakes = []
    for key, choices in CHOICES.items():
        value = value_at(config, key)
        if value not in choices:
            mistakes.append(f"{key}={value} is unknown; {did_you_mean(value, choices)}")
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", config.device):
        choices = ("auto", "cpu", "cuda", "cuda:0", "mps")
        mistakes.append(f"device={config.device} is unknown; {did_you_mean(config.device, choices)}")
    for task in config.train.then:
        if task not in THEN:
            mistakes.append(f"train.then={task} is unknown; {did_you_mean(task, THEN)}")
    return mistakes


def _ranges(config: Config) -> list[str]:
    mistakes = []
    for key, (holds, words) in RANGES.items():
        value = value_at(config, key)
        if value is not None and not (math.isfinite(value) and holds(value)):
            mistakes.append(f"{key} must be {words}, got {value}.")
    resolution = config.model.resolution
    if resolution < 8 or resolution % 8:
        near = max(8, round(resolution / 8) * 8)
        mistakes.append(f"model.resolution must be a positive multiple of 8, got {resolution}; the nearest is {near}.")
    if config.augment.zoom_min > config.augment.zoom_max:
        zooms = f"{config.augment.zoom_min} and {config.augment.zoom_max}"
        mistakes.append(f"augment.zoom_min must not be above augment.zoom_max, got {zooms}.")
    if config.sampler.eta > 0 and config.sampler.name != "ddim":
        eta, name = config.sampler.eta, config.sampler.name
        mistakes.append(f"sampler.eta={eta} works with sampler=ddim alone, not with {name}.")
    return mistakes


def _texts(config: Config) -> list[str]:
    mistakes = []
    given = [key for key in ("prompt", "prompts", "prompt_file") if getattr(config, key)]
    if len(given) > 1:
        mistakes.append(f"Give prompts in one way only, got {' and '.join(given)}.")
    if config.prompt is not None and not config.prompt.strip():
        mistakes.append("prompt is empty.")
    for key, prompts in (("prompts", config.prompts), ("validation.prompts", config.validation.prompts)):
        mistakes += [f"{key}[{i}] is empty." for i, prompt in enumerate(prompts) if not prompt.strip()]
    for key in ("model.path", "logger.project"):
        if not value_at(config, key).strip():
            mistakes.append(f"{key} is empty.")
    runs = config.run if isinstance(config.run, list) else [config.run]
    if not runs or not all(isinstance(run, str) and run for run in runs):
        mistakes.append(f"run must be 'latest', a run's folder or a list of folders, got {config.run!r}.")
    if config.name is not None and not re.fullmatch(r"[\w.-]+", config.name):
        mistakes.append(f"name may hold letters, digits, '.', '_' and '-' only, got '{config.name}'.")
    return mistakes


def _training(config: Config) -> list[str]:
    mistakes = []
    method, schedule = config.method, config.lr_schedule
    if method.train_unet == "none" and not method.train_token:
        mistakes.append("Nothing would train: set method.train_unet=crossattn_kv or method.train_token=true.")
    if config.loss.spl_weight > 0 and not method.train_token:
        mistakes.append("loss.spl_weight needs method.train_token=true: its gradient reaches the new token only.")
    if schedule.name == "constant" and schedule.warmup_steps:
        mistakes.append("lr_schedule=constant has no warm-up; choose lr_schedule=constant_with_warmup.")
    if schedule.name != "constant" and schedule.warmup_steps >= config.train.steps:
        steps = f"{schedule.warmup_steps} and {config.train.steps}"
        mistakes.append(f"lr_schedule.warmup_steps must be below train.steps, got {steps}.")
    return mistakes


def _concepts(config: Config) -> list[str]:
    """Every chosen concept has a class word and pictures, after `concept.KEY=` is laid over its file."""
    chosen, shared = config.concepts, config.concept
    if not chosen:
        return ["No concept is chosen: say concept=dog; a concept file starts with '# @package concepts.NAME'."]
    mistakes = []
    if len(chosen) > 1:
        for key in ("images", "token"):
            if getattr(shared, key) is not None:
                names = ", ".join(chosen)
                mistakes.append(f"concept.{key} would be shared by {names}: say concepts.NAME.{key}= for each.")
    tokens: dict[str, str] = {}
    for name, concept in chosen.items():
        mistakes += _one_concept(config, name, concept)
        token = (concept.token or "").strip("<>")
        if token and token in tokens:
            mistakes.append(f"Concepts {tokens[token]} and {name} have the same token <{token}>.")
        tokens[token] = name
    return mistakes


def _one_concept(config: Config, name: str, concept: ConceptConfig) -> list[str]:
    shared, world = config.concept, config.model.world
    mistakes = []
    class_word = shared.class_word if shared.class_word is not None else concept.class_word
    if class_word is None:
        mistakes.append(f"Concept {name} needs its class word: concept.class_word=dog.")
    elif not class_word.strip():
        mistakes.append(f"The class word of concept {name} is empty.")
    images = shared.images if shared.images is not None else concept.images
    sources = concept.sources | shared.sources
    if images is not None and not images.strip():
        mistakes.append(f"The image folder of concept {name} is empty: concept.images=DIR.")
    if images is None and world not in sources:
        has = f" (it has {', '.join(sources)})" if sources else ""
        mistakes.append(f"Concept {name} has no pictures for model={config.model.name}{has}: concept.images=DIR.")
    return mistakes
