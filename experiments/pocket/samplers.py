"""Which sampler draws the pocket base best: prompts of the grammar, drawn in 25 steps and read by the probe.

    python experiments/pocket/samplers.py
    python experiments/pocket/samplers.py --ways "ddim 5 1" "dpmpp 7 0" --prompts 500

The prompts are others than those of the scores (`pretrain.stage=scores`), so that the choice is not made on them.
"""

from __future__ import annotations

import argparse
import time

import torch

from cdiff.models import load_base, resolve_device
from cdiff.pocket import WEIGHTS
from cdiff.pocket.pretrain.scores import grammar_prompts, tally
from cdiff.pocket.probe import Probe
from cdiff.sampling import Request, sample
from cdiff.schema import ModelConfig, SamplerConfig

SCORED = 1000  # prompts left to the scores
COLUMNS = {
    "class": "class",
    "two_subjects": "two subjects",
    "scene": "scene",
    "accessory": "accessory",
    "color": "colour",
    "everything": "everything",
}
WAYS = [
    *(f"ddim {guidance} {eta}" for eta in (0, 0.5, 1) for guidance in (4, 5, 6)),
    *(f"{name} {guidance} 0" for name in ("dpmpp", "euler", "euler_a") for guidance in (5, 7)),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ways", nargs="+", default=WAYS, metavar="'NAME GUIDANCE ETA'")
    parser.add_argument("--prompts", type=int, default=1500)
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    device = resolve_device(given.device)
    base, probe = load_base(ModelConfig(path="pocket"), torch.float32, device), Probe(WEIGHTS / "probe", str(device))
    prompts = grammar_prompts(SCORED + given.prompts)[SCORED:]
    requests = [Request(text, number, 1000 + number) for number, (text, _) in enumerate(prompts)]
    print(f"| sampler | guidance | eta | {' | '.join(COLUMNS.values())} | seconds |")
    print("|" + " --- |" * 10)
    for way in given.ways:
        start, (name, guidance, eta) = time.monotonic(), way.split()
        sampler = SamplerConfig(name=name, steps=25, guidance_scale=float(guidance), eta=float(eta), batch_size=50)
        found = tally([asked for _, asked in prompts], probe.read(sample(base, requests, sampler)))
        cells = [f"{found.get(key, float('nan')):.1f}" for key in COLUMNS]
        print(f"| {name} | {guidance} | {eta} | {' | '.join(cells)} | {time.monotonic() - start:.0f} |", flush=True)


if __name__ == "__main__":
    main()
