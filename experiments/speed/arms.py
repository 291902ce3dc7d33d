"""One arm of the comparison, in a process of its own: `speed.py` starts it. Writes its numbers as JSON.

python experiments/speed/arms.py cdiff --model DIR --out FILE
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging as diffusers_logging

sys.path.insert(0, str(Path(__file__).parent))
from flops import peak_rate, wait
from profiles import KernelProfile
from release import Release

from cdiff.concepts import Concept
from cdiff.data.images import Picture
from cdiff.data.latents import encode_views
from cdiff.engine import train
from cdiff.grids import write_samples
from cdiff.memory import estimate, views_at_once
from cdiff.methods import prepare
from cdiff.models import DTYPES, load_base, resolve_device
from cdiff.sampling import make_pipeline, make_requests, sample
from cdiff.schema import AugmentConfig, Config, ModelConfig, SamplerConfig
from cdiff.tokens import add_tokens

STARTED = float(os.environ.get("SPEED_STARTED", time.time()))  # when the process was asked for
PROMPTS = [f"a photo of a dog {where}" for where in
           ("on the beach", "in the snow", "in the jungle", "in the city", "in the desert", "on grass",
            "at night", "on a wooden floor")]  # fmt: skip
STOCK_BATCHES = (4, 8, 16, 32)  # images at once; guidance doubles them


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("arm", choices=list(ARMS))
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40, help="of a repeat")
    parser.add_argument("--views", type=int, default=64)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--sampler-steps", type=int, default=25)
    parser.add_argument("--execution", default="auto")
    parser.add_argument("--memory", default="normal")
    parser.add_argument("--channels-last", choices=("auto", "on", "off"), default="auto")
    parser.add_argument("--fused", choices=("auto", "off"), default="auto")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--benchmark", action="store_true", help="cuDNN measures its kernels and takes the fastest")
    options = parser.parse_args()
    diffusers_logging.set_verbosity_error()
    torch.backends.cudnn.benchmark = options.benchmark
    torch.manual_seed(0)
    device = resolve_device(options.device)
    found = ARMS[options.arm](options, device)
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def load(options: argparse.Namespace, device: torch.device, precision: str, *, stock: bool = False):
    """stock: layers and layout as diffusers has them, for what cdiff is compared with."""
    conf = ModelConfig("sd15", str(options.model), resolution=options.resolution)
    conf.channels_last = False if stock else {"auto": None, "on": True, "off": False}[options.channels_last]
    conf.fused = False if stock or options.fused == "off" else None
    return load_base(conf, DTYPES[precision], device)


def summary(milliseconds: list[float], options: argparse.Namespace) -> dict[str, float]:
    """ms a step: median, least and most of the repeats; images a second."""
    middle = statistics.median(milliseconds)
    return {
        "ms_per_step": round(middle, 3),
        "ms_least": round(min(milliseconds), 3),
        "ms_most": round(max(milliseconds), 3),
        "images_per_second": round(1000 * options.batch / middle, 2),
    }


def memory(device: torch.device) -> dict[str, float]:
    """GiB that tensors held at the most, and what torch took for them."""
    if device.type != "cuda":
        return {}
    gib = 2**30
    return {
        "peak_gib": round(torch.cuda.max_memory_allocated(device) / gib, 3),
        "reserved_gib": round(torch.cuda.max_memory_reserved(device) / gib, 3),
    }


def start_counting(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


# ---- training ----


def release(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """The recipe as released."""
    base = load(options, device, options.precision, stock=True)
    recipe = Release(base, options.precision, options.batch, options.resolution)
    losses = [recipe.step()]
    wait(device)
    first = time.time() - STARTED
    losses += [recipe.step() for _ in range(4)]
    milliseconds = []
    for _ in range(options.repeats):
        wait(device)
        start = time.perf_counter()
        losses += [recipe.step() for _ in range(options.steps)]
        wait(device)
        milliseconds.append(1000 * (time.perf_counter() - start) / options.steps)
    found = summary(milliseconds, options) | memory(device)
    return found | {"seconds_to_first_step": round(first, 2), "loss_first": losses[0], "loss_last": losses[-1]}


class Silent:
    """A tracker that keeps nothing but the losses."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def log(self, values: dict[str, float], step: int) -> None:
        self.losses.append(values["loss/total"])


class Clock:
    """Told every step; looks at the time at the ends of repeats, when the device is done."""

    def __init__(self, options: argparse.Namespace, device: torch.device, warm_up: int) -> None:
        self.options, self.device, self.warm_up = options, device, warm_up
        self.done, self.started, self.milliseconds, self.first = 0, 0.0, [], 0.0

    def __call__(self, _losses: dict[str, float]) -> None:
        self.done += 1
        if self.done == 1:
            wait(self.device)
            self.first = time.time() - STARTED
        past = self.done - self.warm_up
        if past >= 0 and past % self.options.steps == 0:
            wait(self.device)
            now = time.perf_counter()
            if past:
                self.milliseconds.append(1000 * (now - self.started) / self.options.steps)
            self.started = now


def cdiff(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """cdiff's own training on views encoded ahead."""
    base = load(options, device, options.precision)
    loaded = time.time() - STARTED
    start_counting(device)
    training, per_view = training_setup(options, base, device)
    encoding = memory(device)
    start_counting(device)
    clock = Clock(options, device, warm_up=8)
    tracker = Silent()
    conf = training["conf"]
    conf.train.steps = 8 + options.repeats * options.steps
    begun = time.perf_counter()
    train(tracker=tracker, progress=clock, **training)
    wait(device)
    found = summary(clock.milliseconds, options) | memory(device)
    found |= {
        "seconds_to_base": round(loaded, 2),
        "seconds_to_first_step": round(clock.first, 2),
        "seconds_of_500_steps": round(500 * statistics.median(clock.milliseconds) / 1000, 2),
        "seconds_before_repeats": round(clock_before(begun, clock, options), 2),
        "ms_per_view_encoded": round(per_view, 3),
        "losses": tracker.losses[:60],
        "encoding_peak_gib": encoding.get("peak_gib"),
    }
    if (counted := estimate(conf)) is not None and not options.tiny:
        found |= {"estimated_gib": round(counted.training, 3), "estimated_encoding_gib": round(counted.encoding, 3)}
    return found


def clock_before(begun: float, clock: Clock, options: argparse.Namespace) -> float:
    """Seconds from the call of `train` to the first repeat: the warm-up, captures, compilation."""
    return clock.started - begun - sum(clock.milliseconds) * options.steps / 1000


def training_setup(options: argparse.Namespace, base, device: torch.device) -> tuple[dict[str, Any], float]:
    """The arguments of engine.train, and ms of the VAE a view."""
    concept = Concept("dog", "<new1>", "dog", "dog", Path())
    rows = add_tokens(base, [concept])
    side = options.resolution
    pictures = [[Picture(Path(f"{n}.png"), noise_picture(side, n)) for n in range(4)]]
    at_once = views_at_once(options.memory, side)

    def encode(count: int):
        return encode_views(
            base.vae, [concept], pictures, count, AugmentConfig(), side, 0, device, at_once, "object"
        )  # fmt: skip

    encode(at_once)
    wait(device)
    start = time.perf_counter()
    views = encode(options.views)
    wait(device)
    per_view = 1000 * (time.perf_counter() - start) / options.views
    conf = Config(model=ModelConfig("sd15", str(options.model), resolution=side), device=str(device))
    conf.precision = options.precision
    conf.train.batch_size, conf.train.execution, conf.memory = options.batch, options.execution, options.memory
    conf.train.log_every = 1 if options.steps < 10 else 10
    trainables = prepare(base, conf.method, conf.loss.spl_weight)
    return {
        "conf": conf,
        "base": base,
        "concepts": [concept],
        "rows": rows,
        "trainables": trainables,
        "views": views,
    }, per_view


def equal(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """50 steps from the same seed, by the fast path and without parts of it: how far losses and weights come apart, and
    how far bf16 by itself takes them from fp32."""
    bf16 = options.precision
    ways = {"plain": ("eager", "off", bf16), "fast": ("auto", "auto", bf16), "fused": ("eager", "auto", bf16),
            "graph": ("auto", "off", bf16), "fp32": ("eager", "off", "fp32")}  # fmt: skip
    found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for name, (execution, fused, precision) in ways.items():
        own = argparse.Namespace(**vars(options) | {"execution": execution, "fused": fused, "precision": precision})
        torch.manual_seed(0)
        training, _ = training_setup(own, load(own, device, precision), device)
        training["conf"].train.steps, training["conf"].train.log_every = 50, 1
        before = [weight.detach().cpu().clone() for weight in training["trainables"].trainable_parameters()]
        tracker = Silent()
        train(tracker=tracker, **training)
        after = [weight.detach().cpu() for weight in training["trainables"].trainable_parameters()]
        moved = torch.cat([(b - a).flatten() for a, b in zip(before, after, strict=True)])
        found[name] = torch.tensor(tracker.losses, dtype=torch.float64), moved.double()
        del training
        gc.collect()
    losses, moved = found["plain"]
    return {
        name: {
            "loss_mean_difference": (own - losses).abs().mean().item() / losses.mean().item(),
            "loss_most_different": ((own - losses).abs() / losses).max().item(),
            "movement_difference": ((way - moved).norm() / moved.norm()).item(),
        }
        for name, (own, way) in found.items()
        if name != "plain"
    } | {"steps": len(losses), "loss_mean": losses.mean().item()}


def noise_picture(side: int, seed: int):
    import numpy as np
    from PIL import Image

    pixels = np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def profile(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Which kernels the time of a training step goes to."""
    training, _ = training_setup(options, load(options, device, options.precision), device)
    seen = KernelProfile(10, 20, device)
    training["conf"].train.steps = training["conf"].train.log_every = 40
    train(tracker=Silent(), progress=seen, **training)
    return seen.found()


def profile_drawing(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """The same of a sampler's step, 16 images with guidance at once, the VAE left out."""
    base = load(options, device, options.precision)
    at_once = min(16, options.images)
    seen = KernelProfile(8, 10, device)
    sampler = SamplerConfig(steps=20, batch_size=at_once, execution="graph" if device.type == "cuda" else "eager")
    requests = make_requests(PROMPTS, max(1, at_once // len(PROMPTS)), 0)
    sample(base, requests, sampler, resolution=options.resolution, progress=seen)
    return seen.found()


def peak(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """What the GPU does at the most."""
    return {"peak_tflops": round(peak_rate(device) / 1e12, 1)}


# ---- drawing ----


def draw(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """cdiff's sampling: PROMPTS in equal shares; then the same images written as PNG."""
    base = load(options, device, options.precision)
    best: dict[str, Any] = {}
    for at_once in (16, 32) if options.images >= 32 else (2,):
        sampler = SamplerConfig(steps=options.sampler_steps, batch_size=at_once, execution=options.execution)
        requests = make_requests(PROMPTS, max(1, options.images // len(PROMPTS)), 0)
        sample(base, requests[:at_once], sampler, resolution=options.resolution)
        start_counting(device)
        seconds = []
        for _ in range(2):
            wait(device)
            start = time.perf_counter()
            images = sample(base, requests, sampler, resolution=options.resolution)
            seconds.append(time.perf_counter() - start)
        middle = statistics.median(seconds)
        if not best or middle < best["seconds"]:
            best = {"batch": at_once, "images": len(images), "seconds": round(middle, 3)} | memory(device)
    best["images_per_second"] = round(best["images"] / best["seconds"], 2)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        write_samples(Path(folder) / "samples", images, requests)
        best["seconds_of_png"] = round(time.perf_counter() - start, 3)
    return best


def stock(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """diffusers' own pipeline around the same parts with the same sampler, at its best batch size."""
    base = load(options, device, options.precision, stock=True)
    pipe = make_pipeline(base, SamplerConfig(steps=options.sampler_steps))
    requests = make_requests(PROMPTS, max(1, options.images // len(PROMPTS)), 0)
    prompts = [request.prompt for request in requests]

    def run(at_once: int, prompts: list[str], steps: int) -> float:
        wait(device)
        start = time.perf_counter()
        for begin in range(0, len(prompts), at_once):
            pipe(
                prompts[begin : begin + at_once],
                num_inference_steps=steps,
                guidance_scale=5.0,
                height=options.resolution,
                width=options.resolution,
            )
        wait(device)
        return time.perf_counter() - start

    tried = {}
    for at_once in [size for size in STOCK_BATCHES if size <= len(prompts)]:
        run(at_once, prompts[:at_once], 2)
        tried[at_once] = run(at_once, prompts[: max(at_once, 16)], 6) / max(at_once, min(16, len(prompts)))
    best = min(tried, key=tried.get)
    start_counting(device)
    seconds = statistics.median(run(best, prompts, options.sampler_steps) for _ in range(2))
    found = {"batch": best, "images": len(prompts), "seconds": round(seconds, 3)}
    found["images_per_second"] = round(len(prompts) / seconds, 2)
    return found | memory(device) | {"seconds_per_image_of_6_steps": {k: round(v, 4) for k, v in tried.items()}}


ARMS = {
    "peak": peak,
    "release": release,
    "cdiff": cdiff,
    "profile": profile,
    "profile-drawing": profile_drawing,
    "equal": equal,
    "draw": draw,
    "stock": stock,
}

if __name__ == "__main__":
    sys.exit(main())
