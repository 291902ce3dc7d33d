"""Attribute accuracy, in the pocket world alone: is what the prompt names in the picture? Its truth is known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from cdiff import pocket
from cdiff.metrics.family import Family
from cdiff.metrics.interface import Reference
from cdiff.models import no_progress_bar


class AttributeScorer(Family):
    """attr_class, attr_scene, attr_accessory, attr_color: 1 right, 0 wrong, NaN where the prompt names none."""

    name = "attributes"

    def _read(self, folder: Path) -> None:
        with no_progress_bar():
            pocket.judge_images([], [], folder, self.place.device)  # the probe is read now, and wrong ones told

    def prepare(self, image: Image.Image) -> Image.Image:
        return image.convert("RGB")

    def score_prepared(
        self, prepared: Sequence[Image.Image], prompts: Sequence[str], references: Sequence[Reference | None]
    ) -> dict[str, np.ndarray]:
        verdicts = pocket.judge_images(prepared, prompts, self.folder, self.place.device)
        return {
            metric: np.array([verdict[metric.removeprefix("attr_")] for verdict in verdicts], np.float32)
            for metric in self.metrics
        }
