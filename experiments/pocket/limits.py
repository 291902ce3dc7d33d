"""What no recipe can beat: fresh renders of the shipped individuals, and the same through the VAE, recognized.

    python experiments/pocket/limits.py

Each of 64 pictures is recognized if it is nearer to its individual's five pictures than to those of 99 others.
"""

from __future__ import annotations

import random

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from transformers import ViTImageProcessor, ViTModel

from cdiff.pocket import WEIGHTS
from cdiff.pocket.gallery import GALLERY, draw_concept, other_individuals, portraits
from cdiff.pocket.world.spec import SCENES


@torch.no_grad()
def features(pictures: list[Image.Image], model: ViTModel, prepare: ViTImageProcessor) -> torch.Tensor:
    """Normalised CLS features (N, D)."""
    parts = []
    for start in range(0, len(pictures), 64):
        pixels = prepare(pictures[start : start + 64], return_tensors="pt").pixel_values
        parts.append(torch.nn.functional.normalize(model(pixels).last_hidden_state[:, 0], dim=-1))
    return torch.cat(parts)


@torch.no_grad()
def through(vae: AutoencoderKL, picture: Image.Image) -> Image.Image:
    pixels = torch.from_numpy(np.asarray(picture, np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
    decoded = vae.decode(vae.encode(pixels).latent_dist.mode()).sample[0].clamp(-1, 1)
    return Image.fromarray(((decoded + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())


def main() -> None:
    model = ViTModel.from_pretrained(WEIGHTS / "identity", dtype=torch.float32, add_pooling_layer=False).eval()
    prepare = ViTImageProcessor.from_pretrained(WEIGHTS / "identity")
    vae = AutoencoderKL.from_pretrained(WEIGHTS / "base" / "vae", dtype=torch.float32).eval()
    for name, (identity, _) in GALLERY.items():
        own = features(draw_concept(name), model, prepare)
        people = other_individuals(identity.kind, 99)
        others = features([p for person in people for p in person], model, prepare).view(99, -1, own.shape[1])
        rng = random.Random(f"limits/{name}")
        fresh = [p for _ in range(8) for p in portraits(identity, rng.sample(SCENES, 8), rng)]
        for how, pictures in (("rendered", fresh), ("through the VAE", [through(vae, p) for p in fresh])):
            found = features(pictures, model, prepare)
            nearest = torch.einsum("ijd,nd->nij", others, found).mean(2).max(1).values
            share = ((found @ own.T).mean(1) > nearest).float().mean()
            print(f"{name}, {how}: {100 * share:.0f} % recognized", flush=True)


if __name__ == "__main__":
    main()
