"""Made backgrounds: studio, wooden floor, pink fabric, city."""

from __future__ import annotations

import random

import numpy as np
from PIL import Image

from cdiff.pocket.world.canvas import Frame, darken, lighten, mix
from cdiff.pocket.world.scenes_kit import (
    WHITE,
    blend,
    clouds,
    coordinates,
    glow,
    gradient,
    noise,
    paint,
    round_tree,
    smoothstep,
    to_image,
)

BACKDROPS = (
    (228, 232, 238),
    (240, 222, 196),
    (196, 226, 208),
    (196, 214, 244),
    (244, 210, 204),
    (220, 206, 244),
    (246, 232, 180),
    (184, 222, 230),
    (226, 220, 212),
    (214, 228, 178),
)


def studio(rng: random.Random, g: float, n: int) -> Image.Image:
    """A paper sweep: wall and floor of one hue melt into each other, light from above one side."""
    tone = mix(rng.choice(BACKDROPS), rng.choice(BACKDROPS), rng.uniform(0.0, 0.25))
    wall, floor = darken(tone, rng.uniform(0.02, 0.1)), lighten(tone, rng.uniform(0.2, 0.45))
    soft = rng.uniform(0.03, 0.1)
    pixels = gradient(
        n,
        ((0.0, darken(floor, 0.07)), (g - soft, floor), (g + soft, wall), (1.0, darken(wall, rng.uniform(0.02, 0.12)))),
    )
    side = rng.uniform(0.2, 0.8)
    pixels = blend(pixels, WHITE, glow(n, side, rng.uniform(0.6, 0.85), 0.8, 0.7) * rng.uniform(0.25, 0.5))
    pixels = blend(pixels, darken(tone, 0.55), glow(n, 0.5, g * 0.36, 0.7, 0.16) * 0.12)
    # A faint vignette keeps the eye in the middle.
    return to_image(blend(pixels, darken(tone, 0.5), (1.0 - glow(n, 0.5, 0.5, 1.25, 1.25)) * 0.16))


def wooden_floor(rng: random.Random, g: float, n: int) -> Image.Image:
    """Boards run to a vanishing point; behind them a wall with a skirting board."""
    wood = rng.choice(((196, 142, 92), (176, 120, 74), (214, 164, 112), (154, 102, 66), (204, 150, 84), (188, 132, 98)))
    wall = rng.choice(
        (
            (232, 226, 212),
            (206, 220, 222),
            (222, 210, 226),
            (196, 212, 196),
            (238, 214, 196),
            (188, 200, 220),
            (236, 224, 180),
        )
    )
    pixels = gradient(
        n, ((0.0, darken(wood, 0.06)), (g, lighten(wood, 0.16)), (g + 0.001, darken(wall, 0.07)), (1.0, wall))
    )
    lit = rng.uniform(0.15, 0.85)
    paper = rng.choice(("plain", "stripes", "dots", "panel"))
    thing = rng.choice(("window", "picture", "shelf", "none"))
    left = rng.random() < 0.5
    apex = (rng.uniform(0.3, 0.7), g + rng.uniform(0.35, 0.6))
    boards = rng.choice((13, 16, 19))

    def shapes(f: Frame) -> None:
        if paper == "stripes":
            for k in range(9):
                f.polygon(
                    [(k / 8 - 0.03, g), (k / 8 + 0.03, g), (k / 8 + 0.03, 1), (k / 8 - 0.03, 1)],
                    lighten(wall, 0.3),
                    150,
                )
        elif paper == "dots":
            for k in range(40):
                f.ellipse(
                    (k % 8 + (0.5 if k // 8 % 2 else 0.0)) / 8 + 0.03,
                    g + 0.1 + (k // 8) * 0.12,
                    0.014,
                    0.014,
                    darken(wall, 0.13),
                )
        elif paper == "panel":
            for k in range(12):
                f.line([(k / 11, g), (k / 11, g + 0.2)], 0.006, darken(wall, 0.16))
            f.line([(-0.1, g + 0.2), (1.1, g + 0.2)], 0.018, lighten(wall, 0.4))
        x = 0.16 if left else 0.84
        if thing == "window":
            f.polygon([(x - 0.14, g + 0.16), (x + 0.14, g + 0.16), (x + 0.14, 0.95), (x - 0.14, 0.95)], (250, 248, 242))
            f.polygon(
                [(x - 0.115, g + 0.185), (x + 0.115, g + 0.185), (x + 0.115, 0.925), (x - 0.115, 0.925)],
                (178, 218, 240),
            )
            f.ellipse(x + 0.02, g + 0.2, 0.09, 0.035, (150, 200, 130))
            f.line([(x, g + 0.17), (x, 0.94)], 0.016, (250, 248, 242))
            f.line([(x - 0.12, (g + 1.12) / 2), (x + 0.12, (g + 1.12) / 2)], 0.016, (250, 248, 242))
        elif thing == "picture":
            f.polygon(
                [(x - 0.11, g + 0.2), (x + 0.11, g + 0.2), (x + 0.11, g + 0.42), (x - 0.11, g + 0.42)],
                darken(wood, 0.3),
            )
            f.polygon(
                [(x - 0.09, g + 0.22), (x + 0.09, g + 0.22), (x + 0.09, g + 0.4), (x - 0.09, g + 0.4)], (250, 244, 230)
            )
            f.ellipse(x - 0.02, g + 0.3, 0.045, 0.045, rng.choice(((240, 150, 90), (110, 170, 200), (230, 190, 80))))
        elif thing == "shelf":
            f.line([(x - 0.15, g + 0.26), (x + 0.15, g + 0.26)], 0.022, darken(wood, 0.2))
            for k in range(5):
                b = x - 0.12 + k * 0.046
                high = g + 0.27 + rng.uniform(0.09, 0.15)
                f.polygon(
                    [(b, g + 0.27), (b + 0.038, g + 0.27), (b + 0.038, high), (b, high)],
                    rng.choice(((196, 92, 84), (94, 140, 160), (226, 186, 96), (120, 150, 110))),
                )

        # Boards: every other one a little lighter or darker, joints here and there.
        def at(u: float, y: float) -> tuple[float, float]:
            t = (apex[1] - y) / apex[1]
            return apex[0] + (u - apex[0]) * t, y

        step = 3.6 / boards
        for k in range(boards):
            u = -1.3 + k * step
            tone = rng.uniform(-0.14, 0.14)
            f.polygon(
                [at(u, g), at(u + step, g), at(u + step, -0.02), at(u, -0.02)],
                WHITE if tone > 0 else (60, 26, 8),
                round(abs(tone) * 255),
            )
            f.line([at(u, g), at(u, -0.02)], 0.007, darken(wood, 0.42), 170)
            for _ in range(2):
                y = g * rng.random() ** 1.6
                f.line([at(u, y), at(u + step, y)], 0.006, darken(wood, 0.42), 150)
            for _ in range(2):
                y, v = rng.uniform(0, g * 0.9), u + step * rng.uniform(0.2, 0.8)
                f.line([at(v, y), at(v, y - 0.1)], 0.004, darken(wood, 0.3), 110)
        f.polygon([(-0.1, g - 0.012), (1.1, g - 0.012), (1.1, g + 0.055), (-0.1, g + 0.055)], lighten(wall, 0.62))
        f.line([(-0.1, g + 0.042), (1.1, g + 0.042)], 0.007, darken(wall, 0.12))
        f.polygon([(-0.1, g - 0.012), (1.1, g - 0.012), (1.1, g - 0.04), (-0.1, g - 0.04)], (40, 20, 10), 50)
        f.polygon(
            [(lit - 0.12, g - 0.03), (lit + 0.2, g - 0.03), (lit + 0.5, -0.02), (lit - 0.02, -0.02)],
            (255, 240, 200),
            40,
        )

    return paint(pixels, shapes)


def pink_fabric(rng: random.Random, g: float, n: int) -> Image.Image:
    """Cloth all over: soft folds with a lit and a shaded flank."""
    pink = rng.choice(((246, 150, 184), (240, 132, 174), (250, 168, 196), (236, 140, 190), (244, 142, 168)))
    x, y = coordinates(n)
    pixels = gradient(n, ((0.0, pink), (1.0, lighten(pink, 0.1))))
    lean, count = rng.uniform(-0.9, 0.9), rng.uniform(2.2, 3.6)
    bend, ripple = noise(n, rng, 2, 3), noise(n, rng, 5, 4)
    t = (x + lean * y) * count + bend * rng.uniform(0.45, 0.75) + ripple * 0.08
    t = t - np.floor(t)
    lit = smoothstep(1.0 - np.abs(t - 0.34) * 4.2)
    crease = smoothstep(1.0 - np.abs(t - 0.8) * 5.0)
    flank = smoothstep((t - 0.34) * 2.0) * smoothstep((1.0 - t) * 6.0)
    depth = 0.75 + 0.35 * noise(n, rng, 3, 3)
    pixels = blend(pixels, (255, 226, 236), lit * depth * 0.75)
    pixels = blend(pixels, darken(pink, 0.42), flank * depth * 0.32)
    pixels = blend(pixels, (150, 44, 98), crease * depth * 0.34)
    # A calmer, flatter patch in the middle carries the subject.
    return to_image(blend(pixels, lighten(pink, 0.12), glow(n, 0.5, g * 0.5, 0.62, 0.36) * 0.45))


CITY_SKIES = (
    ((150, 204, 240), (224, 240, 248), (158, 184, 212), (92, 120, 156), False),
    ((116, 130, 196), (250, 190, 160), (150, 122, 170), (84, 74, 126), True),
    ((62, 84, 150), (186, 150, 190), (96, 96, 158), (52, 58, 108), True),
    ((178, 206, 226), (244, 232, 214), (190, 176, 176), (136, 108, 110), False),
    ((246, 170, 130), (254, 224, 170), (208, 142, 140), (132, 88, 112), True),
)
FACADES = (
    (198, 110, 92),
    (226, 184, 130),
    (112, 142, 172),
    (166, 124, 140),
    (218, 204, 186),
    (122, 150, 140),
    (150, 138, 160),
    (232, 152, 110),
)


def city(rng: random.Random, g: float, n: int) -> Image.Image:
    """A far skyline, a row of near houses with windows, pavement and a street."""
    top, low, far, near, lamps = rng.choice(CITY_SKIES)
    road = mix((112, 114, 124), near, 0.25)
    pixels = gradient(n, ((0.0, darken(road, 0.08)), (g - 0.08, lighten(road, 0.1)), (g, low), (1.0, top)))

    def shapes(f: Frame) -> None:
        if lamps:
            f.ellipse(rng.uniform(0.3, 0.7), 0.88, 0.045, 0.045, (255, 246, 214))
        else:
            clouds(f, rng, 0.82, 3)
        x = -0.04
        while x < 1.0:
            w, h = rng.uniform(0.06, 0.13), rng.uniform(0.22, 0.42) + (0.1 if abs(x - 0.5) > 0.3 else 0.0)
            f.polygon(
                [(x, g - 0.02), (x + w, g - 0.02), (x + w, g + h), (x, g + h)], mix(far, low, rng.uniform(0.05, 0.35))
            )
            if rng.random() < 0.35:
                f.polygon([(x, g + h), (x + w, g + h), (x + w / 2, g + h + 0.06)], mix(far, low, 0.2))
            for k in range(round(h / 0.06)):
                f.line(
                    [(x + 0.018, g + h - 0.04 - k * 0.055), (x + w - 0.018, g + h - 0.04 - k * 0.055)],
                    0.012,
                    (255, 232, 160) if lamps else lighten(far, 0.5),
                    130,
                )
            x += w + rng.uniform(0.0, 0.02)
        x = -0.06
        while x < 1.02:
            w = rng.uniform(0.15, 0.21)
            middle = abs(x + w / 2 - 0.5) < 0.26
            h = rng.uniform(0.1, 0.2) if middle else rng.uniform(0.34, 0.56)
            wall = mix(rng.choice(FACADES), near, 0.5 if lamps else 0.14)
            f.polygon([(x, g - 0.03), (x + w, g - 0.03), (x + w, g + h), (x, g + h)], wall)
            f.polygon(
                [(x + w * 0.86, g - 0.03), (x + w, g - 0.03), (x + w, g + h), (x + w * 0.86, g + h)], (20, 16, 50), 40
            )
            f.polygon(
                [
                    (x - 0.008, g + h),
                    (x + w + 0.008, g + h),
                    (x + w + 0.008, g + h + 0.022),
                    (x - 0.008, g + h + 0.022),
                ],
                darken(wall, 0.3),
            )
            columns = 3
            for j in range(max(1, int((h - 0.02) / 0.085))):
                for i in range(columns):
                    wx, wy = x + w * (0.14 + 0.27 * i), g + h - 0.07 - 0.085 * j
                    lit = rng.random() < (0.6 if lamps else 0.12)
                    glass = (255, 224, 130) if lit else mix((150, 190, 214), near, 0.5 if lamps else 0.1)
                    f.polygon([(wx, wy), (wx + w * 0.17, wy), (wx + w * 0.17, wy + 0.05), (wx, wy + 0.05)], glass)
            x += w + rng.choice((0.0, 0.0, 0.015))
        curb = mix((206, 202, 198), near, 0.3 if lamps else 0.08)
        f.polygon([(-0.1, g - 0.1), (1.1, g - 0.1), (1.1, g), (-0.1, g)], curb)
        for k in range(12):
            f.line([(k / 10 - 0.06 + (k - 5) * 0.012, g - 0.085), (k / 10 - 0.06, g)], 0.005, darken(curb, 0.18), 180)
        f.polygon([(-0.1, g - 0.125), (1.1, g - 0.125), (1.1, g - 0.1), (-0.1, g - 0.1)], darken(curb, 0.26))
        y, shift = g * 0.34, rng.random() * 0.2
        for k in range(-1, 5):
            a = k * 0.27 + shift
            f.polygon(
                [(a, y - 0.014), (a + 0.14, y - 0.014), (a + 0.15, y + 0.012), (a + 0.015, y + 0.012)],
                (250, 240, 214),
                215,
            )
        for side in rng.choice(((0.06,), (0.94,), (0.05, 0.95))):
            inward = 0.07 if side < 0.5 else -0.07
            f.line([(side, g - 0.09), (side, g + 0.32), (side + inward, g + 0.34)], 0.018, (56, 58, 74))
            f.ellipse(side + inward, g + 0.325, 0.036, 0.024, (255, 238, 170))
            if lamps:
                f.ellipse(side + inward, g + 0.31, 0.1, 0.1, (255, 230, 150), alpha=60)
        if not lamps and rng.random() < 0.6:
            round_tree(f, rng.choice((0.12, 0.88)), g - 0.06, 0.24, (98, 156, 92))

    return paint(pixels, shapes)
