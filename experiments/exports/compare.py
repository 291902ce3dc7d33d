"""What truncation of a LoRA costs in the pocket world: the exact adapter against exports of lower rank.

    python -m cdiff task=train concept=dog output=outputs/exports/run logger=none
    python experiments/exports/compare.py --run outputs/exports/run --out experiments/exports/results --ranks 8 32

Draws the prompts of protocol=pocket with the run's adapter and with each exported LoRA, the same noise for both, and
scores them with the shipped probe and identity model. Writes compare.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import cdiff
from cdiff.adapter import Adapter, apply_adapter, load_adapter
from cdiff.cli import main as command
from cdiff.compose import compose, to_checked_config
from cdiff.concepts import resolve_concepts
from cdiff.evaluation.protocol import read_cases
from cdiff.models import load_base
from cdiff.notebook import Opened

METRICS = ("attr_class", "attr_scene", "attr_accessory", "attr_color", "recognized", "dino_i", "clip_t")


def reopened(run: Path, exact: Opened, file: Path) -> Opened:
    """The run with a LoRA file in the place of its exact weights."""
    base = load_base(exact.config.model, torch.float32, "cpu")
    apply_adapter(base, load_adapter(file))
    apply_adapter(base, Adapter({}, exact.adapter.tokens))
    return Opened(run, exact.config, base, exact.adapter)


def scores(opened: Opened, prompts: list[str], images_per_prompt: int) -> tuple[list, dict[str, float]]:
    """The images, and each metric's mean over those it says something of."""
    images = opened.sample(prompts, images_per_prompt, seed=0)
    rows = opened.score(images, metrics=METRICS)
    table = pd.DataFrame(rows).reindex(columns=METRICS)
    return images, table.mean().dropna().to_dict()


def main() -> int:
    """Compare and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--images", type=int, default=2, help="of each prompt")
    parser.add_argument("--words", nargs="+", help="only prompts that have one of these words")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    exact = cdiff.open_run(options.run, device="cpu")
    protocol = to_checked_config(compose(["protocol=pocket"])).protocol
    prompts = [case.prompt for case in read_cases(protocol, resolve_concepts(exact.config))]
    if options.words:
        prompts = [prompt for prompt in prompts if set(options.words) & set(prompt.split())]
    started = time.perf_counter()
    reference, found = scores(exact, prompts, options.images)
    result = {"prompts": len(prompts), "images": len(reference), "exact": {"scores": found}, "ranks": {}}
    for rank in options.ranks:
        folder = options.run / "export" / f"lora-{rank}"
        if not folder.exists():
            words = ["task=export", f"run={options.run}", "format=lora", f"export.rank={rank}"]
            assert command([*words, f"export.folder={folder}"]) == 0
        told = json.loads((folder / "export.json").read_text())
        opened = reopened(options.run, exact, folder / "pytorch_lora_weights.safetensors")
        images, own = scores(opened, prompts, options.images)
        pixels = [np.asarray(each, float) for each in (np.stack(images), np.stack(reference))]
        result["ranks"][rank] = {
            "worst_layer_error": max(told["errors"].values()),
            "median_layer_error": float(np.median(list(told["errors"].values()))),
            "scores": own,
            "points": {name: 100 * (own[name] - found[name]) for name in own},
            "relative_pixel_difference": float(np.linalg.norm(pixels[0] - pixels[1]) / np.linalg.norm(pixels[1])),
        }
    result["seconds"] = round(time.perf_counter() - started, 1)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "compare.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
