"""Stage `card`: weights/README.md, the model card of the pocket models."""

from __future__ import annotations

import json
from pathlib import Path

from cdiff.errors import UserError

# stage -> (the folder whose weights it makes, what they are, what they are trained on)
MODELS = {
    "vae": ("base/vae", "AutoencoderKL, 128 px to 16 x 16 x 12 latents", "pictures"),
    "clip": ("clip", "CLIPModel; its text tower is base/text_encoder, stored once", "pictures and captions"),
    "unet": ("base/unet", "UNet2DConditionModel, predicts the noise in latents", "latents and captions"),
    "probe": ("probe", "ResNetForImageClassification: reads scene, kinds, accessories, colours", "pictures, labels"),
    "identity": (
        "identity",
        "ViTModel whose CLS feature tells individuals apart",
        "pairs of pictures of one individual",
    ),
    "blip": ("blip", "BlipForImageTextRetrieval, for its ITC cosine", "pictures and captions"),
    "motion": (
        "motion",
        "MotionAdapter (AnimateDiff) for base/unet",
        "clips of 16 frames, 2 more at each end, and captions",
    ),
}
HEAD = """---
license: apache-2.0
library_name: diffusers
tags: [cdiff, pocket-world]
---

# The pocket models of cdiff

Small models of the classes of Stable Diffusion 1.5, CLIP, ViT, BLIP and AnimateDiff, trained from nothing on the pocket
world: pictures that cdiff renders itself (`cdiff.pocket.world`), with captions. No photograph, no other data and no
other model went into them. They serve to try, test and compare methods of personalisation without a GPU; they know
nothing of the real world. Each folder opens with `from_pretrained`; the tensors are stored in fp16, to be computed in
fp32 (`dtype=torch.float32`) on a CPU.
"""


def write_card(weights: Path) -> Path:
    """Writes weights/README.md from the records of the stages and scores.json; gives its path.

    Raises:
        UserError: no stage has left a record there.
    """
    records = {stage: _read(weights / "training" / f"{stage}.json") for stage in MODELS}
    records = {stage: record for stage, record in records.items() if record}
    if not records:
        raise UserError(f"no records of training in {weights / 'training'}: run the stages first")
    parts = [HEAD, _models(weights, records), _training(records), _scores(_read(weights / "scores.json")), _foot()]
    path = weights / "README.md"
    path.write_text("\n".join(parts), encoding="utf-8")
    return path


def _read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _megabytes(files: list[Path]) -> str:
    return f"{sum(file.stat().st_size for file in files) / 1e6:.2f}"


def _models(weights: Path, records: dict[str, dict]) -> str:
    rows = ["## Models\n", "| folder | what it is | trained on | MB |", "| --- | --- | --- | --- |"]
    for stage in records:
        place, what, data = MODELS[stage]
        files = sorted((weights / place).glob("*.safetensors"))
        if stage == "clip":
            files += sorted((weights / "base" / "text_encoder").glob("*.safetensors"))
        rows.append(f"| `{place}` | {what} | {data} | {_megabytes(files)} |")
    rows.append(f"| all | | | {_megabytes(sorted(weights.rglob('*.safetensors')))} |")
    return "\n".join([*rows, ""])


def passes(records: dict[str, dict]) -> list[tuple[str, dict]]:
    """(stage, record) of every training, in order: a stage that went on from its weights has several."""
    return [(stage, each) for stage, record in records.items() for each in [*record.get("before", []), record]]


def _training(records: dict[str, dict]) -> str:
    rows = ["## Training\n", "| stage | steps | batch | seconds | device | torch | date |"]
    rows.append("| --- | --- | --- | --- | --- | --- | --- |")
    for stage, record in passes(records):
        processes = record.get("processes", 1)
        device = record["device"] if processes == 1 else f"{processes} x {record['device']}"
        batch = f"{record['settings'].get('batch_size', '')}" + (f" x {processes}" if processes > 1 else "")
        numbers = (stage, record["steps"], batch, record["seconds"], device, record["torch"], record["date"])
        rows.append("| " + " | ".join(map(str, numbers)) + " |")
    rows += [
        "",
        "Each was made by `python -m cdiff task=pretrain pretrain.stage=STAGE` after `pretrain.stage=pictures` "
        "(and `clips` for motion), with these settings:",
        "",
    ]
    for stage, record in passes(records):
        words = [f"pretrain.stage={stage}"] + (
            [f"pretrain.minutes={record['minutes']}"] if record.get("minutes") else []
        )
        settings = json.dumps(record["settings"])
        note = f". {record['note']}" if record.get("note") else ""  # written by hand where a stage went another way
        rows.append(f"- `python -m cdiff task=pretrain {' '.join(words)}`: `{settings}`{note}")
    return "\n".join([*rows, ""])


def _scores(scores: dict) -> str:
    """What was measured; percentages, but for decibels and ways in shares of the side."""
    rows = ["## Scores\n"]
    if not scores:
        return "\n".join([*rows, "Not measured yet: `python -m cdiff task=pretrain pretrain.stage=scores`.", ""])
    rows += [
        "On identities, scenes and prompts that training never saw, in % unless the name says otherwise; `held_out`",
        "are combinations that no training picture shows.",
        "",
        "| model | score | value |",
        "| --- | --- | --- |",
    ]
    for model, values in scores.items():
        if isinstance(values, dict) and model != "settings":
            rows += [f"| {model} | {name} | {value} |" for name, value in values.items()]
    return "\n".join([*rows, ""])


def _foot() -> str:
    return "## Licence\n\nApache-2.0, as cdiff itself.\n"
