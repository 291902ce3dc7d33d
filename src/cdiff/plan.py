"""What a run would do, in a few lines: the second half of `dry_run=true`."""

from __future__ import annotations

from cdiff.schema import Config


def plan(cfg: Config) -> dict[str, str]:
    """Rows of the plan: what would be read, trained, drawn and written."""
    rows = {"task": cfg.task, "model": f"{cfg.model.name} ({cfg.model.path}), {cfg.model.resolution} px"}
    rows |= {"train": _train, "sample": _sample, "pretrain": _pretrain}[cfg.task](cfg)
    return rows if cfg.task == "pretrain" else rows | {"run folder": f"{cfg.output}/"}


def own_prompts(concepts: int) -> int:
    """How many prompts `drawing` makes of its own for so many concepts (a test holds the two together)."""
    return 4 if concepts == 1 else concepts + 2


def _train(cfg: Config) -> dict[str, str]:
    accumulated = cfg.train.gradient_accumulation_steps
    seen = cfg.train.steps * cfg.train.batch_size * accumulated
    views = min(cfg.augment.views or seen, seen)
    batch = f"{cfg.train.batch_size}" + (f" x {accumulated} accumulated" if accumulated > 1 else "")
    rows = {
        "concepts": ", ".join(f"{name}: {_pictures(cfg, name)}" for name in cfg.concepts),
        "method": f"{cfg.method.name}, SPL weight {cfg.loss.spl_weight:g}",
        "training": f"{_count(cfg.train.steps, 'step')} of batch {batch}: {seen} samples out of {views} encoded views",
    }
    files = ["adapter/", "config.yaml", "run.json", "log.txt", "events.jsonl"]
    if cfg.validation.every:
        times = _count(cfg.train.steps // cfg.validation.every, "time")
        rows["validation"] = f"{times}, every {_count(cfg.validation.every, 'step')}"
    if "sample" in cfg.train.then:
        rows |= _drawing(cfg)
        files.insert(1, "samples/")
    if cfg.logger.name != "none":
        files.append(f"{cfg.logger.name}/")
    return rows | {"files": ", ".join(files)}


def _sample(cfg: Config) -> dict[str, str]:
    run = cfg.run if isinstance(cfg.run, str) else ", ".join(cfg.run)
    return (
        {"adapter of": "none, the base model alone" if run == "base" else run}
        | _drawing(cfg)
        | {"files": "samples/ with prompts.json and a grid, run.json, log.txt"}
    )


def _pretrain(cfg: Config) -> dict[str, str]:
    return {"stage": str(cfg.pretrain.stage), "weights to": cfg.pretrain.folder}


def _drawing(cfg: Config) -> dict[str, str]:
    each, sampler = cfg.images_per_prompt, cfg.sampler
    if cfg.prompt_file:
        what = f"{each} for each prompt of {cfg.prompt_file}"
    else:
        prompts = 1 if cfg.prompt else len(cfg.prompts) or own_prompts(len(cfg.concepts))
        what = f"{each * prompts} ({_count(prompts, 'prompt')} x {each})"
    return {
        "images": f"{what}, {sampler.name} with {_count(sampler.steps, 'step')}, guidance {sampler.guidance_scale:g}"
    }


def _pictures(cfg: Config, name: str) -> str:
    concept = cfg.concepts[name]
    return cfg.concept.images or concept.images or (concept.sources | cfg.concept.sources)[cfg.model.world]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
