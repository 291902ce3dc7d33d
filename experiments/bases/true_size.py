"""Every published base at its true size with random weights: train steps and one image, measured.

    python experiments/bases/true_size.py --out experiments/bases/results          # one GPU
    python experiments/bases/true_size.py --tiny --device cpu --out /tmp/results   # the same code at tiny width

Nothing is downloaded: parts are built from the published configurations (tests/layouts.py) on the device. What runs is
cdiff's own: the views are encoded by encode_views, the training loop is engine.train (ClassDiffusion: K, V and token,
SPL), the image is drawn by sampling.sample. Weights are random, so losses and images mean nothing; shapes, memory and
times are those of the trained model. Writes true_size.json and true_size.md.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import torch
from diffusers import DDPMScheduler
from diffusers.utils import logging as diffusers_logging
from PIL import Image, ImageDraw
from transformers import CLIPTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
from layouts import CLASSES, TRUE, make, tiny
from tiny import write_tokenizer

from cdiff.concepts import Concept
from cdiff.data.images import Picture
from cdiff.data.latents import encode_views
from cdiff.engine import train
from cdiff.methods import prepare
from cdiff.models import DTYPES, Base, resolve_device, resolve_precision
from cdiff.sampling import make_requests, sample
from cdiff.schema import AugmentConfig, Config, ModelConfig, SamplerConfig
from cdiff.tokens import PromptEncoder, add_tokens, write_rows

COLUMNS = {
    "base": "base",
    "resolution": "px",
    "unet_millions": "UNet, M",
    "trained_millions": "trained, M",
    "text_shape": "text",
    "latent_shape": "latents",
    "encode_seconds_per_view": "encode, s a view",
    "step_seconds": "train step, s",
    "train_gib": "train, GiB",
    "sample_seconds": "image, s",
    "sample_gib": "draw, GiB",
}


class Silent:
    """A tracker that keeps nothing."""

    def log(self, values: dict[str, float], step: int) -> None: ...


def build(name: str, parts: dict, dtype: torch.dtype, device: torch.device) -> Base:
    """The base with random weights, each part made on the device."""
    models = {}
    with torch.device(device):
        for part in CLASSES:
            if part in parts and not part.startswith("tokenizer"):
                models[part] = make(part, parts[part]).to(dtype).requires_grad_(False).eval()
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder, "1"), parts.get("pad"))
        write_tokenizer(Path(folder, "2"), parts.get("pad_2"))
        tokenizers = [CLIPTokenizer.from_pretrained(Path(folder, number)) for number in "12"]
    scheduler = DDPMScheduler.from_config(parts["scheduler"])
    base = Base(
        tokenizer=tokenizers[0], scheduler=scheduler, path=f"{name}, random", dtype=dtype, device=device, **models
    )
    if base.is_sdxl:
        base.tokenizer_2, base.zero_empty_prompt = tokenizers[1], True
    return base


def picture(side: int) -> Picture:
    image = Image.new("RGB", (side, side), (200, 220, 90))
    ImageDraw.Draw(image).ellipse((side // 5, side // 5, side * 4 // 5, side * 4 // 5), fill=(150, 90, 40))
    return Picture(Path("drawn.png"), image)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak(device: torch.device) -> float | None:
    """GiB since the last call; None on a CPU."""
    if device.type != "cuda":
        return None
    found = torch.cuda.max_memory_allocated(device) / 2**30
    torch.cuda.reset_peak_memory_stats(device)
    return round(found, 2)


def measure(name: str, parts: dict, dtype: torch.dtype, device: torch.device, options: argparse.Namespace) -> dict:
    """Build, encode, train, draw; all numbers of one base."""
    torch.manual_seed(0)
    side = parts["resolution"]
    base = build(name, parts, dtype, device)
    row = {"base": name, "resolution": side, "prediction": base.prediction_type, "batch_size": options.batch}
    row["unet_millions"] = round(sum(p.numel() for p in base.unet.parameters()) / 1e6, 2)
    peak(device)

    concept = Concept("dog", "<new1>", "dog", "dog", Path())
    rows = add_tokens(base, [concept])
    views, started = options.views, time.perf_counter()
    encoded = encode_views(base.vae, [concept], [[picture(side)]], views, AugmentConfig(), side, 0, device, 1, "object")
    wait(device)
    row["encode_seconds_per_view"] = round((time.perf_counter() - started) / views, 4)
    row["latent_shape"] = list(encoded.mean.shape[1:])
    row["text_shape"] = list(PromptEncoder(base, rows).encode_sample(["a <new1> dog"]).hidden.shape[1:])
    peak(device)

    conf = Config(model=ModelConfig(name=name, resolution=side), device=str(device))
    conf.train.batch_size, conf.train.log_every = options.batch, 10_000
    trainables = prepare(base, conf.method, conf.loss.spl_weight)
    row["trained_millions"] = round(sum(p.numel() for p in trainables.named.values()) / 1e6, 2)
    conf.train.steps = options.warm_up
    train(conf, base, [concept], rows, trainables, encoded, Silent())
    conf.train.steps = options.steps
    wait(device)
    result = train(conf, base, [concept], rows, trainables, encoded, Silent())
    row["step_seconds"] = round(result.seconds / options.steps, 4)
    row["train_gib"] = peak(device)
    row["finite"] = all(value == value and abs(value) != float("inf") for value in result.losses.values())

    trainables.restore()
    write_rows(base, result.token_rows, ["<new1>"])
    gc.collect()
    sampler = SamplerConfig(steps=options.sampler_steps)
    requests = make_requests(["a <new1> dog on the beach"], 1, 0)
    sample(base, requests, SamplerConfig(steps=1), resolution=side)  # the first call is slower
    peak(device)
    wait(device)
    started = time.perf_counter()
    [image] = sample(base, requests, sampler, resolution=side)
    wait(device)
    row |= {"sample_seconds": round(time.perf_counter() - started, 3), "sampler_steps": options.sampler_steps}
    row |= {"sample_gib": peak(device), "image_size": list(image.size)}
    return row


def table(rows: list[dict], facts: dict) -> str:
    """Markdown."""
    lines = [
        f"{facts['device']}, {facts['precision']}, batch {facts['batch']}, {facts['sampler_steps']} sampler steps, "
    ]
    lines[0] += f"{facts['date']}, torch {facts['torch']}. Random weights."
    lines += ["", "| " + " | ".join(COLUMNS.values()) + " |", "|" + " --- |" * len(COLUMNS)]
    for row in rows:
        cells = []
        for key in COLUMNS:
            value = row.get(key)
            cells.append(
                " x ".join(map(str, value)) if isinstance(value, list) else "-" if value is None else str(value)
            )
        lines.append("| " + " | ".join(cells) + " |")
        if "error" in row:
            lines.append(f"| {row['base']} | {row['error']} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure the bases asked for; one that fails is told and does not stop the others. Exit code 1 if any failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bases", nargs="+", default=list(TRUE), choices=list(TRUE))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warm-up", type=int, default=3)
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--sampler-steps", type=int, default=25)
    parser.add_argument("--tiny", action="store_true", help="the same layouts at tiny width")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    diffusers_logging.set_verbosity_error()
    if options.tiny:
        torch.set_num_threads(1)  # models this small lose time to threads
    device = resolve_device(options.device)
    precision = resolve_precision(options.precision, device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine() + " CPU"
    facts = {
        "device": name,
        "precision": precision,
        "batch": options.batch,
        "sampler_steps": options.sampler_steps,
        "torch": torch.__version__,
        "date": date.today().isoformat(),
        "tiny": options.tiny,
        "command": " ".join(sys.argv),
    }
    rows = []
    for base in options.bases:
        parts = tiny(base) if options.tiny else TRUE[base]
        try:
            row = measure(base, parts, DTYPES[precision], device, options)
        except Exception as error:  # the others are still worth their time
            row = {"base": base, "error": f"{type(error).__name__}: {error}".splitlines()[0]}
        rows.append(row)
        print(json.dumps(row), flush=True)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "true_size.json").write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")
        (options.out / "true_size.md").write_text(table(rows, facts))
    print(table(rows, facts))
    return int(any("error" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
