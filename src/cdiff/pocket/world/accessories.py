"""What an animal can wear. Drawn over a finished animal, at the places its anchors give.

Everything is larger than life, so that it is told apart at 128 pixels on a small animal too,
and has a rim that stands out from its own colour wherever the animal may share it.
"""

from __future__ import annotations

import math

from cdiff.pocket.world.animal_parts import fill, oval
from cdiff.pocket.world.animals import Anchors
from cdiff.pocket.world.canvas import Color, Point, darken, lighten, smooth

WHITE: Color = (255, 255, 255)
RAINBOW: tuple[Color, ...] = (
    (226, 48, 52),
    (248, 146, 40),
    (252, 220, 60),
    (70, 182, 84),
    (50, 118, 220),
    (140, 70, 190),
)


def draw_accessory(name: str, anchors: Anchors) -> None:
    """Draws the accessory called `name` (one of spec.ACCESSORIES) on the animal that gave the anchors."""
    _DRAW[name](anchors)


def _band(y: float, rx: float, ry: float, thick: float, rise: float = 0.0, count: int = 9) -> list[Point]:
    """A strip that hangs in a curve: its middle is `ry` below its ends. Upper edge first, then the lower one back."""
    upper, lower = [], []
    for i in range(count):
        t = math.pi * i / (count - 1)
        x = -rx * math.cos(t)
        dip = y - ry * math.sin(t)
        upper.append((x, dip + thick))
        lower.append((x * (1 + rise), dip))
    return upper + lower[::-1]


def _headphones(anchors: Anchors) -> None:
    head, accent = anchors.head, (64, 200, 220)
    (lx, y), (rx, _) = anchors.ears
    arch = [(lx * 1.06, y + 0.1)]
    arch += [(rx * 1.10 * math.cos(a), 1.22 * math.sin(a)) for a in (math.radians(d) for d in range(165, 10, -15))]
    arch += [(rx * 1.06, y + 0.1)]
    head.line(arch, 0.34, (238, 238, 242))
    head.line(arch, 0.24, (52, 54, 62))
    head.line([(x * 0.985, v * 1.02) for x, v in arch[3:-3]], 0.07, (120, 124, 136))
    for x in (lx, rx):
        s = 1 if x > 0 else -1
        oval(head, x - s * 0.14, y, 0.24, 0.46, (238, 238, 242))
        oval(head, x - s * 0.14, y, 0.19, 0.41, (96, 98, 108))
        oval(head, x + s * 0.05, y, 0.40, 0.62, (238, 238, 242))
        oval(head, x + s * 0.05, y, 0.35, 0.57, (44, 46, 54))
        oval(head, x + s * 0.07, y, 0.24, 0.41, accent)
        oval(head, x + s * 0.07, y, 0.15, 0.29, (60, 62, 72))


def _red_hat(anchors: Anchors) -> None:
    """A bucket hat with a wide brim: wide and low, against the tall top hat and the pointed santa hat."""
    hat = anchors.head.at(0.0, anchors.top - 0.24)
    red, dark = (228, 32, 38), (120, 10, 20)
    w = max(1.0, anchors.head_rx) * 0.78
    dome = smooth(
        [(-w, 0.0), (-w * 0.94, 0.52), (-w * 0.64, 0.88), (0, 0.97), (w * 0.64, 0.88), (w * 0.94, 0.52), (w, 0.0)],
        closed=False,
        steps=3,
    )
    fill(hat, dome, dark)
    fill(hat, dome, darken(red, 0.14), scale=0.92, dy=0.02)
    fill(hat, dome, red, scale=0.84, dx=-0.03, dy=0.05)
    fill(hat, _band(0.28, w * 0.96, 0.12, 0.20), (255, 244, 232))
    brim = w * 1.62
    oval(hat, 0, 0.0, brim, 0.30, dark)
    oval(hat, 0, 0.015, brim - 0.07, 0.235, darken(red, 0.12))
    oval(hat, -0.03, 0.06, brim - 0.16, 0.165, red)
    oval(hat, -w * 0.40, 0.70, 0.22, 0.10, WHITE, 30, alpha=90)


def _santa_hat(anchors: Anchors) -> None:
    hat = anchors.head.at(0.0, anchors.top - 0.26)
    red, dark, snow, grey = (222, 34, 40), (124, 10, 22), (253, 253, 255), (164, 172, 190)
    w = max(1.0, anchors.head_rx) * 0.86
    cone = smooth(
        [
            (-w, 0.0),
            (-w * 0.80, 0.58),
            (-0.20, 1.20),
            (0.45, 1.34),
            (1.02, 1.02),
            (1.36, 0.42),
            (1.02, 0.40),
            (0.80, 0.70),
            (w * 0.92, 0.36),
            (w, 0.0),
        ],
        closed=True,
        steps=3,
    )
    fill(hat, cone, dark)
    fill(hat, cone, red, scale=0.94, dx=0.01, dy=0.04)
    hat.line([(0.36, 1.02), (0.62, 0.84), (0.76, 0.62)], 0.08, darken(red, 0.28))
    oval(hat, -w * 0.42, 0.62, 0.16, 0.30, WHITE, -32, alpha=60)
    # The bobble and the fluffy rim: overlapping balls, first all their shaded edges, then all their whites.
    puffs = [
        (w * 1.10 * math.cos(math.radians(d)), -0.10 * math.sin(math.radians(d)) + 0.02)
        for d in (180, 144, 108, 72, 36, 0)
    ]
    for x, y in puffs:
        oval(hat, x, y, 0.30, 0.30, grey)
    for x, y in puffs:
        oval(hat, x, y + 0.02, 0.24, 0.24, snow)
    oval(hat, 1.28, 0.34, 0.34, 0.34, grey)
    oval(hat, 1.27, 0.36, 0.28, 0.28, snow)


def _top_hat(anchors: Anchors) -> None:
    hat = anchors.head.at(0.0, anchors.top - 0.20)
    black, rim, band = (34, 32, 40), (196, 196, 208), (112, 58, 176)
    w = max(1.0, anchors.head_rx) * 0.66
    tall = 1.30
    pipe = [(-w, 0.0), (-w * 0.94, 0.5), (-w * 1.08, tall), (w * 1.08, tall), (w * 0.94, 0.5), (w, 0.0)]
    brim = w * 1.72
    oval(hat, 0, 0.0, brim + 0.05, 0.27, rim)
    fill(hat, [(x * 1.07, y + (0.05 if y == tall else 0.0)) for x, y in pipe], rim)
    oval(hat, 0, 0.0, brim, 0.22, black)
    oval(hat, 0, tall, w * 1.08 + 0.05, 0.20, rim)
    fill(hat, pipe, black)
    oval(hat, 0, tall, w * 1.08, 0.155, (78, 76, 90))
    fill(hat, _band(0.14, w * 0.97, 0.06, 0.26), band)
    fill(
        hat, ((-w * 0.70, 0.48), (-w * 0.46, 0.44), (-w * 0.50, tall - 0.16), (-w * 0.76, tall - 0.10)), (120, 118, 134)
    )


def _sunglasses(anchors: Anchors) -> None:
    head = anchors.head
    _, (rx, y) = anchors.eyes
    r = min(0.50, max(0.38, anchors.eye_radius * 2.1, rx * 0.92))
    gap = max(rx, r * 1.06)
    lens = smooth(
        [(-1.02, 0.72), (0, 0.84), (1.02, 0.72), (1.0, -0.1), (0.45, -0.86), (-0.45, -0.86), (-1.0, -0.1)],
        closed=True,
        steps=3,
    )
    ring, glass = (246, 246, 250), (22, 22, 30)
    side = anchors.head_rx * 1.0
    for color, width in ((ring, 0.25), (glass, 0.15)):
        head.line([(-side, y + 0.24), (-gap, y + 0.22), (gap, y + 0.22), (side, y + 0.24)], width, color)
        for s in (-1, 1):
            fill(head, lens, color, scale=r * (1.12 if color is ring else 1.0), dx=s * gap, dy=y)
    for s in (-1, 1):
        glint = ((-0.62, 0.10), (-0.30, 0.52), (-0.02, 0.52), (-0.52, -0.16))
        fill(head, lens, (66, 76, 104), scale=r * 0.72, dx=s * gap, dy=y - 0.04)
        fill(head, lens, (34, 36, 50), scale=r * 0.72, dx=s * gap, dy=y + 0.06)
        fill(head, glint, (226, 236, 250), scale=r, dx=s * gap, dy=y)


def _rainbow_scarf(anchors: Anchors) -> None:
    """Horizontal stripes round the neck, and an end that hangs down in the same stripes."""
    frame = anchors.body
    x, y, half = anchors.neck
    unit = anchors.head.unit / frame.unit
    scarf = frame.at(x, y, unit)
    half = half / unit * 1.12
    stripe = 0.135
    rim: Color = (90, 40, 70)
    end_x, end_w = half * 0.42, 0.30
    bottom = -1.22
    fill(
        scarf,
        (
            (end_x - end_w - 0.05, -0.1),
            (end_x + end_w + 0.02, -0.1),
            (end_x + end_w + 0.12, bottom - 0.05),
            (end_x - end_w - 0.02, bottom - 0.05),
        ),
        rim,
    )
    for i in range(6):
        top = -0.30 - i * 0.15
        lean = 0.012 * i
        fill(
            scarf,
            (
                (end_x - end_w + lean, top),
                (end_x + end_w + lean, top),
                (end_x + end_w + lean, top - 0.155),
                (end_x - end_w + lean, top - 0.155),
            ),
            RAINBOW[i],
        )
    total = 6 * stripe
    fill(scarf, _band(0.18 - total - 0.05, half + 0.06, 0.26, total + 0.10), rim)
    for i, color in enumerate(RAINBOW):
        fill(scarf, _band(0.18 - (i + 1) * stripe, half, 0.26, stripe + 0.01), color)
    oval(scarf, -half * 0.45, -0.2, 0.22, 0.10, WHITE, -14, alpha=50)


def _crown(anchors: Anchors) -> None:
    crown = anchors.head.at(0.0, anchors.top - 0.22)
    gold, dark = (253, 200, 44), (134, 82, 8)
    w = max(1.0, anchors.head_rx) * 0.84
    tips = ((-1.16, 0.86), (-0.58, 1.06), (0.0, 1.20), (0.58, 1.06), (1.16, 0.86))
    points: list[Point] = [(-w, 0.0)]
    for i, (x, y) in enumerate(tips):
        points.append((x * w, y))
        if i < 4:
            points.append(((x + tips[i + 1][0]) / 2 * w, 0.44))
    points += [(w, 0.0), (w * 0.5, -0.13), (0, -0.17), (-w * 0.5, -0.13)]
    fill(crown, [(x * 1.08, y * 1.06 - (0.07 if y < 0.1 else -0.05)) for x, y in points], dark)
    fill(crown, points, gold)
    fill(crown, _band(0.10, w * 0.98, 0.15, 0.10), lighten(gold, 0.5))
    fill(crown, _band(-0.02, w * 0.98, 0.15, 0.06), darken(gold, 0.22))
    for x, y in tips:
        oval(crown, x * w, y + 0.04, 0.15, 0.15, dark)
        oval(crown, x * w, y + 0.05, 0.105, 0.105, (255, 240, 170))
    for x, y, jewel in ((-0.60, 0.24, (60, 120, 226)), (0.0, 0.20, (222, 36, 60)), (0.60, 0.24, (60, 120, 226))):
        oval(crown, x * w, y, 0.16, 0.19, dark)
        oval(crown, x * w, y, 0.115, 0.145, jewel)


def _bow_tie(anchors: Anchors) -> None:
    frame = anchors.body
    x, y, _ = anchors.neck
    bow = frame.at(x, y - 0.045, anchors.head.unit / frame.unit * 1.06)
    blue, navy = (40, 106, 226), (16, 30, 84)
    wing = smooth(
        [(0.06, 0.16), (0.50, 0.44), (0.90, 0.46), (0.96, 0.0), (0.90, -0.46), (0.50, -0.44), (0.06, -0.16)],
        closed=True,
        steps=3,
    )
    for grow, color in ((0.13, WHITE), (0.06, navy), (0.0, blue)):
        for s in (-1, 1):
            fill(bow, [(s * px * (1 + grow), py * (1 + 2 * grow)) for px, py in wing], color)
    for s in (-1, 1):
        fill(bow, ((s * 0.16, 0.10), (s * 0.46, 0.04), (s * 0.46, -0.04), (s * 0.16, -0.10)), darken(blue, 0.35))
        for dx, dy in ((0.46, 0.24), (0.78, 0.27), (0.64, -0.02), (0.46, -0.27), (0.80, -0.28)):
            oval(bow, s * dx, dy, 0.082, 0.082, WHITE)
    oval(bow, 0, 0, 0.23, 0.27, navy)
    oval(bow, -0.01, 0.02, 0.165, 0.205, lighten(blue, 0.18))


_DRAW = {
    "headphones": _headphones,
    "red hat": _red_hat,
    "santa hat": _santa_hat,
    "top hat": _top_hat,
    "sunglasses": _sunglasses,
    "rainbow scarf": _rainbow_scarf,
    "crown": _crown,
    "bow tie": _bow_tie,
}
