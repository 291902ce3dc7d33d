"""Numbers and words that the tests of metrics share."""

from __future__ import annotations

import numpy as np
from PIL import Image

SIDE = 32
SIZES = ((64, 64), (61, 47), (33, 90), (400, 21), (32, 32), (20, 20), (77, 32))  # width, height
PROMPTS = ("a photo of a dog", "a cat on the beach", "a red barn in the snow", "dog", "a photo of a very small teapot")
WORDS = "[PAD] [UNK] [CLS] [SEP] a photo of dog cat red on the beach in snow barn very small teapot".split()
NARROW = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
LOUD = {"initializer_range": 0.3, "initializer_factor": 8.0}  # so that two images of a random model differ


def picture(seed: int, width: int, height: int) -> Image.Image:
    """Smooth noise: what resizing does to it depends on the filter."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (max(2, height // 6), max(2, width // 6), 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
