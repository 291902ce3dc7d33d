"""What all backgrounds are made of: gradients, soft noise, ridges, clouds and trees.

Scene coordinates: x right and y UP, both 0 to 1. numpy does only + - * / and comparisons,
so that a background has the same bytes everywhere.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from PIL import Image

from cdiff.pocket.world.canvas import Canvas, Color, Frame, Point, darken, lighten

WHITE = (255, 255, 255)
# Pairs of sky colours, top and horizon.
DAY = (((104, 184, 240), (212, 238, 250)), ((132, 204, 244), (232, 246, 250)), ((94, 164, 230), (190, 224, 246)))
WARM = (((246, 166, 124), (255, 226, 170)), ((150, 150, 214), (252, 206, 184)), ((250, 190, 150), (255, 236, 200)))


def coordinates(resolution: int) -> tuple[np.ndarray, np.ndarray]:
    """x (1, n) and y (n, 1) of the pixel centres, y up."""
    t = (np.arange(resolution, dtype=np.float64) + 0.5) / resolution
    return t[None, :], (1.0 - t)[:, None]


def smoothstep(t: np.ndarray) -> np.ndarray:
    t = np.clip(t, 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def gradient(resolution: int, stops: Sequence[tuple[float, Color]]) -> np.ndarray:
    """A vertical gradient through (y, colour) stops given from the bottom up."""
    _, y = coordinates(resolution)
    out = np.zeros((resolution, 1, 3)) + np.array(stops[0][1], dtype=np.float64)
    for (y0, c0), (y1, c1) in pairwise(stops):
        share = np.clip((y - y0) / max(y1 - y0, 1e-6), 0.0, 1.0)[:, :, None]
        out = out + share * (np.array(c1, dtype=np.float64) - np.array(c0, dtype=np.float64))
    return np.repeat(out, resolution, axis=1)


def noise(resolution: int, rng: random.Random, nx: int, ny: int) -> np.ndarray:
    """Soft random hills between -1 and 1 on an nx by ny lattice."""
    lattice = np.array([[rng.uniform(-1.0, 1.0) for _ in range(nx + 1)] for _ in range(ny + 1)])
    x, y = coordinates(resolution)
    gx, gy = x[0] * nx, (1.0 - y[:, 0]) * ny
    ix, iy = gx.astype(np.int64), gy.astype(np.int64)
    fx, fy = smoothstep(gx - ix)[None, :], smoothstep(gy - iy)[:, None]
    row, low = lattice[iy], lattice[iy + 1]
    top = row[:, ix] * (1.0 - fx) + row[:, ix + 1] * fx
    bottom = low[:, ix] * (1.0 - fx) + low[:, ix + 1] * fx
    return top * (1.0 - fy) + bottom * fy


def glow(resolution: int, cx: float, cy: float, rx: float, ry: float) -> np.ndarray:
    """1 at (cx, cy) falling softly to 0 at the ellipse with half-axes rx, ry."""
    x, y = coordinates(resolution)
    u, v = (x - cx) / rx, (y - cy) / ry
    k = np.clip(1.0 - (u * u + v * v), 0.0, 1.0)
    return k * k


def blend(base: np.ndarray, color: Color, share: np.ndarray) -> np.ndarray:
    return base + (np.array(color, dtype=np.float64) - base) * share[:, :, None]


def to_image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray((np.clip(pixels, 0.0, 255.0) + 0.5).astype(np.uint8), "RGB")


def paint(pixels: np.ndarray, shapes: Callable[[Frame], None]) -> Image.Image:
    """The pixels with shapes over them."""
    canvas = Canvas(to_image(pixels))
    shapes(canvas.frame(0.0, 1.0, 1.0))
    return canvas.finish()


def wave(rng: random.Random, y: float, height: float, count: float = 1.5) -> Callable[[float], float]:
    """A rolling line at about y."""
    a, b, c = rng.uniform(0, 6.28), rng.uniform(0, 6.28), rng.uniform(0.7, 1.3)
    return lambda x: y + height * (0.65 * math.sin(6.28 * count * c * x + a) + 0.35 * math.sin(13.7 * count * x + b))


def land(frame: Frame, line: Callable[[float], float], fill: Color, alpha: int = 255, low: float = -0.05) -> None:
    """Everything below the line."""
    points = [(i / 24 * 1.1 - 0.05, line(i / 24 * 1.1 - 0.05)) for i in range(25)]
    frame.polygon([*points, (1.05, low), (-0.05, low)], fill, alpha)


def cloud(frame: Frame, x: float, y: float, size: float, fill: Color = WHITE, alpha: int = 235) -> None:
    """A puffy cloud with a flat base."""
    frame.blob(
        [
            (x - size, y),
            (x - size * 0.75, y + size * 0.28),
            (x - size * 0.35, y + size * 0.38),
            (x, y + size * 0.62),
            (x + size * 0.42, y + size * 0.36),
            (x + size * 0.8, y + size * 0.24),
            (x + size, y),
            (x, y - size * 0.06),
        ],
        fill,
        alpha,
    )


def clouds(frame: Frame, rng: random.Random, low: float, count: int, fill: Color = WHITE, alpha: int = 235) -> None:
    for i in range(count):
        x = (i + rng.uniform(0.15, 0.85)) / count
        cloud(frame, x, rng.uniform(low, 0.93), rng.uniform(0.08, 0.15), fill, alpha)


def sun(frame: Frame, x: float, y: float, r: float, fill: Color) -> None:
    for grow, alpha in ((2.0, 30), (1.5, 50)):
        frame.ellipse(x, y, r * grow, r * grow, fill, alpha=alpha)
    frame.ellipse(x, y, r, r, lighten(fill, 0.35))


def fir(frame: Frame, x: float, y: float, size: float, fill: Color, snow: Color | None = None) -> None:
    """A fir in three tiers, with snow on them if given."""
    frame.polygon(
        [
            (x - size * 0.05, y - 0.01),
            (x + size * 0.05, y - 0.01),
            (x + size * 0.05, y + size * 0.2),
            (x - size * 0.05, y + size * 0.2),
        ],
        (92, 66, 54),
    )
    for k, (low, wide, high) in enumerate(((0.14, 0.32, 0.58), (0.38, 0.25, 0.8), (0.6, 0.18, 1.0))):
        a, b = y + size * low, y + size * high
        w = size * wide
        frame.blob(
            [
                (x - w, a),
                (x - w * 0.4, a - size * 0.03),
                (x + w * 0.4, a - size * 0.03),
                (x + w, a),
                (x + w * 0.34, (a + b) / 2),
                (x, b),
                (x - w * 0.34, (a + b) / 2),
            ],
            lighten(fill, 0.05 * k),
            steps=3,
        )
        frame.polygon([(x + w * 0.9, a), (x + w * 0.1, a), (x, b)], (10, 20, 40), 34)
        if snow:
            frame.blob(
                [
                    (x - w * 0.62, (a * 2 + b) / 3),
                    (x - w * 0.3, (a + b) / 2.02),
                    (x, (a + 2 * b) / 3),
                    (x + w * 0.2, (a + b) / 2),
                    (x + w * 0.44, (a * 1.7 + b) / 2.7),
                    (x + w * 0.3, (a + b) / 2 + size * 0.06),
                    (x, b + size * 0.01),
                    (x - w * 0.34, (a + b) / 2 + size * 0.05),
                ],
                snow,
                steps=2,
            )


def round_tree(frame: Frame, x: float, y: float, size: float, fill: Color, trunk: Color = (118, 82, 58)) -> None:
    """A trunk and a crown of three tones."""
    frame.polygon(
        [
            (x - size * 0.06, y - 0.01),
            (x + size * 0.06, y - 0.01),
            (x + size * 0.035, y + size * 0.5),
            (x - size * 0.035, y + size * 0.5),
        ],
        trunk,
    )
    for dx, dy, r, shade in (
        (-0.2, 0.52, 0.22, 0.16),
        (0.2, 0.5, 0.23, 0.2),
        (0.0, 0.7, 0.3, 0.06),
        (-0.08, 0.64, 0.24, 0.0),
    ):
        frame.ellipse(x + dx * size, y + dy * size, r * size, r * size, darken(fill, shade))
    frame.ellipse(x - 0.1 * size, y + 0.78 * size, 0.13 * size, 0.1 * size, lighten(fill, 0.22), alpha=170)


def tuft(frame: Frame, x: float, y: float, size: float, fill: Color) -> None:
    """Three blades of grass."""
    for lean in (-0.6, 0.0, 0.55):
        frame.polygon(
            [(x - size * 0.1, y), (x + size * 0.1, y), (x + lean * size, y + size * (1.0 - 0.25 * abs(lean)))], fill
        )


def flower(frame: Frame, x: float, y: float, r: float, petal: Color, heart: Color = (250, 206, 70)) -> None:
    for k in range(5):
        a = math.radians(72 * k + 18)
        frame.ellipse(x + math.cos(a) * r, y + math.sin(a) * r * 0.8, r * 0.62, r * 0.55, petal)
    frame.ellipse(x, y, r * 0.5, r * 0.42, heart)


def pool(frame: Frame, x: float, y: float, rx: float, ry: float, fill: Color, strength: int) -> None:
    """A patch of light on the ground, in rings too faint to see their edges."""
    for k in range(8):
        grow = 1.0 - 0.11 * k
        frame.ellipse(x, y, rx * grow, ry * grow, fill, alpha=max(1, strength // 8))


def edge_x(rng: random.Random, reach: float = 0.24) -> float:
    """A place near the left or the right border, where a big subject seldom stands."""
    x = rng.uniform(0.0, reach)
    return x if rng.random() < 0.5 else 1.0 - x


def ground_y(rng: random.Random, low: float, high: float) -> float:
    """A height on the ground, denser towards the far edge as perspective wants."""
    t = rng.random()
    return high + (low - high) * t * t


def leaf_shape(x: float, y: float, size: float, angle: float, width: float = 0.3) -> list[Point]:
    """A pointed leaf from its stem at (x, y)."""
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    half = ((0.0, 0.0), (0.25, 0.8), (0.5, 1.0), (0.78, 0.62), (1.0, 0.0))
    outline = [*half, *((u, -v) for u, v in half[-2:0:-1])]
    return [(x + size * (u * c - v * width * s), y + size * (u * s + v * width * c)) for u, v in outline]
