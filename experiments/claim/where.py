"""Where a run's forgetting sits: in the keys and values, or in the new word?

    python experiments/claim/where.py outputs/sweeps/weight_step/* --out experiments/claim/results

Draws the prompts of a protocol four times with the same noise: keys and values of the base or of the run, and the
prompt with the new word ("a <new1> dog wearing headphones") or without it ("a dog wearing headphones"). The probe says
what of the prompt is there. SPL's gradient reaches the new word alone, so it can only cure what comes in by the word.
Writes where.csv and where.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
import torch

import cdiff
from cdiff.adapter import Adapter, apply_adapter
from cdiff.compose import compose, to_checked_config
from cdiff.concepts import resolve_concepts
from cdiff.evaluation.protocol import read_cases
from cdiff.models import load_base
from cdiff.notebook import Opened

METRICS = ("attr_class", "attr_scene", "attr_accessory", "attr_color")


def with_base_weights(opened: Opened) -> Opened:
    """The run's new words in the untouched UNet."""
    base = load_base(opened.config.model, torch.float32, "cpu")
    apply_adapter(base, Adapter({}, opened.adapter.tokens))
    return Opened(opened.folder, opened.config, base, opened.adapter)


def without_tokens(prompts: list[str], opened: Opened) -> list[str]:
    for subject in opened.subjects:
        prompts = [prompt.replace(f"{subject.token} ", "") for prompt in prompts]
    return prompts


def judged(opened: Opened, prompts: list[str], images_per_prompt: int) -> dict[str, float]:
    """Each metric's mean over the images that it says something of."""
    images = opened.sample(prompts, images_per_prompt, seed=0)
    return pd.DataFrame(opened.score(images, metrics=METRICS)).reindex(columns=METRICS).mean().to_dict()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", help="folders of finished runs; others are passed over")
    parser.add_argument("--protocol", default="pocket")
    parser.add_argument("--images", type=int, default=4, help="of each prompt")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    protocol = to_checked_config(compose([f"protocol={given.protocol}"])).protocol
    rows = []
    for run in [folder for folder in given.runs if (folder / "run.json").is_file()]:
        trained = cdiff.open_run(run, device="cpu")
        prompts = [case.prompt for case in read_cases(protocol, resolve_concepts(trained.config))]
        for weights, opened in (("base", with_base_weights(trained)), ("run", trained)):
            for words, asked in (("class word", without_tokens(prompts, trained)), ("new word", prompts)):
                found = judged(opened, asked, given.images)
                rows.append({"run": run.name, "keys and values": weights, "prompt": words, **found})
                print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    given.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(given.out / "where.csv", index=False)
    (given.out / "where.md").write_text(table.to_markdown(index=False, floatfmt=".3f") + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
