"""The attribute probe: what a picture of the pocket world shows. The judge of truth there.

A small ResNet (transformers' ResNetForImageClassification) whose logits are
[13 scenes | 14 kinds | 8 accessories | 14 x 11: the colour of the subject of each kind].
Scene is one of many; kinds and accessories are present or not; colours are read for kinds that are present.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import ResNetForImageClassification

from cdiff.pocket.world.spec import ACCESSORIES, COLORS, KINDS, SCENES

SIDE = 256  # the side a picture is enlarged to before the network, so that small things stay visible
SPLITS = (len(SCENES), len(KINDS), len(ACCESSORIES), len(KINDS) * len(COLORS))


@dataclass(frozen=True)
class Seen:
    """What the probe sees: `colors` maps each kind present to its colour, in order of confidence."""

    scene: str
    kinds: tuple[str, ...]
    accessories: tuple[str, ...]
    colors: dict[str, str]


def split_logits(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(B, 189) to scenes (B, 13), kinds (B, 14), accessories (B, 8), colours (B, 14, 11)."""
    scenes, kinds, accessories, colors = logits.split(SPLITS, dim=-1)
    return scenes, kinds, accessories, colors.view(-1, len(KINDS), len(COLORS))


def enlarge(images: torch.Tensor) -> torch.Tensor:
    return F.interpolate(images, size=(SIDE, SIDE), mode="bilinear", align_corners=False)


class Probe:
    """Reads pictures in batches on one device."""

    def __init__(self, folder: Path, device: str | torch.device = "cpu"):
        self.device = torch.device(device)
        self.model = ResNetForImageClassification.from_pretrained(folder, dtype=torch.float32).to(self.device).eval()

    @torch.inference_mode()
    def read(self, images: list[Image.Image], batch_size: int = 32) -> list[Seen]:
        """What each picture (RGB, any size) shows."""
        seen = []
        for start in range(0, len(images), batch_size):
            batch = [
                np.asarray(i.convert("RGB").resize((SIDE, SIDE), Image.BILINEAR))
                for i in images[start : start + batch_size]
            ]
            pixels = torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2).float().div(127.5).sub(1).to(self.device)
            seen += [
                self._words(*row) for row in zip(*(part.cpu() for part in split_logits(self.model(pixels).logits)))
            ]
        return seen

    @staticmethod
    def _words(scene: torch.Tensor, kinds: torch.Tensor, accessories: torch.Tensor, colors: torch.Tensor) -> Seen:
        order = [i for i in kinds.argsort(descending=True).tolist() if kinds[i] > 0] or [int(kinds.argmax())]
        return Seen(
            SCENES[int(scene.argmax())],
            tuple(KINDS[i] for i in order),
            tuple(ACCESSORIES[i] for i in range(len(ACCESSORIES)) if accessories[i] > 0),
            {KINDS[i]: COLORS[int(colors[i].argmax())] for i in order},
        )
