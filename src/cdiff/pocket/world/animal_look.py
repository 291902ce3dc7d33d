"""What an individual animal looks like: colours, proportions and markings that follow from its identity."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import lru_cache

from cdiff.pocket.world import palette
from cdiff.pocket.world.canvas import Color, Point, darken, lighten, mix
from cdiff.pocket.world.spec import Identity

CREAM: Color = (250, 236, 210)
INK: Color = (38, 32, 38)

SECOND: dict[str, tuple[Color, ...]] = {
    "white": ((58, 54, 60), (146, 96, 58), (226, 146, 76), (140, 142, 152)),
    "black": ((244, 238, 228), (196, 134, 78), (146, 148, 156)),
    "grey": ((248, 245, 240), (66, 66, 76), (214, 206, 196)),
    "brown": (CREAM, (56, 36, 28), (204, 150, 98)),
    "orange": (CREAM, (146, 70, 24), (252, 250, 244)),
    "yellow": ((255, 252, 240), (176, 116, 32), (232, 150, 48)),
}
IRIS: tuple[Color, ...] = ((84, 52, 32), (52, 40, 40), (70, 140, 76), (58, 122, 190), (172, 112, 34))
CAT_IRIS: tuple[Color, ...] = ((104, 174, 70), (228, 176, 48), (84, 158, 214), (206, 122, 40), (72, 150, 128))
COLLARS: tuple[Color, ...] = (
    (214, 50, 58),
    (46, 104, 196),
    (38, 150, 110),
    (246, 190, 50),
    (140, 76, 180),
    (236, 112, 160),
)
PATTERNS = ("plain", "spots", "stripes", "patches", "socks", "mask", "bib")


@dataclass(frozen=True)
class Build:
    """Ranges of the proportions of a kind; lengths in the local frame, head half-width in head half-heights."""

    head: float
    head_rx: tuple[float, float]
    length: tuple[float, float]
    depth: tuple[float, float]
    leg: tuple[float, float]
    leg_width: tuple[float, float]
    neck: float
    sit: float


BUILD: dict[str, Build] = {
    "dog": Build(0.215, (0.90, 1.16), (0.25, 0.33), (0.145, 0.195), (0.14, 0.23), (0.046, 0.064), 0.30, 0.66),
    "cat": Build(0.205, (1.08, 1.32), (0.24, 0.31), (0.13, 0.175), (0.14, 0.20), (0.040, 0.052), 0.29, 0.65),
    "bear": Build(0.220, (1.04, 1.24), (0.28, 0.35), (0.19, 0.235), (0.11, 0.15), (0.072, 0.088), 0.29, 0.66),
    "rabbit": Build(0.205, (0.96, 1.14), (0.21, 0.265), (0.155, 0.185), (0.08, 0.11), (0.048, 0.058), 0.225, 0.495),
    "pig": Build(0.220, (1.08, 1.30), (0.28, 0.35), (0.19, 0.23), (0.10, 0.14), (0.052, 0.068), 0.27, 0.64),
    "bird": Build(0.200, (1.00, 1.16), (0.22, 0.28), (0.23, 0.27), (0.12, 0.18), (0.018, 0.024), 0.30, 0.70),
}


@dataclass(frozen=True)
class Look:
    """Everything about an individual that stays the same from picture to picture.

    `body_marks` are (u, v, size, stretch, angle): u, v in -1..1 over the body, size in local units;
    `head_marks` are (x, y, rx, ry, angle) in head units. `head` is the outline of the head.
    """

    kind: str
    main: Color
    rim: Color
    shade: Color
    light: Color
    second: Color
    belly: Color
    muzzle: Color
    inner: Color
    iris: Color
    nose: Color
    foot: Color
    ears: tuple[Color, Color]
    tail_tip: Color
    collar: Color | None
    pattern: str
    body_marks: tuple[tuple[float, float, float, float, float], ...]
    head_marks: tuple[tuple[float, float, float, float, float], ...]
    stripe_angles: tuple[float, ...]
    head: tuple[Point, ...]
    head_rx: float
    length: float
    depth: float
    leg: float
    leg_width: float
    ear: int
    ear_size: float
    ear_spread: float
    tail: int
    tail_size: float
    muzzle_width: float
    eye_gap: float
    eye_size: float
    cheek: float
    blush: bool
    whim: float


def main_color(identity: Identity) -> Color:
    """The exact shade of the main colour, from the family that the identity names."""
    return palette.main_color(identity.color, random.Random(f"{identity.kind}/{identity.seed}/shade/{identity.color}"))


@lru_cache(maxsize=4096)
def tones(color: Color) -> tuple[Color, Color, Color]:
    """Rim, shade and highlight of a colour; a black one gets a lighter rim, so that its form shows at night too."""
    bright = sum(color) / 765
    if bright < 0.25:
        return lighten(color, 0.14), darken(color, 0.30), lighten(color, 0.16)
    cool = mix(color, (92, 60, 110), 0.14)
    return darken(cool, 0.30), darken(mix(color, cool, 0.6), 0.10), lighten(color, 0.28)


def _head_outline(rx: float, cheek: float, square: float) -> tuple[Point, ...]:
    """A rounded head of half-height 1: `cheek` widens the lower half, `square` below 1 makes it boxier."""
    points = []
    for i in range(32):
        a = 2 * math.pi * i / 32
        c, s = math.cos(a), math.sin(a)
        x = math.copysign(abs(c) ** square, c) * rx * (1.0 - cheek * s)
        points.append((x, math.copysign(abs(s) ** square, s)))
    return tuple(points)


@lru_cache(maxsize=4096)
def look_of(identity: Identity) -> Look:
    """The look of an individual, the same on every call and every machine."""
    kind, family = identity.kind, identity.color
    rng = random.Random(f"{kind}/{identity.seed}")
    build = BUILD[kind]
    main = main_color(identity)
    rim, shade, light = tones(main)
    choices = SECOND.get(family) or (CREAM, darken(main, 0.5), lighten(main, 0.62))
    second = choices[rng.randrange(3)]
    dark = family == "black"
    pale = lighten(main, 0.5) if not dark else lighten(main, 0.18)
    pale = mix(pale, CREAM, 0.4) if family not in ("white", "grey", "black") else pale

    # The pattern is drawn after the proportions from its own stream, so both stay independent of the colour.
    marks = random.Random(f"{kind}/{identity.seed}/marks")
    pattern = marks.choice(PATTERNS)
    count = marks.randint(4, 6)
    spots = []
    for i in range(count):
        # Both flanks: the head hides the middle of a sitting body and the front of a standing one.
        u = marks.uniform(-0.80, -0.15) if i % 3 else marks.uniform(0.45, 0.75)
        spots.append(
            (
                u,
                marks.uniform(-0.35, 0.72),
                marks.uniform(0.028, 0.055),
                marks.uniform(0.75, 1.0),
                marks.uniform(0, 180),
            )
        )
    side = marks.choice((-1, 1))
    body_marks: tuple = ()
    head_marks: tuple = ()
    stripe_angles: tuple = ()
    if pattern == "spots":
        body_marks = tuple(spots)
        brow = [
            (s * marks.uniform(0.1, 0.6), marks.uniform(0.5, 0.72), marks.uniform(0.11, 0.17)) for s in (-side, side)
        ]
        head_marks = (*((*spot, 0.12, 0.0) for spot in brow), (side * 0.74, marks.uniform(-0.3, -0.1), 0.11, 0.12, 0.0))
    elif pattern == "patches":
        body_marks = (
            (
                marks.uniform(-0.6, -0.4),
                marks.uniform(0.15, 0.35),
                marks.uniform(0.09, 0.115),
                0.8,
                marks.uniform(-20, 20),
            ),
            (marks.uniform(0.45, 0.6), marks.uniform(-0.2, 0.3), marks.uniform(0.06, 0.08), 0.9, 0.0),
        )
        head_marks = ((side * 0.48, 0.3, marks.uniform(0.36, 0.44), 0.50, side * -15),)
    elif pattern == "mask":
        both = marks.random() < 0.5
        shape = (marks.uniform(0.29, 0.36), marks.uniform(0.32, 0.40))
        head_marks = tuple((s * 0.44, 0.1, *shape, s * -20.0) for s in ((-1, 1) if both else (side,)))
    elif pattern == "stripes":
        first, step = marks.uniform(62, 72), marks.uniform(24, 29)
        stripe_angles = tuple(first + step * i for i in range(5))

    width = rng.uniform(0.85, 1.18)
    ear_colors = [main, main]
    ear_choice = rng.random()
    # Marks on one ear or both, but never so much that the main colour is in doubt.
    if pattern == "patches":
        ear_colors[0 if side < 0 else 1] = second
    elif (pattern not in ("plain", "bib") and ear_choice < 0.4) or (kind == "dog" and ear_choice < 0.6):
        ear_colors = [second, second]
    foot = second if pattern == "socks" or (pattern == "bib" and rng.random() < 0.4) else main
    if kind == "pig" and foot == main:
        foot = darken(main, 0.42) if not dark else lighten(main, 0.3)
    muzzle = (
        second if pattern == "bib" or (kind in ("dog", "bear") and rng.random() < 0.25 and sum(second) > 450) else pale
    )
    head_rx = rng.uniform(*build.head_rx)
    cheek = rng.uniform(0.0, 0.13)
    nose = INK if kind in ("dog", "bear") else (226, 120, 136)
    if kind in ("dog", "bear") and rng.random() < 0.25 and not dark:
        nose = (104, 62, 54)
    if kind == "cat" and rng.random() < 0.3:
        nose = (70, 46, 52)
    irises = CAT_IRIS if kind == "cat" else IRIS
    return Look(
        kind=kind,
        main=main,
        rim=rim,
        shade=shade,
        light=light,
        second=second,
        belly=second if pattern == "bib" else pale,
        muzzle=muzzle,
        inner=mix((244, 164, 172), main, 0.25 if not dark else 0.4),
        iris=irises[rng.randrange(len(irises))],
        nose=nose,
        foot=foot,
        ears=(ear_colors[0], ear_colors[1]),
        tail_tip=second if pattern in ("socks", "bib", "stripes") else main,
        collar=rng.choice(COLLARS) if rng.random() < 0.5 else None,
        pattern=pattern,
        body_marks=body_marks,
        head_marks=head_marks,
        stripe_angles=stripe_angles,
        head=_head_outline(head_rx, cheek, rng.uniform(0.82, 0.98)),
        head_rx=head_rx,
        length=rng.uniform(*build.length),
        depth=rng.uniform(*build.depth),
        leg=rng.uniform(*build.leg),
        leg_width=rng.uniform(*build.leg_width),
        ear=rng.randrange(4),
        ear_size=rng.uniform(0.85, 1.2),
        ear_spread=rng.uniform(-9.0, 9.0),
        tail=rng.randrange(3),
        tail_size=rng.uniform(0.85, 1.2),
        muzzle_width=width,
        eye_gap=rng.uniform(0.40, 0.50),
        eye_size=rng.uniform(0.165, 0.215),
        cheek=cheek,
        blush=rng.random() < 0.6 and not dark,
        whim=rng.random(),
    )
