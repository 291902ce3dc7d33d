"""How much things move in a clip, by block matching: no model, and no movement in flicker or fading."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

SIDE = 128  # pixels of the shorter side that frames are measured at
BLOCK = 16  # pixels of a matched block
REACH = 14  # pixels it is looked for to each side
SMOOTH = 31  # pixels of the mean that is taken off, so that a change of light is none
GAP = 3  # frames between the two pictures compared
CHANGED = 0.05  # mean difference, of a range of 2, above which a block has changed


@torch.inference_mode()
def displacement(frames: Sequence[Image.Image], device: str | torch.device = "cpu") -> float:
    """How far things move from the first to the last frame, as a share of the shorter side.

    Blocks of frame t that changed by frame t + GAP (fewer in a shorter clip) are looked for there within REACH pixels;
    a block counts when a moved copy explains at least half of its change, which flicker and fading do not offer. The
    median way of the blocks that count, summed over the clip. 0 for fewer than two frames.
    """
    gap = min(GAP, len(frames) - 1)
    if gap < 1:
        return 0.0
    grey = _grey(frames).to(device)
    grey = grey - F.avg_pool2d(grey, SMOOTH, stride=1, padding=SMOOTH // 2, count_include_pad=False)  # no brightness
    height, width = grey.shape[-2:]
    first, second = grey[:-gap:gap], grey[gap::gap]
    first, second = first[: len(second)], second[: len(first)]
    padded = F.pad(second, (REACH,) * 4, mode="replicate")
    shifts = [(dy, dx) for dy in range(-REACH, REACH + 1) for dx in range(-REACH, REACH + 1)]
    shifts.sort(key=lambda s: s[0] ** 2 + s[1] ** 2)  # among equals the shortest way wins
    errors = torch.stack(
        [
            F.avg_pool2d(
                (padded[..., REACH + y : REACH + y + height, REACH + x : REACH + x + width] - first).abs(), BLOCK
            )
            for y, x in shifts
        ]
    ).squeeze(2)  # (shifts, pairs, blocks, blocks)
    best, where = errors.min(dim=0)
    ways = torch.tensor(shifts, dtype=torch.float32, device=device).norm(dim=1)[where]
    counts = (errors[0] > CHANGED) & (best < 0.5 * errors[0])
    total = sum(float(way[here].median()) for way, here in zip(ways, counts) if int(here.sum()) >= 2)
    return total / min(height, width) * (len(frames) - 1) / (gap * len(first))


def _grey(frames: Sequence[Image.Image]) -> torch.Tensor:
    """(N, 1, H, W) in [-1, 1], the shorter side SIDE pixels."""
    width, height = frames[0].size
    scale = SIDE / min(width, height)
    size = (round(width * scale), round(height * scale))
    small = [
        f.convert("RGB") if f.size == size else f.convert("RGB").resize(size, Image.Resampling.BOX) for f in frames
    ]
    pixels = torch.from_numpy(np.stack([np.asarray(frame) for frame in small])).permute(0, 3, 1, 2)
    return pixels.float().div(127.5).sub(1).mean(1, keepdim=True)
