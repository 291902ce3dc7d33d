"""The objects of the pocket world, each in many individuals.

An individual is sketched once (colours, pattern, proportions all follow from its identity)
and kept; drawing it adds only what the pose changes: tilt, wheels, hands, steam.
"""

from __future__ import annotations

import math
import random
from functools import lru_cache

from cdiff.pocket.world.canvas import Frame
from cdiff.pocket.world.objects_clock import build_clock
from cdiff.pocket.world.objects_home import build_cup, build_teapot, build_vase
from cdiff.pocket.world.objects_out import build_barn, build_car
from cdiff.pocket.world.objects_worn import build_backpack, build_boot
from cdiff.pocket.world.sketch import Art
from cdiff.pocket.world.spec import Subject

BUILDERS = {
    "car": build_car,
    "barn": build_barn,
    "teapot": build_teapot,
    "backpack": build_backpack,
    "boot": build_boot,
    "cup": build_cup,
    "clock": build_clock,
    "vase": build_vase,
}
TILT = {"car": 2.0, "barn": 1.0, "vase": 3.0, "clock": 4.0}
SHADOW = (24, 26, 52)


@lru_cache(maxsize=1024)
def _art(kind: str, color: str, seed: int) -> Art:
    return BUILDERS[kind](color, random.Random(f"{kind}/{seed}"))


@lru_cache(maxsize=4096)
def _pose(kind: str, pose: int) -> tuple[float, tuple[float, float, float]]:
    """The tilt in degrees and three free numbers of a pose."""
    rng = random.Random(f"pose/{pose}")
    reach = TILT.get(kind, 5.0)
    return rng.uniform(-reach, reach), (rng.random(), rng.random(), rng.random())


def draw_object(frame: Frame, subject: Subject) -> None:
    """Paints the subject's identity, standing on the frame's origin with its contact shadow."""
    identity = subject.identity
    art = _art(identity.kind, identity.color, identity.seed)
    tilt, free = _pose(identity.kind, subject.pose)
    turn = 2.0 * math.pi * subject.phase
    width = art.width * art.scale
    for grow, alpha in ((1.18, 26), (1.02, 34), (0.86, 44)):
        frame.ellipse(art.shift + 0.02, frame.ground, width * 0.5 * grow, 0.055 * grow, SHADOW, alpha=alpha)
    bounce = 0.03 * (0.5 - 0.5 * math.cos(2.0 * turn))
    sway = 2.5 * math.sin(turn)
    own = frame.at(art.shift, bounce, art.scale, tilt + sway)
    art.sketch.paint(own)
    if art.moving is not None:
        art.moving(own, free, subject.phase)
