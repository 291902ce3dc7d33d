"""task=pretrain pretrain.stage=...: makes the pocket models, or measures those that are there."""

from __future__ import annotations

import json
from pathlib import Path

from cdiff.errors import UserError
from cdiff.pocket.pretrain import STAGES, run_stage
from cdiff.schema import Config


def run(cfg: Config) -> dict:
    """Runs one stage. Weights land in pretrain.folder/weights; `scores` writes scores.json beside them, `card` the
    model card."""
    from cdiff.models import resolve_device

    stage = cfg.pretrain.stage
    if stage not in STAGES:
        raise UserError(f"pretrain.stage={stage} is no stage; choose one of {', '.join(STAGES)}.")
    device = str(resolve_device(cfg.device))
    folder = Path(cfg.pretrain.folder).expanduser()
    settings = dict(cfg.pretrain.settings.get(stage) or {})

    def say(line: str) -> None:
        print(f"[{stage}] {line}", flush=True)

    if stage == "scores":
        return _scores(folder / "weights", settings, cfg, device, say)
    return run_stage(
        stage,
        folder,
        settings,
        cfg.pretrain.pictures,
        cfg.pretrain.workers,
        cfg.pretrain.minutes,
        device,
        say,
        cfg.pretrain.deadline,
    )


def _scores(weights: Path, settings: dict, cfg: Config, device: str, say) -> dict:
    """Measures the models that are there; values of models that are not measured again stay in scores.json."""
    from cdiff.pocket.pretrain import scores
    from cdiff.pocket.pretrain.scores_motion import score_motion

    if not weights.is_dir():
        raise UserError(f"no weights in {weights}: make them first, or point pretrain.folder at the folder above them")
    prompts, clips = settings["prompts"], settings["clips"]
    parts = {
        "vae": ("base/vae", lambda: scores.score_vae(weights, device)),
        "probe": ("probe", lambda: scores.score_probe(weights, device)),
        "clip": ("clip", lambda: scores.score_clip(weights, device)),
        "identity": ("identity", lambda: scores.score_identity(weights, device)),
        "blip": ("blip", lambda: scores.score_blip(weights, device)),
        "base": ("base/unet", lambda: scores.score_base(weights, device, _drawer(weights, settings, cfg), prompts)),
        "motion": ("motion", lambda: score_motion(weights, device, _clip_drawer(weights, settings, cfg), clips)),
    }
    only = settings.get("only") or list(parts)
    if unknown := set(only) - set(parts):
        raise UserError(
            f"pretrain.settings.scores.only names {', '.join(sorted(unknown))}; there are {', '.join(parts)}"
        )
    path = weights / "scores.json"
    out = json.loads(path.read_text()) if path.exists() else {}
    out |= {"settings": settings, "device": device}
    for name, (place, measure) in parts.items():
        if name in only and (weights / place).is_dir():
            out[name] = measure()
            say(f"{name}: {out[name]}")
            path.write_text(json.dumps(out, indent=1) + "\n")
    return out


def _drawer(weights: Path, settings: dict, cfg: Config):
    """prompts -> pictures, by the pretrained base."""
    import torch

    from cdiff.models import load_base, resolve_device
    from cdiff.sampling import Request, image_seed, sample
    from cdiff.schema import ModelConfig, SamplerConfig

    steps, scale = settings["steps"], settings["guidance_scale"]
    sampler = SamplerConfig(name="ddim", steps=steps, guidance_scale=scale, eta=settings["eta"], batch_size=50)
    base = load_base(ModelConfig(path=str(weights / "base")), torch.float32, str(resolve_device(cfg.device)))

    def draw(prompts: list[str]) -> list:
        return sample(base, [Request(p, i, image_seed(cfg.seed, p, i)) for i, p in enumerate(prompts)], sampler)

    return draw


def _clip_drawer(weights: Path, settings: dict, cfg: Config):
    """prompts -> clips (lists of pictures), as task=video draws them with the pretrained base and motion adapter."""
    import torch

    from cdiff.models import load_base, resolve_device
    from cdiff.pocket.pretrain.scores_motion import pocket_clips, pocket_sampler
    from cdiff.sampling import Request, image_seed
    from cdiff.schema import ModelConfig
    from cdiff.video.drawing import draw_clips, make_clip_pipeline
    from cdiff.video.motion import animated, load_motion

    device = resolve_device(cfg.device)
    video = pocket_clips(weights / "motion", **(settings.get("video") or {}))
    sampler = pocket_sampler(batch_size=settings.get("clips_at_once", 1))
    base = load_base(ModelConfig(path=str(weights / "base")), torch.float32, str(device))
    motion = load_motion(weights / "motion", video, torch.float32)
    base = animated(base, motion)
    pipe = make_clip_pipeline(base, motion, video, sampler, device)

    def draw(prompts: list[str]) -> list:
        requests = [Request(p, i, image_seed(cfg.seed, p, i)) for i, p in enumerate(prompts)]
        side = base.vae.config.sample_size
        return [frames for _, frames in draw_clips(base, pipe, requests, video, sampler, resolution=side)]

    return draw
