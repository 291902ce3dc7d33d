"""Exact shades of the eleven colour families.

Each family is a small triangle of shades in RGB; a shade is a random point inside it.
The triangles lie well apart, so that no shade of one family can be taken for another.
"""

from __future__ import annotations

import random

from cdiff.pocket.world.canvas import Color

FAMILIES: dict[str, tuple[Color, Color, Color]] = {
    "red": ((220, 44, 46), (190, 28, 38), (230, 60, 50)),
    "orange": ((247, 140, 32), (240, 122, 22), (252, 152, 56)),
    "yellow": ((251, 210, 50), (246, 200, 32), (255, 224, 92)),
    "green": ((70, 164, 82), (44, 132, 74), (122, 186, 70)),
    "blue": ((50, 114, 210), (38, 84, 184), (84, 158, 228)),
    "purple": ((128, 70, 182), (104, 54, 158), (152, 98, 206)),
    "pink": ((247, 150, 186), (240, 130, 172), (251, 176, 202)),
    "brown": ((136, 86, 50), (112, 68, 40), (152, 98, 60)),
    "white": ((250, 248, 243), (243, 245, 249), (252, 246, 236)),
    "grey": ((142, 146, 152), (124, 128, 136), (160, 161, 164)),
    "black": ((44, 44, 50), (33, 35, 42), (56, 51, 53)),
}


def main_color(color: str, rng: random.Random) -> Color:
    """A shade of the family `color`; takes two numbers from `rng`."""
    a, b, c = FAMILIES[color]
    u, v = rng.random(), rng.random()
    if u + v > 1.0:  # fold the square onto the triangle, so that shades spread evenly
        u, v = 1.0 - u, 1.0 - v
    return tuple(round(p + (q - p) * u + (r - p) * v) for p, q, r in zip(a, b, c))


def distance(a: Color, b: Color) -> float:
    """How different two shades look, roughly 0 to 450 (differences of green weigh most, of blue least)."""
    return (2.0 * (a[0] - b[0]) ** 2 + 3.0 * (a[1] - b[1]) ** 2 + (a[2] - b[2]) ** 2) ** 0.5 / 1.4142


def contrast_color(
    base: Color, rng: random.Random, least: float = 120.0, families: tuple[str, ...] | None = None
) -> Color:
    """A shade of some other family that stands out on `base`."""
    names = families or tuple(FAMILIES)
    best = base
    for _ in range(12):
        shade = main_color(rng.choice(names), rng)
        if distance(shade, base) >= least:
            return shade
        best = max(best, shade, key=lambda c: distance(c, base))
    return best
