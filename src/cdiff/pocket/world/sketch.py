"""A drawing kept as polygons in an object's own coordinates, to be painted many times.

Building clips patterns to the body and shades it once for each identity; painting only
turns points into pixels, which is what makes objects cheap.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cdiff.pocket.world.canvas import Color, Frame, Point, smooth
from cdiff.pocket.world.palette import contrast_color, distance, main_color

Points = list[Point]


def ring(x: float, y: float, rx: float, ry: float, count: int = 24, angle: float = 0.0) -> Points:
    """The corners of an ellipse."""
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    out = []
    for i in range(count):
        a = 2.0 * math.pi * i / count
        p, q = math.cos(a) * rx, math.sin(a) * ry
        out.append((x + p * c - q * s, y + p * s + q * c))
    return out


def box(x0: float, y0: float, x1: float, y1: float, radius: float = 0.0) -> Points:
    """A rectangle with rounded corners, counter-clockwise."""
    if radius <= 0.0:
        return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
    r = min(radius, (x1 - x0) / 2, (y1 - y0) / 2)
    out = []
    for cx, cy, turn in ((x1 - r, y0 + r, -90), (x1 - r, y1 - r, 0), (x0 + r, y1 - r, 90), (x0 + r, y0 + r, 180)):
        for k in range(5):
            a = math.radians(turn + 22.5 * k)
            out.append((cx + r * math.cos(a), cy + r * math.sin(a)))
    return out


def lathe(profile: Sequence[Point], steps: int = 3, belly: float = 0.0) -> Points:
    """A shape symmetric about x = 0 from (half width, y) pairs, bottom first; `belly` rounds its base downward."""
    right = smooth(profile, closed=False, steps=steps)
    left = [(-x, y) for x, y in reversed(right)]
    if belly:
        w, y = profile[0]
        left += [(-w * 0.7, y - belly * 0.7), (-w * 0.3, y - belly), (w * 0.3, y - belly), (w * 0.7, y - belly * 0.7)]
    return right + left


def tube(points: Sequence[Point], start: float, end: float | None = None, steps: int = 4) -> Points:
    """The outline of a smooth stroke, `start` wide at its first point and `end` at its last, round at both."""
    end = start if end is None else end
    path = smooth(points, closed=False, steps=steps) if steps > 1 else list(points)
    n = len(path)
    left, right = [], []
    for i, (x, y) in enumerate(path):
        (ax, ay), (bx, by) = path[max(i - 1, 0)], path[min(i + 1, n - 1)]
        dx, dy = bx - ax, by - ay
        length = math.hypot(dx, dy) or 1.0
        w = (start + (end - start) * i / (n - 1)) / 2 / length
        left.append((x - dy * w, y + dx * w))
        right.append((x + dy * w, y - dx * w))
    for side, w, (px, py), (qx, qy) in ((left, end, path[-2], path[-1]), (right, start, path[1], path[0])):
        a = math.atan2(qy - py, qx - px)
        cap = [(qx + math.cos(a + t) * w / 2, qy + math.sin(a + t) * w / 2) for t in (1.0, 0.35, -0.35, -1.0)]
        if side is left:
            left = left + cap
        else:
            right = right[::-1] + cap
    return left + right


def clip(subject: Sequence[Point], convex: Sequence[Point]) -> Points:
    """The part of `subject` inside a convex counter-clockwise outline (Sutherland-Hodgman)."""
    out = list(subject)
    for (ax, ay), (bx, by) in zip(convex, [*convex[1:], convex[0]]):
        if not out:
            break
        ex, ey = bx - ax, by - ay
        points, out = out, []
        px, py = points[-1]
        pd = ex * (py - ay) - ey * (px - ax)
        for x, y in points:
            d = ex * (y - ay) - ey * (x - ax)
            if (d >= 0.0) != (pd >= 0.0):
                t = pd / (pd - d)
                out.append((px + (x - px) * t, py + (y - py) * t))
            if d >= 0.0:
                out.append((x, y))
            px, py, pd = x, y, d
    return out


def inside(points: Sequence[Point], x: float, y: float) -> bool:
    """Whether (x, y) lies in the outline."""
    hit = False
    px, py = points[-1]
    for qx, qy in points:
        if (qy > y) != (py > y) and x < (px - qx) * (y - qy) / (py - qy) + qx:
            hit = not hit
        px, py = qx, qy
    return hit


def star(x: float, y: float, r: float, corners: int = 5, inner: float = 0.5) -> Points:
    out = []
    for i in range(2 * corners):
        a = math.pi / 2 + math.pi * i / corners
        k = r if i % 2 == 0 else r * inner
        out.append((x + math.cos(a) * k, y + math.sin(a) * k))
    return out


def heart(x: float, y: float, r: float) -> Points:
    half = ((0, -1.0), (0.55, -0.45), (0.95, 0.1), (0.95, 0.5), (0.65, 0.8), (0.3, 0.75), (0, 0.42))
    return [(x + r * p, y + r * q) for p, q in half] + [(x - r * p, y + r * q) for p, q in reversed(half[1:-1])]


@dataclass(frozen=True)
class Look:
    """Colours and pattern of one individual."""

    main: Color
    second: Color
    accent: Color
    pattern: str

    @property
    def pale(self) -> bool:
        return sum(self.main) > 640


PATTERNS = ("plain", "stripes", "dots", "band", "bands", "checks", "star", "heart", "flower", "zigzag", "confetti")


def make_look(color: str, rng: random.Random, patterns: Sequence[str] = PATTERNS) -> Look:
    main = main_color(color, rng)
    second = contrast_color(main, rng, 130.0)
    accent = contrast_color(main, rng, 90.0)
    for _ in range(4):
        if distance(accent, second) > 90.0:
            break
        accent = contrast_color(main, rng, 90.0)
    return Look(main, second, accent, rng.choice(patterns))


class Sketch:
    """A list of filled polygons in local coordinates (x right, y up)."""

    def __init__(self) -> None:
        self.shapes: list[tuple[Points, tuple[int, int, int, int]]] = []

    def add(self, points: Sequence[Point], fill: Color, alpha: int = 255) -> None:
        if len(points) > 2:
            self.shapes.append((list(points), (*fill, alpha)))

    def ellipse(
        self, x: float, y: float, rx: float, ry: float, fill: Color, alpha: int = 255, angle: float = 0.0
    ) -> None:
        self.add(ring(x, y, rx, ry, 24 if max(rx, ry) > 0.12 else 14, angle), fill, alpha)

    def blob(self, points: Sequence[Point], fill: Color, alpha: int = 255, steps: int = 4) -> None:
        self.add(smooth(points, closed=True, steps=steps), fill, alpha)

    def tube(
        self,
        points: Sequence[Point],
        start: float,
        fill: Color,
        end: float | None = None,
        alpha: int = 255,
        steps: int = 4,
    ) -> None:
        self.add(tube(points, start, end, steps), fill, alpha)

    def rim(self, body: Points, light: Point, share: float, fill: Color, alpha: int) -> None:
        """A crescent along the side of `body` away from `light`: the body less a smaller copy drawn towards it."""
        lx, ly = light
        inner = [(lx + (x - lx) * share, ly + (y - ly) * share) for x, y in body]
        # One outline walks both rims and crosses between them twice on the same line; fills are even-odd.
        self.add([*body, body[0], inner[0], *reversed(inner)], fill, alpha)

    def shade(self, body: Points, main: Color, strength: float = 1.0) -> None:
        """Two soft crescents of shadow at the lower right and a little light from the upper left."""
        xs, ys = [p[0] for p in body], [p[1] for p in body]
        x0, x1, y0, y1 = min(xs), max(xs), min(ys), max(ys)
        light = (x0 + (x1 - x0) * 0.30, y0 + (y1 - y0) * 0.68)
        dark = tuple(round(c * 0.30) for c in main) if sum(main) < 600 else (70, 72, 110)
        self.rim(body, light, 0.92, dark, round(46 * strength))
        self.rim(body, light, 0.78, dark, round(34 * strength))

    def decorate(
        self, body: Points, look: Look, rng: random.Random, at: Point | None = None, scale: float = 1.0
    ) -> None:
        """The look's pattern, clipped to the body; emblems sit at `at`."""
        xs, ys = [p[0] for p in body], [p[1] for p in body]
        x0, x1, y0, y1 = min(xs), max(xs), min(ys), max(ys)
        w, h = x1 - x0, y1 - y0
        cx, cy = at or ((x0 + x1) / 2, (y0 + y1) / 2)
        second, accent, kind = look.second, look.accent, look.pattern
        if kind == "stripes":
            count = rng.choice((3, 4, 5, 6))
            step = w / count
            shift = rng.uniform(0.2, 0.5)
            lean = rng.choice((0.0, 0.0, 0.25, -0.25)) * h
            for i in range(-2, count + 2):
                a = x0 + (i + shift) * step
                b = a + step * 0.3
                self.add(clip(body, [(a - lean, y0), (b - lean, y0), (b + lean, y1), (a + lean, y1)]), second)
        elif kind in ("band", "bands"):
            top = y0 + h * rng.uniform(0.38, 0.72)
            thick = h * (rng.uniform(0.16, 0.26) if kind == "band" else rng.uniform(0.07, 0.1))
            self.add(clip(body, box(x0, top - thick, x1, top)), second)
            if kind == "bands":
                gap = thick * rng.uniform(1.5, 2.0)
                for i in (1, 2):
                    self.add(
                        clip(body, box(x0, top - thick - i * gap, x1, top - i * gap)), accent if i == 1 else second
                    )
            elif rng.random() < 0.5:
                self.add(clip(body, box(x0, top - thick * 0.62, x1, top - thick * 0.38)), accent)
        elif kind in ("dots", "confetti"):
            r = scale * rng.choice((0.04, 0.055, 0.075))
            step = r * rng.uniform(3.7, 4.3)
            row, y = 0, y0 + step * 0.5
            while y < y1:
                x = x0 + (0.5 if row % 2 else 0.0) * step
                while x < x1 + r:
                    self._dot(body, x, y, r, second if kind == "dots" or (row + round(x / step)) % 2 else accent)
                    x += step
                row, y = row + 1, y + step * 0.86
        elif kind == "checks":
            cell = scale * rng.choice((0.1, 0.13, 0.17))
            nx, ny = math.ceil(w / cell), math.ceil(h / cell)
            for j in range(ny):
                for i in range(nx):
                    if (i + j) % 2 == 0:
                        x, y = x0 + (i + 0.13) * cell, y0 + (j + 0.13) * cell
                        self._clipped(body, box(x, y, x + 0.74 * cell, y + 0.74 * cell), second)
        elif kind == "zigzag":
            y, step, high = (
                y0 + h * rng.uniform(0.4, 0.6),
                scale * rng.choice((0.1, 0.15)),
                scale * rng.uniform(0.06, 0.1),
            )
            for k in range(-1, math.ceil(w / step) + 1):
                a, up = x0 + k * step, 1 if k % 2 else -1
                p, q, t = y - up * high, y + up * high, scale * 0.055
                self.add(clip(body, [(a, p - t), (a + step, q - t), (a + step, q + t), (a, p + t)]), second)
        elif kind in ("star", "heart", "flower"):
            r = scale * rng.uniform(0.14, 0.19)
            if rng.random() < 0.4:
                self._clipped(body, ring(cx, cy, r * 1.35, r * 1.35), accent)
            if kind == "star":
                self.add(star(cx, cy, r), second)
            elif kind == "heart":
                self.blob(heart(cx, cy, r * 0.9), second, steps=2)
            else:
                for i in range(5):
                    a = math.radians(90 + 72 * i)
                    self.ellipse(cx + math.cos(a) * r * 0.62, cy + math.sin(a) * r * 0.62, r * 0.44, r * 0.44, second)
                self.ellipse(
                    cx, cy, r * 0.36, r * 0.36, (252, 206, 70) if distance(second, (252, 206, 70)) > 90 else look.main
                )

    def _dot(self, body: Points, x: float, y: float, r: float, fill: Color) -> None:
        self._clipped(body, ring(x, y, r, r, 10), fill)

    def _clipped(self, body: Points, shape: Points, fill: Color) -> None:
        hits = sum(inside(body, px, py) for px, py in shape[:: max(1, len(shape) // 5)])
        if hits == len(shape[:: max(1, len(shape) // 5)]):
            self.add(shape, fill)
        elif hits:
            self.add(clip(body, shape), fill)

    def paint(self, frame: Frame) -> None:
        """Draws every polygon; the frame's turn and mirror are folded into six numbers."""
        unit, mirror = frame.unit, frame.mirror
        a, b = mirror * unit * frame.cos, -mirror * unit * frame.sin
        c, d = -unit * frame.sin, -unit * frame.cos
        ox, oy = frame.ox, frame.oy
        soft, solid = frame.draw.polygon, frame.draw.solid.polygon
        for points, fill in self.shapes:
            pixels = [(a * x + b * y + ox, c * x + d * y + oy) for x, y in points]
            if fill[3] == 255:
                solid(pixels, fill[:3])
            else:
                soft(pixels, fill)


@dataclass
class Art:
    """One individual, ready to paint: what never changes, its width on the ground, and what its pose changes.

    `scale` and `shift` bring its own coordinates to the subject's.
    """

    sketch: Sketch
    width: float
    moving: Callable[[Frame, tuple[float, float, float], float], None] | None = None
    scale: float = 1.0
    shift: float = 0.0


def fitted(sketch: Sketch, width: float, widest: float, moving: Callable[..., None] | None = None) -> Art:
    """An Art no wider than `widest`, and halfway centred, since a handle or a spout pulls it to one side."""
    xs = [x for points, _ in sketch.shapes for x, _ in points]
    low, high = min(xs), max(xs)
    scale = min(1.0, widest / (high - low))
    return Art(sketch, width, moving, scale, -0.6 * scale * (low + high) / 2)
