"""A tiny training job: generated pictures and the words of its command line."""

from __future__ import annotations

import os
from pathlib import Path

from PIL import Image, ImageDraw

PLAIN = Path(__file__).parent / "plain"
GUIDANCE = 5.0  # where a test compares with a stock pipeline, so that no default of a sampler stands in two places
GUIDED = f"sampler.guidance_scale={GUIDANCE}"


def plain_environment(**more: str) -> dict[str, str]:
    """Of a process as a user starts it who installed no extras, with one thread and offline."""
    path = os.pathsep.join(filter(None, (str(PLAIN), os.environ.get("PYTHONPATH"))))
    plain = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}
    return {**os.environ, **plain, **more}


def draw_pictures(folder: Path, count: int = 3) -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        image = Image.new("RGB", (80 + 10 * number, 72), (200, 220, 90 + 30 * number))
        ImageDraw.Draw(image).ellipse((15 + 4 * number, 15, 60, 60), fill=(150, 90, 40))
        image.save(folder / f"{number}.png")
    return folder


def words(model: Path, pictures: Path | None = None) -> list[str]:
    """The command line of a tiny job."""
    found = ["model=sd15", f"model.path={model}", "model.resolution=64", "logger=none", "device=cpu"]
    found += ["sampler.steps=3"]
    if pictures is not None:
        found += ["task=train", "concept=folder", f"concept.images={pictures}", "concept.class_word=dog"]
        found += ["train.steps=4", "train.log_every=2", "optimizer.learning_rate=2e-3"]
    return found
