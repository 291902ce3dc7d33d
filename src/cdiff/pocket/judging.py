"""Pictures judged by the probe against what their prompts ask for."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from cdiff.errors import UserError
from cdiff.pocket.probe import SPLITS, Probe
from cdiff.pocket.reading import judge, read_prompt

BATCH = 32


def judge_images(
    images: Sequence[Image.Image], prompts: Sequence[str], folder: Path, device: str | torch.device
) -> list[dict[str, float]]:
    """For each image {"class", "scene", "accessory", "color"}: 1 right, 0 wrong, NaN not asked for."""
    probe = open_probe(str(folder), str(device))
    return [judge(read_prompt(p), seen) for p, seen in zip(prompts, probe.read(list(images), BATCH), strict=True)]


@functools.lru_cache(maxsize=2)
def open_probe(folder: str, device: str) -> Probe:
    """Read once in a process.

    Raises:
        UserError: a folder that does not hold a probe.
    """
    try:
        probe = Probe(Path(folder), device)
    except Exception as error:  # safetensors and transformers raise different families
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{folder} can't be loaded as the pocket world's probe: {reason}.") from error
    if probe.model.config.num_labels != sum(SPLITS):
        labels = probe.model.config.num_labels
        raise UserError(f"{folder} is not the pocket world's probe: it has {labels} labels, not {sum(SPLITS)}.")
    return probe
