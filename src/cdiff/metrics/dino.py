"""DINO-I (DreamBooth, arXiv 2208.12242, section 4.1): do two pictures show the same individual?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import ViTModel

from cdiff.metrics.family import ImageFamily, Place
from cdiff.metrics.interface import Reference
from cdiff.metrics.loading import load_model
from cdiff.metrics.preprocess import STANDARD, Preprocess, dino_preprocess, read_preprocess


class DinoScorer(ImageFamily):
    """dino_i: mean cosine of the image's CLS feature, after the final layer norm, with every reference picture's."""

    name = "dino"
    comparing = ("dino_i",)

    def __init__(self, metrics: tuple[str, ...], place: Place, published: bool) -> None:
        """`published`: DINO's own evaluation preprocessing, else what the model's folder says."""
        super().__init__(metrics, place)
        self.published = published

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
        return {"dino_i": self.similarity(self.encode(prepared), references)}

    def _image_features(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.network(pixel_values=pixels).last_hidden_state[:, 0]
