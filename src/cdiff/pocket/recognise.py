"""Is this the very individual? Pictures are compared with those of the concept and of 99 others of its class."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import ViTModel

from cdiff.pocket.gallery import PICTURES, portraits
from cdiff.pocket.world.sample import FRESH, sample_identity
from cdiff.pocket.world.spec import SCENES

OTHERS = 99
SIDE = 128


class Recogniser:
    """Reads the CLS feature of the identity ViT (pocket/weights/identity)."""

    def __init__(self, folder: Path, device: str | torch.device = "cpu"):
        self.device = torch.device(device)
        self.model = ViTModel.from_pretrained(folder, add_pooling_layer=False, dtype=torch.float32)
        self.model.to(self.device).eval()

    @torch.inference_mode()
    def features(self, images: Sequence[Image.Image], batch_size: int = 64) -> torch.Tensor:
        """(N, D), of length 1, on the CPU."""
        out = []
        for start in range(0, len(images), batch_size):
            batch = [
                np.asarray(i.convert("RGB").resize((SIDE, SIDE), Image.BICUBIC))
                for i in images[start : start + batch_size]
            ]
            pixels = torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2).float().div(127.5).sub(1)
            out.append(self.model(pixels.to(self.device)).last_hidden_state[:, 0].cpu())
        return F.normalize(torch.cat(out), dim=-1)

    @lru_cache(maxsize=32)  # noqa: B019 - one recogniser lives as long as the process
    def others(self, kind: str, seed: int = 0) -> torch.Tensor:
        """(OTHERS, PICTURES, D): features of pictures of other individuals of the kind, that no model has seen."""
        rng = random.Random(f"others/{kind}/{seed}")
        people = [sample_identity(rng, kind, base=FRESH) for _ in range(OTHERS)]
        pictures = [p for who in people for p in portraits(who, rng.sample(SCENES, PICTURES), rng)]
        return self.features(pictures).view(OTHERS, PICTURES, -1)

    def places(self, images: Sequence[Image.Image], references: Sequence[Image.Image], kind: str) -> list[int]:
        """For each image, how many of the 99 others are nearer than the concept (0: recognised).

        Near is the mean cosine with an individual's pictures, as in DINO-I.
        """
        seen = self.features(images)
        own = (seen @ self.features(references).T).mean(dim=1)
        theirs = torch.einsum("nd,opd->no", seen, self.others(kind)) / PICTURES
        return (theirs > own[:, None]).sum(dim=1).tolist()
