"""What a run would do, in a few lines: the second half of `dry_run=true`."""

from __future__ import annotations

from cdiff.cost import cost
from cdiff.memory import estimate
from cdiff.schema import Config

NO_RUN_FOLDER = ("pretrain", "export", "concept", "doctor")


def plan(cfg: Config) -> dict[str, str]:
    """Rows of the plan: what would be read, trained, drawn and written."""
    rows = {"task": cfg.task, "model": f"{cfg.model.name} ({cfg.model.path}), {cfg.model.resolution} px"}
    of_task = {
        "train": _train,
        "sample": _sample,
        "video": _video,
        "evaluate": _evaluate,
        "merge": _merge,
        "report": _report,
        "export": _export,
        "concept": _concept,
        "doctor": _doctor,
        "pretrain": _pretrain,
    }
    rows |= of_task[cfg.task](cfg)
    return rows if cfg.task in NO_RUN_FOLDER else rows | {"run folder": f"{cfg.output}/"}


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
    if cfg.resume.run is not None:
        rows["goes on with"] = cfg.resume.run
    if cfg.prior.name != "none":
        rows["prior"] = _class_images(cfg)
    files = ["adapter/", "config.yaml", "run.json", "log.txt", "events.jsonl"]
    if cfg.validation.every:
        times = _count(1 + cfg.train.steps // cfg.validation.every, "time")
        rows["validation"] = f"{times}, before the first step and every {_count(cfg.validation.every, 'step')}"
    if "sample" in cfg.train.then:
        rows |= _drawing(cfg)
        files.insert(1, "samples/")
    if "evaluate" in cfg.train.then:
        rows["evaluation"] = f"protocol {cfg.protocol.name}, {_count(cfg.protocol.images_per_prompt, 'image')} a prompt"
        files.insert(-3, "evaluation/")
    if cfg.checkpoints.every != 0:
        files.insert(1, "checkpoints/")
    if cfg.logger.name != "none":
        files.append(f"{cfg.logger.name}/")
    if (needed := estimate(cfg)) is not None:
        rows["memory"] = needed.in_words()
    if (arithmetic := cost(cfg)) is not None:
        rows["time"] = arithmetic.in_words()
    return rows | {"files": ", ".join(files)}


def _class_images(cfg: Config) -> str:
    """How many class images are needed. Which of them the cache holds is known once the base's weights are read."""
    prior = cfg.prior
    classes = {cfg.concept.class_word or concept.class_word for concept in cfg.concepts.values()}
    of = f"of {', '.join(sorted(map(str, classes)))}"
    if prior.name == "folder":
        most = _count(prior.count, "class image")
        return f"at most {most} {of} from {prior.images}, weight {cfg.loss.prior_weight:g}"
    sampler = f"{cfg.sampler.name} with {_count(cfg.sampler.steps, 'step')}"
    prompt = f"captions of {prior.captions}" if prior.captions else f"'{prior.prompt or 'a photo of a {class_word}'}'"
    return (
        f"{_count(prior.count, 'class image')} {of} to draw ({prompt}, {sampler}), less those in the cache; "
        f"weight {cfg.loss.prior_weight:g}"
    )


def _merge(cfg: Config) -> dict[str, str]:
    return {
        "merged": ", ".join(cfg.runs),
        "same tokens": "renamed" if cfg.merge.rename else "refused",
        "kept": f"the captions of {cfg.merge.captions}" if cfg.merge.captions else "a built-in list of captions",
        "files": "adapter/, merge.json, config.yaml, run.json, log.txt",
    }


def _report(cfg: Config) -> dict[str, str]:
    return {
        "report of": _listed(cfg.run),
        "files": f"report.html (pictures of at most {cfg.report.megabytes:g} MB), runs.csv, settings.csv, table.md, "
        "table.tex, run.json, log.txt",
    }


def _export(cfg: Config) -> dict[str, str]:
    folder = cfg.export.folder or f"{_listed(cfg.run)}/export/{cfg.format}"
    rows = {"run": _listed(cfg.run), "format": cfg.format, "files": f"{folder}/ with export.json"}
    if cfg.format in ("lora", "kohya"):
        by = f"at most {cfg.export.tolerance:g} of each layer's change left out" if cfg.export.tolerance else "exact"
        rows["rank"] = str(cfg.export.rank or by)
    if cfg.format == "hub":
        rows["hub"] = (
            f"uploaded to {cfg.repo}" if cfg.push else f"nothing is uploaded (push=true uploads to {cfg.repo})"
        )
    return rows


def _concept(cfg: Config) -> dict[str, str]:
    return {"pictures": str(cfg.images), "files": f"{cfg.output}/concept/{cfg.name}.yaml and a contact sheet beside it"}


def _doctor(cfg: Config) -> dict[str, str]:
    return {"looks at": "versions, GPU, precisions, caches, the hub, wandb"}


def _evaluate(cfg: Config) -> dict[str, str]:
    protocol = cfg.protocol
    rows = {"metrics": ", ".join(cfg.metrics.names) or f"all that the {cfg.model.world} world has"}
    if cfg.images:
        compared = _listed(cfg.references) or "nothing: text metrics only"
        rows = {"images of": cfg.images, "compared with": compared} | rows
    else:
        drawn = f"{protocol.name}, {_count(protocol.images_per_prompt, 'image')} a prompt, drawn where missing"
        rows = {"runs": _listed(cfg.run), "protocol": drawn} | rows
    return rows | {"files": "metrics.json, run.json, log.txt; beside the images rows.csv, rows.parquet, metrics.json"}


def _listed(value: str | list[str] | None) -> str:
    return ", ".join(value) if isinstance(value, list) else value or ""


def _sample(cfg: Config) -> dict[str, str]:
    run = cfg.run if isinstance(cfg.run, str) else ", ".join(cfg.run)
    return (
        {"adapter of": "none, the base model alone" if run == "base" else run}
        | _drawing(cfg)
        | {"files": "samples/ with prompts.json and a grid, run.json, log.txt"}
    )


def _video(cfg: Config) -> dict[str, str]:
    video, sampler, each = cfg.video, cfg.sampler, cfg.images_per_prompt
    count = 1 if cfg.prompt else len(cfg.prompts) or max(1, len(cfg.concepts))  # prompts of its own: one a concept
    of = f"each prompt of {cfg.prompt_file}" if cfg.prompt_file else _count(count, "prompt")
    files = ["clips/ with GIF" + (", MP4" if video.mp4 else "") + ", prompts.json and a contact sheet"]
    files += ["frames/"] if video.keep_frames else []
    files += ["evaluation/"] if video.then else []
    drawn = f"{sampler.name} with {_count(sampler.steps, 'step')}, guidance {sampler.guidance_scale:g}"
    return {
        "adapter of": "none, the base model alone" if cfg.run == "base" else _listed(cfg.run),
        "motion": f"{video.name} ({video.motion_adapter})",
        "clips": f"{each} of {of}, {_count(video.frames, 'frame')} each at {video.fps} a second, {drawn}",
        "files": ", ".join([*files, "run.json", "log.txt"]),
    }


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
