"""Stage `clips`: rendered clips for the motion stage, in shards like the pictures; and their latents."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from diffusers import AutoencoderKL

from cdiff.errors import UserError
from cdiff.pocket.pretrain.pictures import RESOLUTION, WORDS, render_shards, write_arrays
from cdiff.pocket.world.motion import FRAMES, MARGIN, Clip, clip_caption, sample_clip
from cdiff.pocket.world.render import render

SHARD = 250  # clips in a shard
LENGTH = FRAMES + 2 * MARGIN  # frames that training sees
CAPTIONS = (0.0, 0.5, 1.0)  # the `detail` of each caption kept with a clip


def clip_at(index: int, split: str = "train", base: int = 0) -> Clip:
    return sample_clip(random.Random(f"{split}/clip/{index}"), base=base, margin=MARGIN)


def render_clip_shard(folder: str, shard: int, size: int) -> int:
    """Writes clips [shard * size, (shard + 1) * size): pixels (size, LENGTH, 128, 128, 3), ids (size, 3, WORDS)."""
    from cdiff.pocket.pretrain.tokenizer import build_tokenizer

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    pixels = np.empty((size, LENGTH, RESOLUTION, RESOLUTION, 3), np.uint8)
    texts: list[str] = []
    for row in range(size):
        clip = clip_at(shard * size + row)
        for number, frame in enumerate(clip.frames):
            pixels[row, number] = np.asarray(render(frame, RESOLUTION))
        words = random.Random(f"caption/clip/{shard * size + row}")
        texts += [clip_caption(clip, words, detail) for detail in CAPTIONS]
    ids = build_tokenizer()(texts, padding="max_length", max_length=WORDS, truncation=True).input_ids
    ids = np.asarray(ids, np.int16).reshape(size, len(CAPTIONS), WORDS)
    write_arrays(folder, shard, {"ids": ids, "pixels": pixels})
    return shard


def render_clips(folder: Path, count: int, workers: int, log, size: int = SHARD) -> None:
    """Renders `count` training clips in shards of `size`; shards that exist are kept."""
    about = {"resolution": RESOLUTION, "shard": size, "frames": LENGTH}
    render_shards(render_clip_shard, folder, "clips", about, -(-count // size), workers, log)


class ClipLatents:
    """Latents of the clips, encoded shard by shard as they are rendered: (N, LENGTH, C, 16, 16) fp16 on the device."""

    def __init__(self, folder: Path, vae: AutoencoderKL, count: int, device: torch.device):
        """
        Raises:
            UserError: clips of another length, which an earlier version rendered.
        """
        self.folder, self.vae, self.filled, self.device = folder, vae, 0, device
        about = json.loads((folder / "clips.json").read_text())
        if about["frames"] != LENGTH:
            raise UserError(
                f"{folder} holds clips of {about['frames']} frames, and training takes {LENGTH}: remove it, and run "
                "task=pretrain pretrain.stage=clips again"
            )
        self.shard = about["shard"]
        state = PartialState()
        self.next, self.stride = state.process_index, state.num_processes  # each process has shards of its own
        rows = max(1, count // self.shard) * self.shard
        shape = (rows, LENGTH, vae.config.latent_channels, RESOLUTION // 8, RESOLUTION // 8)
        self.latents = torch.empty(shape, dtype=torch.float16, device=device)
        self.ids = torch.empty((rows, len(CAPTIONS), WORDS), dtype=torch.int16, device=device)

    @torch.no_grad()
    def refresh(self) -> bool:
        """Encodes the next shard if there is one and room for it.

        The posterior's mean is taken, not a sample: what stands still then has the same latents in each frame.
        """
        path = self.folder / f"{self.next:04d}-pixels.npy"
        if self.filled == len(self.latents) or not path.exists():
            return False
        pixels = np.load(path, mmap_mode="r")
        for row in range(0, self.shard, 25):
            images = torch.from_numpy(np.array(pixels[row : row + 25])).to(self.device)
            images = images.flatten(0, 1).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
                latents = self.vae.encode(images).latent_dist.mode()
            latents = (latents.float() * self.vae.config.scaling_factor).half().unflatten(0, (-1, LENGTH))
            self.latents[self.filled + row : self.filled + row + len(latents)] = latents
        ids = torch.from_numpy(np.load(self.folder / f"{self.next:04d}-ids.npy"))
        self.ids[self.filled : self.filled + self.shard] = ids.to(self.device)
        self.filled += self.shard
        self.next += self.stride
        return True
