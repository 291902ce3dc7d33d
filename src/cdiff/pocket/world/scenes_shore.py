"""Where the water is: beach, water."""

from __future__ import annotations

import math
import random

import numpy as np
from PIL import Image

from cdiff.pocket.world.canvas import Frame, darken, lighten, mix
from cdiff.pocket.world.scenes_kit import (
    DAY,
    WARM,
    WHITE,
    blend,
    clouds,
    edge_x,
    gradient,
    ground_y,
    land,
    leaf_shape,
    noise,
    paint,
    smoothstep,
    sun,
    wave,
)


def beach(rng: random.Random, g: float, n: int) -> Image.Image:
    """Sky, sea, a foaming edge and sand; an umbrella or a palm at one side."""
    warm = rng.random() < 0.3
    top, low = rng.choice(WARM if warm else DAY)
    sea = rng.choice(((40, 150, 190), (60, 176, 196), (44, 124, 188)))
    sea = mix(sea, low, 0.2) if warm else sea
    sand = rng.choice(((246, 220, 168), (250, 228, 184), (240, 210, 156)))
    shore = g - rng.uniform(0.15, 0.18)
    pixels = gradient(
        n,
        (
            (0.0, darken(sand, 0.06)),
            (shore - 0.02, lighten(sand, 0.15)),
            (shore, lighten(sea, 0.4)),
            (g, sea),
            (g + 0.002, low),
            (1.0, top),
        ),
    )
    below = gradient(n, ((0.0, WHITE), (shore, WHITE), (shore + 0.001, (0, 0, 0))))[:, :, 0] / 255.0
    pixels = blend(pixels, darken(sand, 0.2), np.clip(noise(n, rng, 6, 14), 0.0, 1.0) * below * 0.35)
    side = rng.choice((-1, 1))
    thing = rng.choice(("umbrella", "palm", "umbrella", "palm", "none"))
    bright = rng.choice(((232, 84, 76), (70, 140, 210), (246, 170, 60), (80, 170, 140), (236, 120, 160)))

    def shapes(f: Frame) -> None:
        sun(
            f,
            0.5 - side * rng.uniform(0.2, 0.38),
            rng.uniform(0.84, 0.92) if not warm else g + 0.1,
            0.055,
            (255, 222, 120),
        )
        clouds(f, rng, 0.78, rng.choice((2, 3)), alpha=210 if not warm else 150)
        for _ in range(14):
            x, y = rng.uniform(-0.05, 1.0), rng.uniform(shore + 0.05, g - 0.01)
            w = rng.uniform(0.03, 0.1)
            f.ellipse(x, y, w, 0.004 + 0.004 * (g - y) / 0.15, lighten(sea, 0.55), alpha=190)
        if rng.random() < 0.6:
            x, y = 0.5 - side * rng.uniform(0.2, 0.4), g - 0.01
            f.polygon(
                [(x - 0.05, y + 0.015), (x + 0.05, y + 0.015), (x + 0.032, y - 0.008), (x - 0.032, y - 0.008)],
                (150, 92, 66),
            )
            f.polygon([(x, y + 0.025), (x + 0.042, y + 0.025), (x, y + 0.11)], WHITE)
            f.polygon([(x - 0.008, y + 0.025), (x - 0.035, y + 0.025), (x - 0.008, y + 0.09)], bright)
        line = wave(rng, shore, 0.018, 1.3)
        land(f, lambda x: line(x) + 0.02, WHITE, 150)
        land(f, lambda x: line(x) + 0.008, WHITE)
        land(f, line, darken(sand, 0.14))
        second = wave(rng, shore - 0.035, 0.012, 1.1)
        land(f, second, lighten(sand, 0.08))
        land(f, wave(rng, shore - 0.22, 0.03, 0.8), sand)
        for _ in range(26):
            x, y = rng.random(), ground_y(rng, 0.0, shore - 0.07)
            f.ellipse(x, y, 0.007, 0.005, darken(sand, rng.choice((0.16, 0.22))))
        for _ in range(rng.choice((2, 3, 4))):
            x, y = edge_x(rng, 0.3), rng.uniform(0.03, shore - 0.12)
            if rng.random() < 0.4:
                for k in range(5):
                    f.polygon(leaf_shape(x, y, 0.045, 72 * k + 10, 0.22), (240, 140, 96))
            else:
                tone = rng.choice(((255, 244, 236), (248, 196, 180), (230, 180, 150)))
                f.blob(
                    [
                        (x - 0.03, y + 0.01),
                        (x, y + 0.03),
                        (x + 0.03, y + 0.01),
                        (x + 0.008, y - 0.018),
                        (x - 0.008, y - 0.018),
                    ],
                    tone,
                    steps=3,
                )
                for k in (-1, 0, 1):
                    f.line([(x, y - 0.012), (x + k * 0.016, y + 0.018)], 0.004, darken(tone, 0.25))
        x = 0.5 + side * rng.uniform(0.36, 0.42)
        if thing == "umbrella":
            y = shore - 0.1
            f.ellipse(x, y, 0.16, 0.025, (120, 80, 60), alpha=70)
            f.line([(x, y), (x - side * 0.03, y + 0.4)], 0.016, (250, 246, 236))
            cap = f.at(x - side * 0.03, y + 0.38, 1.0, side * 8.0)
            dome = [(0.19 * math.cos(math.radians(a)), 0.13 * math.sin(math.radians(a))) for a in range(0, 181, 12)]
            cap.polygon(dome, bright)
            for a, b in ((30, 66), (102, 138)):
                cap.polygon([(0, 0.13), *[(0.19 * math.cos(math.radians(t)), 0.0) for t in (a, b)]], WHITE)
        elif thing == "palm":
            y = shore - 0.16
            trunk = [(x, y), (x - side * 0.01, y + 0.2), (x - side * 0.06, y + 0.46)]
            f.ellipse(x, y, 0.12, 0.02, (120, 80, 60), alpha=70)
            f.curve(trunk, 0.045, (160, 112, 74))
            for k in range(7):
                t = k / 7
                f.line(
                    [
                        (x - side * 0.06 * t * t - 0.018, y + 0.46 * t),
                        (x - side * 0.06 * t * t + 0.018, y + 0.46 * t + 0.008),
                    ],
                    0.008,
                    (128, 86, 58),
                )
            cx, cy = trunk[-1]
            for k, a in enumerate((-38, 218, 8, 172, 42, 138, 90)):
                f.polygon(leaf_shape(cx, cy, 0.22, a, 0.17), ((52, 132, 76), (74, 160, 84))[k % 2])
            for dx in (-0.02, 0.02):
                f.ellipse(cx + dx, cy - 0.015, 0.02, 0.02, (120, 78, 50))

    return paint(pixels, shapes)


def water(rng: random.Random, g: float, n: int) -> Image.Image:
    """A wide lake or sea: far shore, ripples growing towards the viewer, reeds or lilies in a corner."""
    warm = rng.random() < 0.3
    top, low = rng.choice(WARM if warm else DAY)
    deep = rng.choice(((28, 108, 168), (34, 128, 170), (30, 92, 158), (40, 140, 164)))
    light = mix(lighten(deep, 0.5), low, 0.55 if warm else 0.4)
    pixels = gradient(
        n, ((0.0, darken(deep, 0.12)), (g * 0.6, mix(deep, light, 0.45)), (g, light), (g + 0.002, low), (1.0, top))
    )
    band = np.clip(noise(n, rng, 5, 26) * 1.6, -1.0, 1.0)
    wet = gradient(n, ((0.0, WHITE), (g - 0.01, WHITE), (g, (0, 0, 0))))[:, :, 0] / 255.0
    pixels = blend(pixels, lighten(light, 0.3), smoothstep(band) * wet * 0.4)
    pixels = blend(pixels, darken(deep, 0.2), smoothstep(-band) * wet * 0.3)
    corner = rng.choice(("lilies", "reeds", "both", "boat"))
    side = rng.choice((-1, 1))

    def shapes(f: Frame) -> None:
        clouds(f, rng, g + 0.12, 2, alpha=200 if not warm else 140)
        shore = rng.choice(((104, 150, 112), (96, 130, 160), (88, 140, 120), None))
        if shore:
            land(f, wave(rng, g + 0.05, 0.03, 0.8), mix(shore, low, 0.45), low=g)
            land(f, wave(rng, g + 0.02, 0.02, 1.2), mix(shore, low, 0.2), low=g)
            f.polygon([(-0.1, g), (1.1, g), (1.1, g - 0.03), (-0.1, g - 0.03)], mix(shore, light, 0.6), 130)
        if warm or rng.random() < 0.3:
            sx = rng.uniform(0.2, 0.8)
            sun(f, sx, g + 0.16, 0.05, (255, 220, 130))
            for k in range(8):
                f.ellipse(
                    sx + rng.uniform(-0.02, 0.02),
                    g - 0.02 - 0.045 * k,
                    0.03 + 0.008 * k,
                    0.006,
                    (255, 240, 190),
                    alpha=170,
                )
        for k in range(34):
            # Ripples lie denser and thinner far away.
            t = (k + rng.random()) / 34
            y = g - 0.012 - (g - 0.0) * t * t
            w, x = 0.03 + 0.09 * t, rng.uniform(-0.05, 1.05)
            h = 0.004 + 0.011 * t
            tone = lighten(light, 0.5) if rng.random() < 0.6 else darken(deep, 0.1)
            f.blob(
                [
                    (x - w, y),
                    (x - w * 0.4, y + h),
                    (x, y + h * 0.3),
                    (x + w * 0.4, y + h),
                    (x + w, y),
                    (x + w * 0.4, y + h * 0.2),
                    (x, y - h * 0.4),
                    (x - w * 0.4, y + h * 0.2),
                ],
                tone,
                150,
                steps=2,
            )
        if corner in ("lilies", "both"):
            for _ in range(5):
                x, y, r = 0.5 + side * rng.uniform(0.3, 0.5), rng.uniform(0.02, 0.22), rng.uniform(0.04, 0.06)
                f.ellipse(x + 0.005, y - 0.01, r, r * 0.4, darken(deep, 0.3), alpha=120)
                f.ellipse(x, y, r, r * 0.4, rng.choice(((92, 164, 96), (112, 178, 100))))
                f.polygon([(x, y), (x + r, y - r * 0.16), (x + r, y + r * 0.12)], deep, 200)
                if rng.random() < 0.5:
                    for a in (30, 60, 90, 120, 150):
                        f.polygon(
                            leaf_shape(x - 0.01, y + 0.005, 0.045, a, 0.24),
                            (250, 190, 214) if a % 60 else (255, 222, 234),
                        )
        if corner in ("reeds", "both"):
            other = -side
            for k in range(6):
                x, high = 0.5 + other * rng.uniform(0.38, 0.5), rng.uniform(0.25, 0.45)
                lean = rng.uniform(-0.04, 0.04)
                f.line([(x, -0.02), (x + lean, high)], 0.012, (84, 138, 84))
                if k % 2:
                    f.line([(x + lean, high - 0.05), (x + lean, high + 0.02)], 0.026, (130, 84, 54))
                f.polygon(leaf_shape(x, -0.02, 0.3, 90 + lean * 600, 0.07), (104, 160, 90))
        if corner == "boat":
            x, y = 0.5 + side * rng.uniform(0.34, 0.4), g - 0.05
            f.polygon(
                [(x - 0.09, y + 0.03), (x + 0.09, y + 0.03), (x + 0.06, y - 0.012), (x - 0.06, y - 0.012)],
                (176, 84, 66),
            )
            f.polygon([(x - 0.07, y - 0.015), (x + 0.07, y - 0.015), (x, y - 0.08)], WHITE, 70)
            f.line([(x, y + 0.03), (x, y + 0.24)], 0.01, (110, 78, 60))
            f.polygon([(x + 0.012, y + 0.045), (x + 0.09, y + 0.045), (x + 0.012, y + 0.23)], (252, 248, 240))
            f.polygon([(x - 0.012, y + 0.045), (x - 0.07, y + 0.045), (x - 0.012, y + 0.19)], (240, 220, 190))

    return paint(pixels, shapes)
