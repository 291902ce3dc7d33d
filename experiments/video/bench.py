"""One clip by cdiff against diffusers' AnimateDiffPipeline alone: the same random weights, one process, medians.

    python experiments/video/bench.py --out experiments/video/results             # one GPU, Stable Diffusion 1.5's size
    python experiments/video/bench.py --tiny --device cpu --out /tmp/results      # the same code at tiny width

Nothing is downloaded: the base is built from the published configuration (tests/layouts.py), the motion adapter from
diffusers' defaults, which are those of the published one. The two take turns after a warm-up. `stock` is a pipeline
that the script puts together itself, from prompt to pictures; `cdiff` is cdiff.video.drawing.draw_clips, likewise;
`cdiff_written` is that with the files of task=video (GIF, prompts.json, and MP4 where imageio-ffmpeg is there). Writes
bench.json and bench.md.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import torch
from diffusers import AnimateDiffPipeline, DDIMScheduler, DDPMScheduler, MotionAdapter
from diffusers.utils import logging as diffusers_logging
from PIL import Image
from transformers import CLIPTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
from layouts import TRUE, make, tiny
from motion_adapter import FITTING
from tiny import write_tokenizer

from cdiff.models import DTYPES, Base, resolve_device, resolve_precision
from cdiff.provenance import git_commit, versions
from cdiff.sampling import Request
from cdiff.schema import SamplerConfig, VideoConfig, VideoScheduleConfig
from cdiff.video.drawing import draw_clips, make_clip_pipeline
from cdiff.video.motion import animated
from cdiff.video.writing import ClipWriter, find_ffmpeg

REQUEST = Request("a dog running on the beach", 0, 7)
NEGATIVE = "bad quality, worse quality"
GUIDANCE = 7.5
WAYS = ("stock", "cdiff", "cdiff_written")


def build(parts: dict, motion: dict, dtype: torch.dtype, device: torch.device) -> tuple[Base, MotionAdapter]:
    """Random weights, made on the device."""
    torch.manual_seed(0)
    with torch.device(device):
        models = {
            part: make(part, parts[part]).to(dtype).requires_grad_(False).eval()
            for part in ("text_encoder", "unet", "vae")
        }
        adapter = MotionAdapter(**motion).to(dtype).requires_grad_(False).eval()
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder))
        tokenizer = CLIPTokenizer.from_pretrained(folder)
    scheduler = DDPMScheduler.from_config(parts["scheduler"])
    return Base(tokenizer=tokenizer, scheduler=scheduler, path="random", dtype=dtype, device=device, **models), adapter


def stock_pipeline(base: Base, adapter: MotionAdapter) -> AnimateDiffPipeline:
    scheduler = DDIMScheduler.from_config(
        dict(base.scheduler.config) | {"clip_sample": False, "beta_schedule": "linear", "steps_offset": 1}
    )
    pipe = AnimateDiffPipeline(
        vae=base.vae,
        text_encoder=base.text_encoder,
        tokenizer=base.tokenizer,
        unet=base.unet,
        motion_adapter=adapter,
        scheduler=scheduler,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(base.device)  # the motion UNet that it makes has new parts, on the CPU


def ways(base: Base, adapter: MotionAdapter, options: argparse.Namespace, side: int) -> dict[str, Callable]:
    """Name -> a function that draws the clip and returns its frames."""
    pipe = stock_pipeline(base, adapter)
    sampler = SamplerConfig(
        name="ddim", steps=options.steps, guidance_scale=GUIDANCE, batch_size=1, negative_prompt=NEGATIVE
    )
    video = VideoConfig(frames=options.frames, schedule=VideoScheduleConfig(beta_schedule="linear", steps_offset=1))
    moving = animated(base, adapter)
    ours = make_clip_pipeline(moving, adapter, video, sampler, base.device)
    ffmpeg = find_ffmpeg()

    def stock() -> list[Image.Image]:
        return pipe(
            REQUEST.prompt,
            negative_prompt=NEGATIVE,
            num_frames=options.frames,
            height=side,
            width=side,
            num_inference_steps=options.steps,
            guidance_scale=GUIDANCE,
            generator=torch.Generator().manual_seed(REQUEST.seed),
        ).frames[0]

    def cdiff() -> list[Image.Image]:
        [(_, frames)] = draw_clips(moving, ours, [REQUEST], video, sampler, resolution=side)
        return frames

    def cdiff_written() -> list[Image.Image]:
        frames = cdiff()
        with tempfile.TemporaryDirectory() as folder:
            ClipWriter(Path(folder), Path(folder, "frames"), [REQUEST], video, {}, ffmpeg).add(REQUEST, frames)
        return frames

    return {"stock": stock, "cdiff": cdiff, "cdiff_written": cdiff_written}


def measure(draw: dict[str, Callable], repeats: int, minutes: float, device: torch.device) -> tuple[dict, dict]:
    """Way -> seconds of each repeat; way -> the frames of its last. After `minutes` no further repeat begins."""
    begun = time.monotonic()
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    frames = {name: draw[name]() for name in WAYS}  # to warm up
    print(f"warm after {time.monotonic() - begun:.0f} s", flush=True)
    for repeat in range(repeats):
        if repeat and time.monotonic() - begun > 60 * minutes:
            break
        for name in WAYS:
            _wait(device)
            start = time.perf_counter()
            frames[name] = draw[name]()
            _wait(device)
            seconds[name].append(round(time.perf_counter() - start, 4))
        print(" ".join(f"{name} {values[-1]} s" for name, values in seconds.items()), flush=True)
    return seconds, frames


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def largest_difference(a: list[Image.Image], b: list[Image.Image]) -> int:
    """Of 255 levels."""
    return max(int(np.abs(np.asarray(x).astype(int) - np.asarray(y)).max()) for x, y in zip(a, b, strict=True))


def table(facts: dict) -> str:
    """Markdown."""
    head = (
        f"{facts['device']}, {facts['precision']}, {facts['frames']} frames of {facts['resolution']} px, "
        f"{facts['steps']} DDIM steps with guidance, random weights; medians of {facts['repeats']} in turn; "
        f"{facts['date']}, torch {facts['versions']['torch']}, diffusers {facts['versions']['diffusers']}."
    )
    lines = [head, "", "| way | seconds a clip | of stock |", "| --- | --- | --- |"]
    for name in WAYS:
        lines.append(f"| {name} | {facts['median_seconds'][name]:.3f} | {facts['of_stock'][name]:.3f} |")
    lines += ["", f"Largest difference of a pixel, stock to cdiff: {facts['largest_difference']} of 255."]
    if facts["peak_gib"] is not None:
        lines.append(f"Most GPU memory: {facts['peak_gib']} GiB, with both pipelines' UNets in it.")
    return "\n".join([*lines, "", f"`{facts['command']}`", ""])


def main() -> int:
    """Measure and write. Exit code 1 where cdiff takes more than 1.1 times as long as stock."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--minutes", type=float, default=5.0, help="no further repeat begins after them")
    parser.add_argument("--tiny", action="store_true", help="the same layout at tiny width, 64 px")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    diffusers_logging.set_verbosity_error()
    if options.tiny:
        torch.set_num_threads(1)  # models this small lose time to threads
    device = resolve_device(options.device)
    precision = resolve_precision(options.precision, device)
    parts = tiny("sd15") if options.tiny else TRUE["sd15"]
    motion = FITTING | {"block_out_channels": (8, 16, 32, 32), "motion_max_seq_length": 32} if options.tiny else {}
    base, adapter = build(parts, motion, DTYPES[precision], device)
    draw = ways(base, adapter, options, parts["resolution"])
    gc.collect()
    seconds, frames = measure(draw, options.repeats, options.minutes, device)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    facts = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU",
        "precision": precision,
        "frames": options.frames,
        "resolution": parts["resolution"],
        "steps": options.steps,
        "repeats": len(seconds["stock"]),
        "tiny": options.tiny,
        "median_seconds": medians,
        "of_stock": {name: round(value / medians["stock"], 4) for name, value in medians.items()},
        "seconds": seconds,
        "largest_difference": largest_difference(frames["stock"], frames["cdiff"]),
        "peak_gib": round(torch.cuda.max_memory_allocated(device) / 2**30, 2) if device.type == "cuda" else None,
        "unet_millions": round(sum(p.numel() for p in base.unet.parameters()) / 1e6, 2),
        "motion_millions": round(sum(p.numel() for p in adapter.parameters()) / 1e6, 2),
        "mp4": find_ffmpeg() is not None,
        "date": date.today().isoformat(),
        "git": git_commit(),
        "versions": versions(),
        "command": " ".join(["python", *sys.argv]),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "bench.json").write_text(json.dumps(facts, indent=1) + "\n")
    (options.out / "bench.md").write_text(table(facts))
    print(table(facts))
    return int(facts["of_stock"]["cdiff"] > 1.1)


if __name__ == "__main__":
    sys.exit(main())
