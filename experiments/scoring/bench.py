"""How fast images are scored by metric models of the published sizes, and what it takes of memory.

    python experiments/scoring/bench.py speed --out experiments/scoring/results                   # one GPU
    python experiments/scoring/bench.py memory --images 100000 --out experiments/scoring/results  # a CPU does
    python experiments/scoring/bench.py speed --tiny --images 64 --device cpu --out /tmp/results

`speed`: random weights in the configurations of openai/clip-vit-base-patch32, facebook/dino-vits16 and
Salesforce/blip-itm-large-coco, images of 512 px as PNG on the disk, scored by cdiff.metrics.score_items (decoding and
preprocessing included; models loaded and one batch scored before the clock starts). `loader`: the same without models.
`memory`: task=evaluate of that many images, a tenth of them first, each in a process of its own: peak resident memory.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForImageTextRetrieval,
    CLIPConfig,
    CLIPModel,
    ViTConfig,
    ViTModel,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
from tiny import write_tokenizer

from cdiff.data.images import read_folder
from cdiff.metrics import Item, iterate_images, open_metrics, prepare_references, score_items
from cdiff.models import resolve_device
from cdiff.schema import MetricsConfig

WORDS = "[PAD] [UNK] [CLS] [SEP] a photo of dog on the beach".split()
NARROW = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
METRICS = {"clip": ["clip_t", "clip_i"], "dino": ["dino_i"], "blip": ["blip2_t"]}


def build_clip(folder: Path, tiny: bool) -> None:
    # The defaults of CLIPConfig are ViT-B/32's; the end token is found as in the published files.
    side = 32 if tiny else 224
    text, vision = NARROW | {"vocab_size": 49_408}, NARROW | {"image_size": side, "patch_size": 8}
    narrow = {"text_config": text, "vision_config": vision} if tiny else {}
    config = CLIPConfig(**narrow)
    config.text_config.eos_token_id = 2
    CLIPModel(config).save_pretrained(folder)
    crop = {"height": side, "width": side}
    CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=crop).save_pretrained(folder)
    write_tokenizer(folder)


def build_dino(folder: Path, tiny: bool) -> None:
    small = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536}
    ViTModel(ViTConfig(**(NARROW if tiny else small)), add_pooling_layer=False).save_pretrained(folder)
    ViTImageProcessorPil().save_pretrained(folder)


def build_blip(folder: Path, tiny: bool) -> None:
    large = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    vision = (NARROW if tiny else large) | {"image_size": 384}
    text = (NARROW if tiny else {}) | {"vocab_size": 30_524, "encoder_hidden_size": vision["hidden_size"]}
    config = BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=256)
    BlipForImageTextRetrieval(config).save_pretrained(folder)
    BertTokenizer(vocab={word: number for number, word in enumerate(WORDS)}).save_pretrained(folder)
    BlipImageProcessorPil(size={"height": 384, "width": 384}).save_pretrained(folder)


BUILDERS = {"clip": build_clip, "dino": build_dino, "blip": build_blip}


def draw(file: Path, seed: int, side: int) -> None:
    """A picture that compresses about as a photo does: smooth shapes under fine noise."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((side, side), Image.BICUBIC)
    noisy = np.asarray(coarse, np.int16) + rng.integers(-6, 7, (side, side, 1), dtype=np.int16)
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, compress_level=1)


def draw_all(folder: Path, count: int, side: int) -> list[Path]:
    folder.mkdir(parents=True)
    files = [folder / f"{number:06d}.png" for number in range(count)]
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda numbered: draw(numbered[1], numbered[0], side), enumerate(files)))
    return files


def speed(options: argparse.Namespace) -> dict[str, object]:
    device = resolve_device(options.device)
    rates: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as work:
        files = draw_all(Path(work, "images"), options.images, 512)
        started = time.perf_counter()
        for _ in iterate_images(files):
            pass
        rates["loader"] = options.images / (time.perf_counter() - started)
        real = read_folder(draw_all(Path(work, "real"), 5, 512)[0].parent)
        models = {name: str(Path(work, name)) for name in METRICS}
        for name, folder in models.items():
            BUILDERS[name](Path(folder), options.tiny)
        for name in [*METRICS, "all"]:
            chosen = METRICS.get(name) or [metric for metrics in METRICS.values() for metric in metrics]
            scorers = open_metrics(MetricsConfig(names=chosen, **models), "photo", device)
            reference = prepare_references(scorers, real)
            items = [Item(file, "a photo of a dog on the beach", reference) for file in files]
            list(score_items(scorers, items[: options.batch], options.batch))
            seconds = []
            for _ in range(options.repeats):
                started = time.perf_counter()
                rows = list(score_items(scorers, items, options.batch))
                seconds.append(time.perf_counter() - started)
                assert len(rows) == options.images and not any(row.fault for row in rows)
            rates[name] = options.images / median(seconds)
            print(f"{name}: {rates[name]:.0f} images/s", flush=True)
    return {"images": options.images, "pixels": 512, "batch_size": options.batch, "repeats": options.repeats,
            "images_per_second": {name: round(rate, 1) for name, rate in rates.items()}}  # fmt: skip


def memory(options: argparse.Namespace) -> dict[str, object]:
    """Peak resident memory of the same command over a tenth of the images and over all."""
    peaks = {}
    with tempfile.TemporaryDirectory() as work:
        for name in ("clip", "dino"):
            BUILDERS[name](Path(work, name), tiny=True)
        pictures = draw_all(Path(work, "pictures"), 25, 64)
        for count in (options.images // 10, options.images):
            folder = Path(work, f"of-{count}")
            (folder / "samples").mkdir(parents=True)
            for number in range(count):
                os.link(pictures[number % 25], folder / "samples" / f"{number:06d}.png")
            prompts = {f"{number:06d}": f"a photo of a <new1> dog {number % 25}" for number in range(count)}
            (folder / "prompts.json").write_text(json.dumps(prompts))
            command = [sys.executable, str(Path(__file__)), "evaluate", str(folder), work]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            peaks[count] = json.loads(done.stdout.splitlines()[-1])
            print(f"{count} images: {peaks[count]}", flush=True)
    return {"evaluations": peaks}


def evaluate(folder: str, work: str) -> dict[str, float]:
    """In a process of its own: task=evaluate of a folder, then this process's peak."""
    from cdiff.cli import main

    started = time.perf_counter()
    words = [f"images={folder}", f"metrics.clip={work}/clip", f"metrics.dino={work}/dino", "metrics.names=[clip_t]"]
    code = main(["task=evaluate", *words, "model=sd15", "logger=none", "device=cpu", f"output={folder}-run"])
    assert code == 0, code
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"peak_mib": round(peak), "seconds": round(time.perf_counter() - started, 1)}


def about(device: str) -> dict[str, object]:
    chip = torch.cuda.get_device_name() if torch.cuda.is_available() and device != "cpu" else platform.machine()
    return {"date": str(date.today()), "device": chip, "cores": os.cpu_count(), "torch": torch.__version__,
            "command": "python " + " ".join(sys.argv)}  # fmt: skip


def measure() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["speed", "memory"])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tiny", action="store_true", help="narrow models, to try the script")
    parser.add_argument("--out", type=Path, required=True, help="gets speed.json or memory.json")
    options = parser.parse_args()
    found = {"speed": speed, "memory": memory}[options.what](options)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{options.what}.json").write_text(json.dumps(about(options.device) | found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["evaluate"]:
        print(json.dumps(evaluate(*sys.argv[2:])))
    else:
        sys.exit(measure())
