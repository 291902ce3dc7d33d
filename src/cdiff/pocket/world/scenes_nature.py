"""Growing things: grass, jungle, autumn, and snow over firs."""

from __future__ import annotations

import math
import random

from PIL import Image

from cdiff.pocket.world.canvas import Frame, darken, lighten, mix
from cdiff.pocket.world.scenes_kit import (
    WHITE,
    blend,
    clouds,
    edge_x,
    fir,
    flower,
    glow,
    gradient,
    ground_y,
    land,
    leaf_shape,
    paint,
    pool,
    round_tree,
    sun,
    tuft,
    wave,
)


def grass(rng: random.Random, g: float, n: int) -> Image.Image:
    """A bright meadow with flowers under a blue sky."""
    top, low = rng.choice(
        (((96, 180, 240), (214, 238, 250)), ((120, 200, 244), (236, 248, 250)), ((84, 160, 228), (200, 228, 246)))
    )
    green = rng.choice(((120, 196, 82), (102, 186, 88), (142, 204, 84), (90, 176, 84)))
    pixels = gradient(n, ((0.0, green), (g, low), (1.0, top)))
    pixels = blend(pixels, WHITE, glow(n, rng.uniform(0.2, 0.8), 1.0, 0.6, 0.4) * 0.3)
    petals = [rng.choice((WHITE, (250, 210, 70), (238, 90, 90), (246, 150, 190), (150, 120, 220))) for _ in range(2)]

    def shapes(f: Frame) -> None:
        if rng.random() < 0.4:
            sun(f, edge_x(rng, 0.3), 0.88, 0.05, (255, 226, 110))
        clouds(f, rng, 0.76, rng.choice((2, 3)))
        far = wave(rng, g, 0.025, 0.9)
        land(f, far, mix(green, low, 0.4))
        for _ in range(rng.choice((2, 4, 6))):
            x = edge_x(rng, 0.3)
            round_tree(f, x, far(x) - 0.02, rng.uniform(0.1, 0.18), mix(darken(green, 0.22), low, 0.15))
        land(f, wave(rng, g - 0.06, 0.03, 0.8), lighten(green, 0.14))
        land(f, wave(rng, g - 0.2, 0.03, 0.7), green)
        land(f, wave(rng, 0.16, 0.03, 0.9), darken(green, 0.07))
        for _ in range(60):
            y = ground_y(rng, -0.02, g - 0.06)
            near = 1.0 - y / g
            tuft(
                f,
                rng.random(),
                y,
                0.02 + 0.04 * near,
                rng.choice((darken(green, 0.16), lighten(green, 0.2), darken(green, 0.24))),
            )
        for _ in range(22):
            y = ground_y(rng, 0.02, g - 0.09)
            near = 1.0 - y / g
            flower(f, rng.random(), y + 0.02, 0.006 + 0.011 * near, rng.choice(petals))
        for k in range(26):
            x = (k + rng.random()) / 26
            if abs(x - 0.5) > 0.2 or k % 2:
                f.polygon(
                    [(x - 0.014, -0.02), (x + 0.014, -0.02), (x + rng.uniform(-0.03, 0.03), rng.uniform(0.05, 0.1))],
                    rng.choice((darken(green, 0.26), darken(green, 0.14))),
                )

    return paint(pixels, shapes)


def jungle(rng: random.Random, g: float, n: int) -> Image.Image:
    """Layers of leaves around a green-lit clearing, vines from above."""
    deep = rng.choice(((20, 72, 56), (24, 80, 48), (18, 64, 60)))
    light = rng.choice(((150, 206, 110), (178, 214, 112), (120, 196, 130)))
    earth = mix((84, 92, 50), deep, 0.25)
    lx = rng.uniform(0.35, 0.65)
    pixels = gradient(
        n, ((0.0, darken(earth, 0.15)), (g, lighten(earth, 0.12)), (g + 0.03, deep), (1.0, darken(deep, 0.1)))
    )
    pixels = blend(pixels, light, glow(n, lx, 0.62, 0.55, 0.6) * 0.75)
    pixels = blend(pixels, lighten(earth, 0.3), glow(n, 0.5, g * 0.4, 0.6, g * 0.6) * 0.45)

    def monstera(f: Frame, x: float, y: float, size: float, angle: float, fill: tuple[int, int, int]) -> None:
        """A wide leaf with a rib and side veins."""
        f.blob(leaf_shape(x, y, size, angle, 0.42), fill, steps=2)
        c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        f.line([(x, y), (x + c * size * 0.92, y + s * size * 0.92)], 0.008, lighten(fill, 0.25))
        for t in (0.25, 0.45, 0.65):
            for turn in (-42, 42):
                a = math.radians(angle + turn)
                k = size * (0.36 - abs(t - 0.45) * 0.4)
                f.line(
                    [
                        (x + c * size * t, y + s * size * t),
                        (x + c * size * t + math.cos(a) * k, y + s * size * t + math.sin(a) * k),
                    ],
                    0.005,
                    lighten(fill, 0.2),
                    180,
                )

    def shapes(f: Frame) -> None:
        for k in range(7):
            x = (k + rng.uniform(0.1, 0.9)) / 7
            w = rng.uniform(0.012, 0.028)
            f.polygon(
                [(x - w, g - 0.03), (x + w, g - 0.03), (x + w * 0.8, 1.02), (x - w * 0.8, 1.02)],
                mix(deep, light, 0.28),
                170,
            )
        for k in range(16):
            x = (k + rng.random()) / 16
            tone = mix(deep, light, rng.uniform(0.15, 0.4))
            f.polygon(leaf_shape(x, g - 0.05, rng.uniform(0.16, 0.32), rng.uniform(55, 125), 0.22), tone)
            f.polygon(
                leaf_shape(x, 1.03, rng.uniform(0.14, 0.3), rng.uniform(-125, -55), 0.3),
                mix(deep, light, rng.uniform(0.05, 0.3)),
            )
        for dx in (-0.14, 0.05, 0.2):
            f.polygon(
                [(lx + dx, 1.0), (lx + dx + 0.07, 1.0), (lx + dx * 1.8 + 0.16, g - 0.1), (lx + dx * 1.8, g - 0.1)],
                (240, 255, 190),
                26,
            )
        land(f, wave(rng, g - 0.02, 0.012, 1.2), mix(earth, (98, 150, 70), 0.45))
        land(f, wave(rng, g - 0.08, 0.02, 0.8), mix(earth, (110, 150, 72), 0.25))
        pool(f, 0.5, g * 0.36, 0.56, g * 0.36, (214, 222, 136), 96)
        for _ in range(4):
            x = rng.uniform(0.04, 0.96)
            reach, sway = rng.uniform(0.22, 0.4), rng.uniform(-0.06, 0.06)
            f.curve([(x, 1.02), (x + sway, 1.0 - reach * 0.5), (x + sway * 0.3, 1.0 - reach)], 0.012, (88, 120, 60))
            for t in (0.3, 0.5, 0.7, 0.9):
                f.polygon(leaf_shape(x + sway * t, 1.0 - reach * t, 0.05, rng.choice((-30, 210)), 0.32), (104, 168, 82))
        for side in (-1, 1):
            edge = 0.5 + side * 0.53
            for k in range(7):
                y = 0.02 + k * 0.16 + rng.uniform(-0.04, 0.04)
                aim = (180 if side > 0 else 0) + rng.uniform(-40, 40)
                tone = mix((28, 104, 68), (96, 178, 86), rng.random())
                monstera(f, edge, y, rng.uniform(0.2, 0.31), aim, tone)
        for k in range(9):
            x = (k + rng.random()) / 9
            near = abs(x - 0.5) * 2
            f.polygon(
                leaf_shape(x, -0.03, 0.07 + 0.16 * near * rng.uniform(0.7, 1.1), rng.uniform(60, 120), 0.26),
                mix((24, 92, 62), (84, 160, 76), rng.random()),
            )
        for _ in range(rng.choice((1, 2, 3))):
            flower(
                f,
                edge_x(rng, 0.14),
                rng.uniform(0.1, 0.9),
                0.026,
                rng.choice(((240, 90, 110), (250, 150, 70), (236, 120, 190))),
            )

    return paint(pixels, shapes)


LEAVES = ((232, 126, 46), (214, 84, 44), (246, 178, 62), (196, 62, 48), (226, 150, 54))


def autumn(rng: random.Random, g: float, n: int) -> Image.Image:
    """Orange trees, leaves in the air and all over the ground."""
    top, low = rng.choice(
        (
            ((178, 208, 226), (252, 236, 206)),
            ((232, 204, 170), (255, 240, 210)),
            ((160, 190, 218), (250, 224, 190)),
            ((246, 196, 140), (255, 232, 186)),
        )
    )
    soil = rng.choice(((198, 140, 84), (186, 128, 70), (206, 156, 86), (176, 136, 82)))
    pixels = gradient(n, ((0.0, soil), (g, low), (1.0, top)))

    def shapes(f: Frame) -> None:
        far = wave(rng, g + 0.06, 0.02, 1.0)
        for k in range(11):
            x = (k + rng.random()) / 11
            r = rng.uniform(0.06, 0.1)
            f.ellipse(x, far(x), r, r * 1.2, mix(rng.choice(LEAVES), low, 0.5))
        land(f, far, mix(soil, low, 0.3))
        for _ in range(5):
            x = rng.random()
            round_tree(f, x, g - 0.01, rng.uniform(0.2, 0.3), mix(rng.choice(LEAVES), low, 0.2), (128, 88, 68))
        land(f, wave(rng, g - 0.01, 0.012, 0.9), lighten(soil, 0.18))
        land(f, wave(rng, g - 0.16, 0.025, 0.8), lighten(soil, 0.07))
        for x in (rng.uniform(-0.02, 0.1), rng.uniform(0.9, 1.02)):
            y, w = g - rng.uniform(0.05, 0.12), rng.uniform(0.03, 0.042)
            f.ellipse(x, y, 0.12, 0.018, (70, 34, 20), alpha=70)
            f.polygon(
                [
                    (x - w * 1.5, y - 0.01),
                    (x + w * 1.5, y - 0.01),
                    (x + w * 0.8, y + 0.2),
                    (x + w * 0.7, 0.9),
                    (x - w * 0.7, 0.9),
                    (x - w * 0.8, y + 0.2),
                ],
                (108, 74, 60),
            )
            f.polygon(
                [(x + w * 0.2, y), (x + w * 1.3, y), (x + w * 0.7, y + 0.2), (x + w * 0.6, 0.9), (x + w * 0.2, 0.9)],
                (70, 44, 42),
                110,
            )
            tone = rng.choice(LEAVES)
            for k in range(9):
                a, r = rng.uniform(0, 6.28), rng.uniform(0.07, 0.11)
                f.ellipse(
                    x + math.cos(a) * 0.13,
                    0.88 + math.sin(a) * 0.12,
                    r,
                    r * 0.9,
                    (darken(tone, 0.14), tone, lighten(tone, 0.16))[k * 3 // 9],
                )
        pool(f, 0.5, g * 0.4, 0.6, g * 0.36, (255, 232, 160), 90)
        for _ in range(75):
            y = ground_y(rng, -0.01, g - 0.02)
            near = 1.0 - y / g
            f.polygon(
                leaf_shape(rng.random(), y, 0.02 + 0.034 * near, rng.uniform(0, 360), 0.34),
                darken(rng.choice(LEAVES), rng.choice((0.0, 0.1, 0.2))),
            )
        for _ in range(10):
            f.polygon(
                leaf_shape(rng.random(), rng.uniform(g, 0.95), rng.uniform(0.03, 0.045), rng.uniform(0, 360), 0.36),
                rng.choice(LEAVES),
            )

    return paint(pixels, shapes)


def snow(rng: random.Random, g: float, n: int) -> Image.Image:
    """White hills, firs under snow, flakes in the air."""
    top, low = rng.choice(
        (
            ((150, 186, 220), (222, 234, 246)),
            ((176, 196, 218), (236, 240, 246)),
            ((140, 158, 206), (246, 214, 220)),
            ((120, 176, 226), (218, 238, 250)),
            ((160, 172, 196), (226, 230, 240)),
        )
    )
    shade = mix((196, 212, 238), low, 0.3)
    pixels = gradient(n, ((0.0, WHITE), (g, low), (1.0, top)))

    def shapes(f: Frame) -> None:
        land(f, wave(rng, g + 0.1, 0.05, 0.8), mix(shade, top, 0.25))
        for _ in range(12):
            x = rng.random()
            fir(f, x, g + 0.02, rng.uniform(0.1, 0.17), mix((92, 128, 140), low, 0.3), (236, 242, 250))
        hill = wave(rng, g + 0.01, 0.025, 0.8)
        land(f, hill, mix(shade, WHITE, 0.35))
        for side in (-1, 1):
            for _ in range(rng.choice((1, 2))):
                x = 0.5 + side * rng.uniform(0.32, 0.5)
                y = g - rng.uniform(0.02, 0.1)
                f.ellipse(x + 0.03, y, 0.12, 0.016, (120, 146, 196), alpha=80)
                fir(
                    f,
                    x,
                    y,
                    rng.uniform(0.32, 0.5),
                    rng.choice(((52, 106, 92), (46, 96, 104), (62, 112, 86))),
                    (250, 252, 255),
                )
        near = wave(rng, g - 0.12, 0.03, 0.7)
        land(f, lambda x: near(x) + 0.012, shade, 150)
        land(f, near, (246, 249, 254))
        third = wave(rng, 0.1, 0.03, 0.8)
        land(f, lambda x: third(x) + 0.014, shade, 120)
        land(f, third, (252, 253, 255))
        for _ in range(5):
            x, y = rng.random(), rng.uniform(0.03, g - 0.16)
            f.ellipse(x, y, rng.uniform(0.06, 0.12), 0.011, shade, alpha=150)
        for _ in range(60):
            r = rng.choice((0.005, 0.007, 0.011))
            f.ellipse(rng.random(), rng.uniform(0.1, 1.0), r, r, WHITE, alpha=rng.choice((170, 230, 255)))

    return paint(pixels, shapes)
