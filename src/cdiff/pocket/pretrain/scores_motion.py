"""Measures the motion adapter: do the subjects of drawn clips move, and do they and their scene stay who they are?"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image

from cdiff import catalog
from cdiff.convert import to_config
from cdiff.displacement import displacement
from cdiff.pocket.pretrain.scores import share, spoken
from cdiff.pocket.probe import Probe, Seen
from cdiff.pocket.world.captions import caption
from cdiff.pocket.world.motion import Clip, sample_clip, verb
from cdiff.pocket.world.sample import FRESH
from cdiff.schema import SamplerConfig, VideoConfig
from cdiff.untrusted import read_yaml

DrawClips = Callable[[list[str]], list[list[Image.Image]]]

MOVES = 0.06  # of the side, over a clip: less is standing still
STEADY = 0.9  # share of a clip's frames that must agree


def pocket_clips(adapter: Path, **changes) -> VideoConfig:
    """How task=video draws with the shipped adapter (conf/video/pocket.yaml), for another one."""
    values = _pocket_file()["video"]
    return to_config({"video": values | {"motion_adapter": str(adapter)} | changes}).video


def pocket_sampler(**changes) -> SamplerConfig:
    """The sampler that draws them."""
    return to_config({"sampler": {"name": "ddim"} | _pocket_file()["sampler"] | changes}).sampler


def _pocket_file() -> dict:
    return read_yaml(catalog.groups()["video"]["pocket"])


def fresh_clip(index: int, moving: bool) -> Clip:
    """A clip of an identity outside the training seeds, in which something moves, or nothing."""
    rng = random.Random(f"scores/clip/{index}")
    while (clip := sample_clip(rng, base=FRESH)).movement == "still":
        pass
    return clip if moving else sample_clip(rng, base=FRESH, movement="still")


def clip_prompts(count: int, moving: bool) -> list[tuple[str, dict]]:
    """Captions with the verb of fresh clips, and what each asks for (see `scores.spoken`)."""
    out = []
    for index in range(count):
        clip, rng = fresh_clip(index, moving), random.Random(f"clip prompt/{index}")
        scene = clip.frames[0]
        text = caption(scene, rng, 0.5, verb(scene.subjects[0], clip.movement, rng))
        out.append((text, spoken(scene, text)))
    return out


def steadiness(seen: Sequence[Seen]) -> dict[str, float]:
    """Share of a clip's frames in which the probe reads what it reads in most of them."""
    main = [s.kinds[0] for s in seen]
    reads = {"class": main, "color": [s.colors[k] for s, k in zip(seen, main)], "scene": [s.scene for s in seen]}
    return {name: Counter(values).most_common(1)[0][1] / len(values) for name, values in reads.items()}


def is_right(asked: dict, seen: Sequence[Seen]) -> bool:
    """Whether most frames show the class and the scene that the prompt names."""
    hits = [set(s.kinds) == asked["kinds"] and asked["scene"] in (None, s.scene) for s in seen]
    return 2 * sum(hits) > len(hits)


def score_motion(folder: Path, device: str, draw: DrawClips, count: int = 100) -> dict[str, float]:
    """Clips drawn from moving and from still prompts. In % of clips, the ways in shares of the side."""
    probe = Probe(folder / "probe", device)
    out: dict[str, float] = {}
    for name, number in (("moving", count), ("still", max(1, count // 4))):
        prompts = clip_prompts(number, name == "moving")
        clips = draw([text for text, _ in prompts])
        ways = [displacement(clip, device) for clip in clips]
        seen = [probe.read(clip) for clip in clips]
        parts = [steadiness(frames) for frames in seen]
        moved = [way > MOVES for way in ways]
        out[f"{name}_clips"] = number
        out[f"{name}_as_asked"] = share(moved if name == "moving" else [not m for m in moved])
        out[f"{name}_way_median"] = round(float(torch.tensor(ways).median()), 3)
        for key in ("class", "color", "scene"):
            out[f"{name}_{key}_stays"] = share([part[key] >= STEADY for part in parts])
        out[f"{name}_all_stay"] = share([min(part.values()) >= STEADY for part in parts])
        out[f"{name}_right"] = share([is_right(asked, frames) for (_, asked), frames in zip(prompts, seen)])
    return out
