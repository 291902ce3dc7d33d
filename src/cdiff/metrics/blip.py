"""BLIP2-T (ClassDiffusion, arXiv 2405.17532): cosine of image and prompt in the space of BLIP's contrastive head.

The paper names BLIP-2 (`Salesforce/blip2-itm-vit-g`), its released code runs BLIP (`Salesforce/blip-itm-large-coco`);
the folder's config.json says which of the two it is, and the scorer's `model` says it on.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import Blip2ForImageTextRetrieval, BlipForImageTextRetrieval

from cdiff.metrics.family import ImageFamily, TextEncoder, cosines
from cdiff.metrics.interface import Reference
from cdiff.metrics.loading import load_model, read_config
from cdiff.metrics.preprocess import CLIP, Preprocess, read_preprocess


class BlipScorer(ImageFamily):
    """blip2_t: the image-text contrastive cosine; of BLIP-2's queries the one that fits the prompt best."""

    name = "blip"
    variant = ""  # known once loaded: BLIP | BLIP-2

    @property
    def model(self) -> str:
        return f"{super().model} ({self.variant}, contrastive head)" if self.variant else super().model

    def _read(self, folder: Path) -> None:
        config = read_config(folder, self.place.setting, self.place.source)
        second = config["model_type"] == "blip-2"
        cls = Blip2ForImageTextRetrieval if second else BlipForImageTextRetrieval
        device = self.place.device
        self.network = load_model(cls, folder, self.place.dtype, device, unused=("itm_head.",))
        config = self.network.config
        side = config.vision_config.image_size
        default = Preprocess((side, side), None, 3, *CLIP)
        self.preprocess = read_preprocess(folder, side, default, square=True)
        text = config.qformer_config if second else config.text_config
        encode = self._second_text if second else self._first_text
        self.text = TextEncoder(folder, encode, text.max_position_embeddings, text.vocab_size, device)
        self.variant = "BLIP-2" if second else "BLIP"

    def score_prepared(
        self, prepared: Sequence[np.ndarray], prompts: Sequence[str], references: Sequence[Reference | None]
    ) -> dict[str, np.ndarray]:
        images, texts = self.encode(prepared), self.text(prompts)
        if images.ndim == 3:  # (B, queries, D)
            return {"blip2_t": cosines(images, texts[:, None]).max(axis=1)}
        return {"blip2_t": cosines(images, texts)}

    def _image_features(self, pixels: torch.Tensor) -> torch.Tensor:
        net = self.network
        seen = net.vision_model(pixel_values=pixels).last_hidden_state
        if self.variant == "BLIP":
            return net.vision_proj(seen[:, 0])
        # The Q-Former stays in fp32 when the rest is half: transformers keeps it so.
        queries = net.query_tokens.expand(len(seen), -1, -1)
        wide = net.qformer.layernorm.weight.dtype
        found = net.qformer(query_embeds=queries.to(wide), encoder_hidden_states=seen.to(wide)).last_hidden_state
        return net.vision_projection(found.to(net.vision_projection.weight.dtype))

    def _first_text(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        hidden = self.network.text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        return self.network.text_proj(hidden[:, 0])

    def _second_text(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        net = self.network
        words = net.embeddings(input_ids=ids).to(net.qformer.layernorm.weight.dtype)
        hidden = net.qformer(query_embeds=words, query_length=0, attention_mask=mask).last_hidden_state
        return net.text_projection(hidden[:, 0].to(net.text_projection.weight.dtype))
