"""Open land: mountain, desert, night."""

from __future__ import annotations

import math
import random

from PIL import Image

from cdiff.pocket.world.canvas import Frame, darken, lighten, mix
from cdiff.pocket.world.scenes_kit import (
    DAY,
    WARM,
    blend,
    clouds,
    edge_x,
    fir,
    flower,
    glow,
    gradient,
    ground_y,
    land,
    paint,
    pool,
    sun,
    tuft,
    wave,
)


def mountain(rng: random.Random, g: float, n: int) -> Image.Image:
    """Snow-capped peaks over the whole width, a forest line, a meadow."""
    top, low = rng.choice((*DAY, *WARM[1:], DAY[0]))
    rock = rng.choice(((110, 124, 158), (128, 126, 146), (98, 118, 142), (134, 118, 140)))
    meadow = rng.choice(((134, 164, 98), (152, 174, 108), (116, 154, 106)))
    pixels = gradient(n, ((0.0, meadow), (g, low), (1.0, top)))

    def peak(f: Frame, x: float, high: float, half: float, tone: tuple[int, int, int]) -> None:
        base, tip = g - 0.02, g + high
        f.polygon(
            [
                (x - half, base),
                (x - half * 0.45, g + high * 0.5),
                (x, tip),
                (x + half * 0.4, g + high * 0.58),
                (x + half, base),
            ],
            tone,
        )
        f.polygon(
            [
                (x, tip),
                (x + half * 0.4, g + high * 0.58),
                (x + half, base),
                (x + half * 0.16, base),
                (x + half * 0.02, g + high * 0.4),
                (x + half * 0.1, g + high * 0.66),
            ],
            darken(tone, 0.2),
        )
        # The cap follows both flanks and ends in teeth.
        left, right = (x - half * 0.32, tip - high * 0.36), (x + half * 0.29, tip - high * 0.31)
        f.polygon(
            [
                left,
                (x, tip),
                right,
                (x + half * 0.17, tip - high * 0.25),
                (x + half * 0.08, tip - high * 0.4),
                (x - half * 0.04, tip - high * 0.26),
                (x - half * 0.15, tip - high * 0.43),
            ],
            (252, 253, 255),
        )
        f.polygon(
            [
                (x, tip),
                right,
                (x + half * 0.17, tip - high * 0.25),
                (x + half * 0.08, tip - high * 0.4),
                (x + half * 0.06, tip - high * 0.24),
            ],
            (206, 218, 238),
        )

    def shapes(f: Frame) -> None:
        if rng.random() < 0.5:
            sun(f, rng.uniform(0.3, 0.7), 0.9, 0.045, (255, 232, 150))
        clouds(f, rng, 0.84, 2, alpha=200)
        for k in range(4):
            peak(
                f,
                (k + rng.uniform(0.2, 0.8)) / 4,
                rng.uniform(0.24, 0.34),
                rng.uniform(0.2, 0.26),
                mix(rock, low, 0.45),
            )
        peak(f, rng.uniform(0.02, 0.16), rng.uniform(0.36, 0.48), rng.uniform(0.28, 0.34), rock)
        peak(f, rng.uniform(0.84, 0.98), rng.uniform(0.36, 0.48), rng.uniform(0.28, 0.34), darken(rock, 0.05))
        if rng.random() < 0.5:
            peak(f, rng.uniform(0.4, 0.6), rng.uniform(0.3, 0.42), 0.26, mix(rock, low, 0.15))
        land(f, wave(rng, g + 0.03, 0.025, 1.0), mix((70, 118, 96), low, 0.2))
        for _ in range(22):
            x = rng.random()
            size = rng.uniform(0.05, 0.09) + (0.05 if abs(x - 0.5) > 0.34 else 0.0)
            fir(f, x, g - 0.02, size, rng.choice(((48, 98, 80), (58, 110, 82))))
        land(f, wave(rng, g - 0.005, 0.012, 1.0), lighten(meadow, 0.14))
        land(f, wave(rng, g - 0.13, 0.03, 0.7), meadow)
        land(f, wave(rng, 0.1, 0.03, 0.8), darken(meadow, 0.1))
        for _ in range(3):
            x, y, r = edge_x(rng), rng.uniform(0.02, g - 0.12), rng.uniform(0.025, 0.05)
            f.blob(
                [(x - r, y), (x - r * 0.6, y + r * 0.7), (x + r * 0.3, y + r * 0.85), (x + r, y)],
                (146, 148, 156),
                steps=3,
            )
            f.ellipse(x - r * 0.2, y + r * 0.5, r * 0.5, r * 0.25, (186, 188, 196), alpha=200)
        petals = rng.choice(((255, 255, 255), (250, 220, 100), (190, 150, 230)))
        for _ in range(12):
            x, y = rng.random(), ground_y(rng, 0.01, g - 0.08)
            tuft(f, x, y, 0.03, darken(meadow, 0.2))
            f.ellipse(x + 0.02, y + 0.02, 0.009, 0.009, petals)

    return paint(pixels, shapes)


def desert(rng: random.Random, g: float, n: int) -> Image.Image:
    """Dunes with a lit and a shaded side, cacti, a hot sun."""
    top, low = rng.choice(
        (
            ((250, 196, 120), (255, 238, 196)),
            ((120, 196, 226), (252, 236, 200)),
            ((244, 156, 112), (255, 220, 160)),
            ((176, 206, 222), (255, 226, 180)),
        )
    )
    dune = rng.choice(((236, 172, 98), (228, 158, 92), (240, 184, 112), (222, 146, 96)))
    pixels = gradient(n, ((0.0, dune), (g, low), (1.0, top)))
    side = rng.choice((-1, 1))

    def cactus(f: Frame, x: float, y: float, size: float) -> None:
        green = rng.choice(((78, 148, 92), (92, 158, 84), (66, 136, 96)))
        f.ellipse(x + size * 0.1, y, size * 0.32, size * 0.06, (120, 60, 30), alpha=80)
        for dx, arm, high in ((-1, 0.42, 0.72), (1, 0.32, 0.62)):
            f.curve(
                [
                    (x, y + size * arm),
                    (x + dx * size * 0.2, y + size * arm),
                    (x + dx * size * 0.24, y + size * (arm + 0.1)),
                    (x + dx * size * 0.24, y + size * high),
                ],
                size * 0.12,
                darken(green, 0.1),
            )
        f.line([(x, y), (x, y + size * 0.92)], size * 0.2, green)
        f.line([(x + size * 0.05, y), (x + size * 0.05, y + size * 0.9)], size * 0.05, darken(green, 0.2), 150)
        f.line([(x - size * 0.05, y), (x - size * 0.05, y + size * 0.9)], size * 0.03, lighten(green, 0.35), 190)
        if size > 0.2 and rng.random() < 0.6:
            flower(f, x, y + size * 1.02, 0.02, (240, 110, 150))

    def shapes(f: Frame) -> None:
        sun(f, 0.5 + side * rng.uniform(0.1, 0.32), rng.uniform(0.8, 0.88), rng.uniform(0.06, 0.08), (255, 214, 96))
        if rng.random() < 0.6:
            for x in (rng.uniform(0.0, 0.25), rng.uniform(0.75, 1.0)):
                h, w = rng.uniform(0.1, 0.2), rng.uniform(0.1, 0.15)
                tone = mix((196, 104, 76), low, 0.3)
                f.polygon([(x - w, g - 0.02), (x - w * 0.75, g + h), (x + w * 0.7, g + h), (x + w, g - 0.02)], tone)
                f.polygon(
                    [(x + w * 0.3, g - 0.02), (x + w * 0.35, g + h), (x + w * 0.7, g + h), (x + w, g - 0.02)],
                    darken(tone, 0.16),
                )
                f.line([(x - w * 0.82, g + h * 0.66), (x + w * 0.8, g + h * 0.66)], 0.012, lighten(tone, 0.2), 130)
        for k, (y, high) in enumerate(((g, 0.045), (g - 0.09, 0.05), (g - 0.24, 0.04))):
            line = wave(rng, y, high, (0.9, 0.7, 0.6)[k])
            land(f, line, lighten(dune, 0.3 - 0.12 * k))
            # Shaded flank: a lens below each crest.
            x = rng.uniform(0.1, 0.9)
            f.blob(
                [
                    (x - 0.3, line(x - 0.3) - 0.015),
                    (x, line(x) - 0.004),
                    (x + 0.25, line(x + 0.25) - 0.008),
                    (x + 0.1, line(x) - 0.09),
                    (x - 0.1, line(x) - 0.06),
                ],
                darken(dune, 0.16),
                80,
                steps=4,
            )
            for j in range(3):
                yy = y - 0.05 - 0.03 * j
                wavy = wave(rng, yy, 0.008, 1.6)
                f.line([(i / 16, wavy(i / 16)) for i in range(17)], 0.005, darken(dune, 0.16), 90)
        cactus(f, 0.5 + side * rng.uniform(0.34, 0.42), g - rng.uniform(0.08, 0.14), rng.uniform(0.3, 0.4))
        cactus(f, 0.5 - side * rng.uniform(0.3, 0.44), g - rng.uniform(0.0, 0.06), rng.uniform(0.14, 0.22))
        for _ in range(6):
            x, y, r = edge_x(rng, 0.35), ground_y(rng, 0.02, g - 0.14), rng.uniform(0.01, 0.022)
            f.ellipse(x, y, r, r * 0.65, (178, 118, 84))
            f.ellipse(x - r * 0.2, y + r * 0.2, r * 0.5, r * 0.28, (214, 160, 120))

    return paint(pixels, shapes)


def night(rng: random.Random, g: float, n: int) -> Image.Image:
    """Stars and a moon over dark hills; moonlight on the ground."""
    top, low = rng.choice(
        (
            ((14, 20, 58), (52, 70, 138)),
            ((20, 16, 62), (78, 64, 140)),
            ((10, 28, 60), (40, 92, 140)),
            ((16, 18, 48), (62, 60, 118)),
        )
    )
    field = rng.choice(((54, 90, 108), (62, 84, 120), (56, 96, 100)))
    mx, my = edge_x(rng, 0.3), rng.uniform(0.78, 0.87)
    pixels = gradient(n, ((0.0, field), (g, low), (1.0, top)))
    pixels = blend(pixels, (190, 200, 240), glow(n, mx, my, 0.42, 0.42) * 0.4)
    crescent = rng.random() < 0.5

    def shapes(f: Frame) -> None:
        for _ in range(70):
            x, y, r = rng.random(), rng.uniform(g, 1.0), rng.choice((0.003, 0.004, 0.006))
            f.ellipse(x, y, r, r, (255, 250, 224), alpha=rng.choice((150, 220, 255)))
        for _ in range(5):
            x, y, r = rng.random(), rng.uniform(0.62, 0.97), rng.uniform(0.014, 0.02)
            f.polygon(
                [
                    (x, y + r),
                    (x + r * 0.22, y + r * 0.22),
                    (x + r, y),
                    (x + r * 0.22, y - r * 0.22),
                    (x, y - r),
                    (x - r * 0.22, y - r * 0.22),
                    (x - r, y),
                    (x - r * 0.22, y + r * 0.22),
                ],
                (255, 248, 210),
            )
        if crescent:
            r = 0.085
            out = [(mx + r * math.cos(math.radians(a)), my + r * math.sin(math.radians(a))) for a in range(50, 311, 10)]
            back = [
                (mx + r * 0.34 + r * 0.78 * math.cos(math.radians(a)), my + r * 0.78 * math.sin(math.radians(a)))
                for a in range(290, 69, -10)
            ]
            f.polygon(out + back, (255, 244, 200))
        else:
            f.ellipse(mx, my, 0.08, 0.08, (255, 246, 212))
            for dx, dy, r in ((-0.025, 0.02, 0.018), (0.03, -0.01, 0.014), (-0.005, -0.035, 0.012)):
                f.ellipse(mx + dx, my + dy, r, r, (236, 222, 180))
        land(f, wave(rng, g + 0.08, 0.05, 0.9), mix(field, low, 0.55))
        hill = wave(rng, g + 0.01, 0.03, 0.8)
        land(f, hill, darken(field, 0.25))
        for _ in range(5):
            x = edge_x(rng, 0.3)
            fir(f, x, hill(x) - 0.03, rng.uniform(0.14, 0.26), (22, 42, 64))
        if rng.random() < 0.6:
            x = 0.16 if mx > 0.5 else 0.84
            y = hill(x) - 0.03
            f.polygon(
                [(x - 0.06, y), (x + 0.06, y), (x + 0.06, y + 0.08), (x, y + 0.14), (x - 0.06, y + 0.08)], (30, 38, 66)
            )
            f.polygon(
                [(x - 0.03, y + 0.025), (x + 0.005, y + 0.025), (x + 0.005, y + 0.065), (x - 0.03, y + 0.065)],
                (255, 214, 110),
            )
        land(f, wave(rng, g - 0.08, 0.02, 0.7), field)
        # Moonlight where a subject may stand.
        pool(f, 0.5, g * 0.4, 0.7, g * 0.42, (186, 208, 240), 104)
        land(f, wave(rng, 0.06, 0.02, 0.9), darken(field, 0.18))
        for _ in range(14):
            tuft(f, rng.random(), ground_y(rng, 0.0, g - 0.1), 0.035, darken(field, rng.choice((0.25, 0.35))))
        for _ in range(rng.choice((0, 5, 8))):
            x, y = rng.random(), rng.uniform(0.05, g + 0.12)
            f.ellipse(x, y, 0.02, 0.02, (230, 240, 130), alpha=50)
            f.ellipse(x, y, 0.007, 0.007, (246, 250, 170))

    return paint(pixels, shapes)
