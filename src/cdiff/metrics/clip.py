"""CLIP-T and CLIP-I (DreamBooth, arXiv 2208.12242, section 4.1), from one pass of one CLIPModel over an image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import CLIPModel

from cdiff.metrics.family import ImageFamily, TextEncoder, cosines
from cdiff.metrics.interface import Reference
from cdiff.metrics.loading import load_model
from cdiff.metrics.preprocess import CLIP, Preprocess, read_preprocess


class ClipScorer(ImageFamily):
    """clip_t: cosine(image, prompt). clip_i: mean cosine of the image with every reference picture."""

    name = "clip"
    comparing = ("clip_i",)

    def _read(self, folder: Path) -> None:
        device = self.place.device
        self.network = load_model(CLIPModel, folder, self.place.dtype, device)
        config = self.network.config
        side = config.vision_config.image_size
        default = Preprocess(side, (side, side), 3, *CLIP)
        self.preprocess = read_preprocess(folder, side, default, square=False)
        text = config.text_config
        if "clip_t" in self.metrics:
            self.text = TextEncoder(folder, self._text_features, text.max_position_embeddings, text.vocab_size, device)

    def score_prepared(
        self, prepared: Sequence[np.ndarray], prompts: Sequence[str], references: Sequence[Reference | None]
    ) -> dict[str, np.ndarray]:
        images = self.encode(prepared)
        values = {}
        if "clip_t" in self.metrics:
            values["clip_t"] = cosines(images, self.text(prompts))
        if "clip_i" in self.metrics:
            values["clip_i"] = self.similarity(images, references)
        return values

    def _image_features(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.network.get_image_features(pixel_values=pixels).pooler_output

    def _text_features(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.network.get_text_features(input_ids=ids, attention_mask=mask).pooler_output
