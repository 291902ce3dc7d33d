"""DINO-I (DreamBooth, arXiv 2208.12242, section 4.1): do two pictures show the same individual?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import ViTModel

from cdiff import pocket
from cdiff.metrics.family import ImageFamily, Place
from cdiff.metrics.interface import Reference
from cdiff.metrics.loading import load_model
from cdiff.metrics.preprocess import STANDARD, Preprocess, dino_preprocess, read_preprocess


class DinoScorer(ImageFamily):
    """dino_i: mean cosine of the image's CLS feature, after the final layer norm, with every reference picture's.

    recognized, in the pocket world alone: 1 where that is more than with the pictures of each of 99 other individuals
    of the class that the prompt names, else 0; NaN where the prompt names no class, or several.
    """

    name = "dino"
    comparing = ("dino_i", "recognized")

    def __init__(self, metrics: tuple[str, ...], place: Place, published: bool) -> None:
        """`published`: DINO's own evaluation preprocessing, else what the model's folder says."""
        super().__init__(metrics, place)
        self.published = published
        self.others: dict[str, np.ndarray] = {}  # class -> features of other individuals (99, pictures, D)

    def _read(self, folder: Path) -> None:
        self.network = load_model(ViTModel, folder, self.place.dtype, self.place.device, add_pooling_layer=False)
        side = self.network.config.image_size
        if self.published:
            self.preprocess = dino_preprocess(side)
        else:
            default = Preprocess((side, side), None, 2, *STANDARD)
            self.preprocess = read_preprocess(folder, side, default, square=True)

    def score_prepared(
        self, prepared: Sequence[np.ndarray], prompts: Sequence[str], references: Sequence[Reference | None]
    ) -> dict[str, np.ndarray]:
        features = self.encode(prepared)
        values = {"dino_i": self.similarity(features, references)}
        if "recognized" in self.metrics:
            values["recognized"] = self._recognized(features, prompts, values["dino_i"])
        return {metric: values[metric] for metric in self.metrics}

    def _recognized(self, features: np.ndarray, prompts: Sequence[str], own: np.ndarray) -> np.ndarray:
        """features (B, D), own (B,) cosines with the concept -> (B,)."""
        out = np.full(len(features), np.nan, np.float32)
        for row, prompt in enumerate(prompts):
            kinds = pocket.read_prompt(prompt).kinds
            if len(kinds) == 1 and not np.isnan(own[row]):
                nearest = (self._others(*kinds) @ features[row]).mean(axis=1).max()
                out[row] = own[row] > nearest
        return out

    def _others(self, kind: str) -> np.ndarray:
        if kind not in self.others:
            people = pocket.other_individuals(kind)
            pictures = [self.prepare(picture) for person in people for picture in person]
            size = self.place.batch_size
            parts = [self.encode(pictures[start : start + size]) for start in range(0, len(pictures), size)]
            self.others[kind] = np.concatenate(parts).reshape(len(people), len(people[0]), -1)
        return self.others[kind]

    def _image_features(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.network(pixel_values=pixels).last_hidden_state[:, 0]
