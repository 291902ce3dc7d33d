"""Whether every setting is in its range, and what must hold between them. Everything wrong is told at once."""

from __future__ import annotations

import math
import re
from typing import Any

from cdiff.convert import flat, to_dict
from cdiff.errors import UserError
from cdiff.ranges import CHOICES, PLAIN_NAME, RANGES, THEN, VIDEO_CHOICES
from cdiff.schema import METHODS, METRICS, VIDEO_METRICS, ConceptConfig, Config
from cdiff.suggest import did_you_mean


def check(config: Config) -> None:
    """Raise one UserError that tells every mistake, a sentence a line; return when there is none."""
    mistakes = [*_choices(config), *_ranges(config), *_texts(config)]
    if config.task == "train":
        mistakes += [*_training(config), *_concepts(config)]
    mistakes += _evaluation(config)
    if config.task == "video":
        mistakes += _video(config)
    if config.task == "merge":
        mistakes += _merging(config)
    if config.task == "export":
        mistakes += _exporting(config)
    if config.task == "concept":
        mistakes += _new_concept(config)
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
    metrics = list(dict.fromkeys([*METRICS, *METRICS.values()]))
    for name in config.metrics.names:
        if name not in metrics:
            mistakes.append(f"metrics.names={name} is unknown; {did_you_mean(name, metrics)}")
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
    # No file can be named so, and no tokenizer reads it.
    mistakes = [f"{key} holds a NUL character." for key, value in flat(to_dict(config)).items() if "\0" in str(value)]
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
    if config.name is not None and not re.fullmatch(PLAIN_NAME, config.name):
        mistakes.append(f"name may hold letters, digits, '.', '_' and '-' only, got '{config.name}'.")
    return mistakes


def _training(config: Config) -> list[str]:
    mistakes = []
    schedule = config.lr_schedule
    mistakes += _method(config)
    mistakes += _prior(config)
    if schedule.name == "constant" and schedule.warmup_steps:
        mistakes.append("lr_schedule=constant has no warm-up; choose lr_schedule=constant_with_warmup.")
    if schedule.name != "constant" and schedule.warmup_steps >= config.train.steps:
        steps = f"{schedule.warmup_steps} and {config.train.steps}"
        mistakes.append(f"lr_schedule.warmup_steps must be below train.steps, got {steps}.")
    return mistakes


def _method(config: Config) -> list[str]:
    """What a method trains, and whether the losses and settings asked for have anything to work on."""
    method, spl_weight = config.method, config.loss.spl_weight
    mistakes = []
    fitting = METHODS.get(method.name, ())
    if fitting and method.train_unet not in fitting:
        others = [name for name, selections in METHODS.items() if method.train_unet in selections]
        hint = f"; method={others[0]} trains that" if others else ""
        mistakes.append(
            f"method={method.name} takes method.train_unet={' or '.join(fitting)}, got {method.train_unet}{hint}."
        )
    trains_token = method.trains_token(spl_weight)
    if method.train_unet == "none" and not trains_token:
        mistakes.append("Nothing would train: set method.train_unet=crossattn_kv or method.train_token=true.")
    if spl_weight > 0 and not trains_token:
        having = ", ".join(name for name in METHODS if name != "lora")
        mistakes.append(
            "loss.spl_weight needs method.train_token=true: its gradient reaches new tokens only, and this "
            f"{method.name} trains none (methods that do by themselves: {having})."
        )
    if method.train_text_encoder and method.name != "dreambooth":
        mistakes.append(f"method.train_text_encoder=true works with method=dreambooth alone, not with {method.name}.")
    for target in method.targets:
        if not re.fullmatch(r"(attn[12]\.)?(to_[qkv]|to_out\.0)", target):
            mistakes.append(
                f"method.targets={target} is no layer of an attention: use to_q, to_k, to_v, to_out.0, with attn1. or "
                "attn2. before it for one kind of attention alone."
            )
    if method.name == "lora" and not method.targets:
        mistakes.append("method.targets is empty: name the layers that a LoRA is for, such as to_k and to_v.")
    if not method.initializer.strip():
        mistakes.append("method.initializer is empty: say class_word, looks, rare, random or any word.")
    return mistakes


def _prior(config: Config) -> list[str]:
    prior = config.prior
    mistakes = []
    if prior.name == "folder" and not (prior.images or "").strip():
        mistakes.append("prior=folder needs the folder of class images: prior.images=DIR.")
    if prior.name != "folder" and prior.images is not None:
        mistakes.append(f"prior.images={prior.images} works with prior=folder alone, not with prior={prior.name}.")
    if prior.name != "generated" and prior.captions is not None:
        mistakes.append(f"prior.captions={prior.captions} works with prior=generated alone, not with {prior.name}.")
    if prior.captions is not None and prior.prompt is not None:
        mistakes.append("Give prior.prompt or prior.captions, not both.")
    if prior.prompt is not None and not prior.prompt.strip():
        mistakes.append("prior.prompt is empty.")
    return mistakes


def _evaluation(config: Config) -> list[str]:
    conf, mistakes = config.evaluate, []
    known = [*METRICS, *VIDEO_METRICS] if config.task == "video" else list(METRICS)
    if conf.objective not in known:
        mistakes.append(f"evaluate.objective={conf.objective} is unknown; {did_you_mean(conf.objective, known)}")
    for key in ("report.text_metric", "report.image_metric"):
        metric = value_at(config, key)
        if metric is not None and metric not in METRICS:
            mistakes.append(f"{key}={metric} is unknown; {did_you_mean(metric, METRICS)}")
    if conf.name is not None and not re.fullmatch(PLAIN_NAME, conf.name):
        mistakes.append(f"evaluate.name may hold letters, digits, '.', '_' and '-' only, got '{conf.name}'.")
    if not re.fullmatch(PLAIN_NAME, config.protocol.name):
        mistakes.append(f"protocol.name may hold letters, digits, '.', '_' and '-' only, got '{config.protocol.name}'.")
    for key in ("prompts", "live", "object", "joint"):
        prompts = getattr(config.protocol, key)
        mistakes += [f"protocol.{key}[{i}] is empty." for i, prompt in enumerate(prompts) if not prompt.strip()]
    folders = config.references if isinstance(config.references, list) else [config.references]
    if config.references is not None and not (folders and all(isinstance(f, str) and f.strip() for f in folders)):
        mistakes.append(f"references must be a folder of pictures or a list of them, got {config.references!r}.")
    if config.images is not None and not config.images.strip():
        mistakes.append("images is empty: images=DIR.")
    return mistakes


def _video(config: Config) -> list[str]:
    conf, mistakes = config.video, []
    for key, choices in VIDEO_CHOICES.items():
        value = value_at(config, key)
        if value is not None and value not in choices:
            mistakes.append(f"{key}={value} is unknown; {did_you_mean(value, choices)}")
    if not conf.motion_adapter.strip():
        mistakes.append("video.motion_adapter is empty: name a folder, a hub id, or pocket.")
    for task in conf.then:
        if task != "evaluate":
            mistakes.append(f"video.then={task} is unknown; there is: evaluate.")
    if conf.free_noise is not None and config.sampler.batch_size > 1:
        mistakes.append(
            f"video.free_noise draws clip after clip: sampler.batch_size=1, not {config.sampler.batch_size}."
        )
    if conf.free_noise is not None and conf.free_noise_stride > conf.free_noise:
        strides = f"{conf.free_noise_stride} and {conf.free_noise}"
        mistakes.append(f"video.free_noise_stride must not be above video.free_noise (frames between), got {strides}.")
    return mistakes


def _merging(config: Config) -> list[str]:
    runs = config.runs
    mistakes = []
    if len(runs) < 2:
        mistakes.append(f"task=merge needs two runs or more, got {len(runs)}: runs=[FOLDER,FOLDER].")
    mistakes += [f"runs[{i}] is empty." for i, run in enumerate(runs) if not run.strip()]
    mistakes += [f"runs names {run} twice." for run in dict.fromkeys(runs) if run.strip() and runs.count(run) > 1]
    for i, prompt in enumerate(config.merge.prompts):
        if "{}" not in prompt:
            mistakes.append(f"merge.prompts[{i}] has no {{}} for the concept: '{prompt}'.")
    return mistakes


def _exporting(config: Config) -> list[str]:
    mistakes = []
    export, repo = config.export, config.repo
    if export.rank is not None and export.tolerance is not None:
        mistakes.append("Give export.rank or export.tolerance, not both.")
    for key in ("rank", "tolerance"):
        if getattr(export, key) is not None and config.format not in ("lora", "kohya", "hub"):
            mistakes.append(f"export.{key} is of a LoRA: it works with format=lora, kohya or hub, not {config.format}.")
    if config.run == "base":
        mistakes.append("run=base is the untouched base model, with nothing to export: say run=latest or run=FOLDER.")
    if config.format == "hub" and repo is None:
        mistakes.append("format=hub needs the name on the hub: repo=OWNER/NAME.")
    if repo is not None and not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]{0,95}", repo):
        mistakes.append(f"repo={repo} is no name on the hub: repo=OWNER/NAME, of letters, digits, '.', '_' and '-'.")
    if config.format != "hub" and (repo is not None or config.push):
        mistakes.append(f"repo= and push= work with format=hub alone, not with format={config.format}.")
    return mistakes


def _new_concept(config: Config) -> list[str]:
    mistakes = []
    if config.images is None:
        mistakes.append("task=concept needs the pictures: images=DIR.")
    if config.name is None:
        mistakes.append("task=concept needs a name for the concept: name=rex.")
    elif not re.fullmatch(r"[A-Za-z][\w-]*", config.name):
        mistakes.append(f"name={config.name} can't name a concept: a letter, then letters, digits, '_' and '-'.")
    if not (config.class_word or "").strip():
        mistakes.append("task=concept needs the word for what the pictures show: class_word=dog.")
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
    if not re.fullmatch(PLAIN_NAME, name):
        mistakes.append(f"A concept's name may hold letters, digits, '.', '_' and '-' only, got '{name}'.")
    images = shared.images if shared.images is not None else concept.images
    sources = concept.sources | shared.sources
    if images is not None and not images.strip():
        mistakes.append(f"The image folder of concept {name} is empty: concept.images=DIR.")
    if images is None and world not in sources:
        has = f" (it has {', '.join(sources)})" if sources else ""
        mistakes.append(f"Concept {name} has no pictures for model={config.model.name}{has}: concept.images=DIR.")
    return mistakes
