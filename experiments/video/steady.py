"""How still a pocket clip's subject holds, by the ways of drawing it: guidance, sampler steps, FreeInit.

    python experiments/video/steady.py --ways plain free_init guidance_3
    python experiments/video/steady.py --ways rendered            # the judge's own limit
    python experiments/video/steady.py --adapter outputs/pretrain/weights/motion --shared-noise 0.25 --margin 0

Scores are those of the model card (`pretrain.stage=scores`), of clips with seeds 1000, 1001 ...; FreeInit is diffusers'
(arXiv 2312.07537), which draws a clip several times and keeps the low frequencies of the noise between the rounds.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

import cdiff
from cdiff.models import load_base, resolve_device
from cdiff.pocket.pretrain.scores_motion import fresh_clip, pocket_clips, score_motion
from cdiff.pocket.world.render import render
from cdiff.sampling import Request
from cdiff.schema import ANCHORS, ModelConfig, SamplerConfig
from cdiff.video.drawing import draw_clips, make_clip_pipeline
from cdiff.video.motion import animated, load_motion

WEIGHTS = Path(cdiff.__file__).parent / "pocket" / "weights"
FREQUENCIES = {"method": "butterworth", "spatial_stop_frequency": 0.25, "temporal_stop_frequency": 0.25}
WAYS = {  # guidance, sampler steps, what FreeInit is told
    "plain": (5.0, 25, None),
    "guidance_3": (3.0, 25, None),
    "guidance_7": (7.0, 25, None),
    "guidance_10": (10.0, 25, None),
    "steps_50": (5.0, 50, None),
    "free_init": (5.0, 25, {"num_iters": 3, **FREQUENCIES}),
    "free_init_2": (5.0, 25, {"num_iters": 2, **FREQUENCIES}),
    "free_init_fast": (5.0, 25, {"num_iters": 3, "use_fast_sampling": True, **FREQUENCIES}),
    "free_init_wide": (5.0, 25, {"num_iters": 3, **FREQUENCIES, "method": "gaussian", "spatial_stop_frequency": 0.5}),
}


def drawer(way: str, adapter: Path, settings: dict, device: torch.device):
    """prompts -> clips, drawn that way."""
    guidance, steps, free_init = WAYS[way]
    video = pocket_clips(adapter, **settings)
    sampler = SamplerConfig(name="ddim", steps=steps, guidance_scale=guidance, batch_size=10)
    motion = load_motion(adapter, video, torch.float32)
    base = animated(load_base(ModelConfig(path="pocket"), torch.float32, device), motion)
    pipe = make_clip_pipeline(base, motion, video, sampler, device)
    if free_init:
        pipe.enable_free_init(**free_init)

    def draw(prompts: list[str]) -> list:
        requests = [Request(prompt, number, 1000 + number) for number, prompt in enumerate(prompts)]
        return [frames for _, frames in draw_clips(base, pipe, requests, video, sampler)]

    return draw


def rendered():
    """Clips as the pocket world renders them, moving ones first: what the judge says of the truth."""
    moving = iter((True, False))

    def draw(prompts: list[str]) -> list:
        which = next(moving)
        return [[render(scene) for scene in fresh_clip(number, which).frames] for number in range(len(prompts))]

    return draw


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--adapter", type=Path, default=WEIGHTS / "motion")
    shipped = pocket_clips(WEIGHTS / "motion")
    parser.add_argument("--shared-noise", type=float, default=shipped.shared_noise)
    parser.add_argument("--anchor", choices=("none", *ANCHORS), default=shipped.anchor)
    parser.add_argument("--margin", type=int, default=shipped.margin)
    parser.add_argument("--spacing", default=shipped.schedule.timestep_spacing, help="of the timesteps")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=[*WAYS, "rendered"])
    parser.add_argument("--clips", type=int, default=100)
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    device = resolve_device(given.device)
    anchor = None if given.anchor == "none" else given.anchor
    settings = {"shared_noise": given.shared_noise, "anchor": anchor, "margin": given.margin}
    settings["schedule"] = {"timestep_spacing": given.spacing}
    print("| way | moves | all stay | class | colour | scene | right | still: stand, all stay | seconds |")
    print("|" + " --- |" * 9)
    for way in given.ways:
        start = time.monotonic()
        draw = rendered() if way == "rendered" else drawer(way, given.adapter, settings, device)
        found = score_motion(WEIGHTS, str(device), draw, given.clips)
        keys = ("as_asked", "all_stay", "class_stays", "color_stays", "scene_stays", "right")
        cells = [f"{found[f'moving_{key}']:g}" for key in keys]
        cells.append(f"{found['still_as_asked']:g}, {found['still_all_stay']:g}")
        print(f"| {way} | {' | '.join(cells)} | {time.monotonic() - start:.0f} |", flush=True)


if __name__ == "__main__":
    main()
