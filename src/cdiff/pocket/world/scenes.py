"""The backgrounds of the pocket world, each in VARIANTS kept variants."""

from __future__ import annotations

import random
from functools import lru_cache

from PIL import Image

from cdiff.pocket.world import scenes_indoor, scenes_land, scenes_nature, scenes_shore
from cdiff.pocket.world.spec import SCENES

VARIANTS = 48

# For each scene its painter and the range of its horizon's height (share of the picture, from below).
_PAINTERS = {
    "studio": (scenes_indoor.studio, 0.30, 0.44),
    "beach": (scenes_shore.beach, 0.54, 0.62),
    "snow": (scenes_nature.snow, 0.40, 0.50),
    "jungle": (scenes_nature.jungle, 0.30, 0.38),
    "city": (scenes_indoor.city, 0.34, 0.42),
    "mountain": (scenes_land.mountain, 0.38, 0.46),
    "desert": (scenes_land.desert, 0.42, 0.52),
    "night": (scenes_land.night, 0.36, 0.46),
    "grass": (scenes_nature.grass, 0.48, 0.60),
    "wooden floor": (scenes_indoor.wooden_floor, 0.42, 0.54),
    "pink fabric": (scenes_indoor.pink_fabric, 0.60, 0.75),
    "autumn": (scenes_nature.autumn, 0.36, 0.46),
    "water": (scenes_shore.water, 0.62, 0.72),
}
assert set(_PAINTERS) == set(SCENES)
# How far in front of the horizon the farthest subject stands: past the sea on a beach, past the kerb in a city.
_GAP = {"beach": 0.24, "city": 0.12, "water": 0.2, "pink fabric": 0.2, "wooden floor": 0.12, "grass": 0.16}


def _start(name: str, seed: int) -> tuple[random.Random, float]:
    rng = random.Random(f"{name}/{seed % VARIANTS}")
    _, low, high = _PAINTERS[name]
    return rng, rng.uniform(low, high)


@lru_cache(maxsize=len(SCENES) * VARIANTS * 3)
def _background(name: str, seed: int, resolution: int) -> Image.Image:
    rng, horizon = _start(name, seed)
    return _PAINTERS[name][0](rng, horizon, resolution)


def background(name: str, seed: int, resolution: int = 128) -> Image.Image:
    """The scene's variant `seed % VARIANTS`. The image is shared by all callers: copy before changing it."""
    return _background(name, seed % VARIANTS, resolution)


def ground(name: str, seed: int) -> tuple[float, float]:
    """The range of y (0 top, 1 bottom) on which subjects may stand in this variant, farthest first."""
    _, horizon = _start(name, seed)
    return 1.0 - horizon + _GAP.get(name, 0.08), 0.94
