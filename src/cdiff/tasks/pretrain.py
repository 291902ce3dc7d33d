"""task=pretrain pretrain.stage=...: makes the pocket models, or measures those that are there."""

from __future__ import annotations

import json
from pathlib import Path

from cdiff.errors import UserError
from cdiff.pocket.pretrain import STAGES, run_stage
from cdiff.schema import Config


def run(cfg: Config) -> dict:
    """Runs one stage. Weights land in pretrain.folder/weights; `scores` writes scores.json beside them."""
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
        stage, folder, settings, cfg.pretrain.pictures, cfg.pretrain.workers, cfg.pretrain.minutes, device, say
    )


def _scores(weights: Path, settings: dict, cfg: Config, device: str, say) -> dict:
    from PIL import Image

    from cdiff.models import load_base
    from cdiff.pocket.pretrain import scores
    from cdiff.sampling import Request, image_seed, sample
    from cdiff.schema import ModelConfig, SamplerConfig

    sampler = SamplerConfig(
        name="ddim", steps=settings["steps"], guidance_scale=settings["guidance_scale"], batch_size=50
    )

    def draw(prompts: list[str]) -> list[Image.Image]:
        requests = [Request(p, i, image_seed(cfg.seed, p, i)) for i, p in enumerate(prompts)]
        return sample(base, requests, sampler)

    if not weights.is_dir():
        raise UserError(f"no weights in {weights}: make them first, or point pretrain.folder at the folder above them")
    out: dict = {"settings": settings, "device": device}
    parts = {
        "vae": scores.score_vae,
        "probe": scores.score_probe,
        "clip": scores.score_clip,
        "identity": scores.score_identity,
    }
    for name, measure in parts.items():
        if (weights / ("base/vae" if name == "vae" else name)).is_dir():
            out[name] = measure(weights, device)
            say(f"{name}: {out[name]}")
    if (weights / "base" / "unet").is_dir():
        import torch

        base = load_base(ModelConfig(path=str(weights / "base")), torch.float32, device)
        out["base"] = scores.score_base(weights, device, draw, settings["prompts"])
        say(f"base: {out['base']}")
    (weights / "scores.json").write_text(json.dumps(out, indent=1) + "\n")
    return out
