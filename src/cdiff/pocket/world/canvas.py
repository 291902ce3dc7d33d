"""A small antialiased drawing surface over Pillow.

Shapes are drawn at SUPERSAMPLE times the resolution and box-averaged at the end.
Trigonometry goes through `math` and all randomness through `random.Random`, so the
pixels are the same on every machine with the same Pillow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

SUPERSAMPLE = 3

Color = tuple[int, int, int]
Point = tuple[float, float]


def mix(a: Color, b: Color, share: float) -> Color:
    """`share` of b in a, 0 to 1."""
    return tuple(round(p + (q - p) * share) for p, q in zip(a, b))


def lighten(color: Color, share: float) -> Color:
    return mix(color, (255, 255, 255), share)


def darken(color: Color, share: float) -> Color:
    return mix(color, (0, 0, 0), share)


class Canvas:
    """An RGB picture of `resolution` pixels a side; coordinates run 0 to 1, y down."""

    def __init__(self, background: Image.Image):
        """`background`: a square RGB image at the final resolution, kept as it is under the shapes."""
        self.resolution = background.width
        side = background.width * SUPERSAMPLE
        self.image = background.resize((side, side), Image.NEAREST)
        self.draw = ImageDraw.Draw(self.image, "RGBA")
        # Opaque fills need no blending and are twice as fast without; every frame reaches this through its draw.
        self.draw.solid = ImageDraw.Draw(self.image)

    def frame(self, x: float = 0.0, y: float = 0.0, size: float = 1.0, flip: bool = False, angle: float = 0.0) -> Frame:
        """Local coordinates whose origin is at (x, y) of the picture, one unit long as `size` of its side."""
        side = self.image.width
        return Frame(self.draw, x * side, y * side, size * side, -1.0 if flip else 1.0, angle)

    def finish(self) -> Image.Image:
        """The picture at its final resolution, box-averaged."""
        return self.image.reduce(SUPERSAMPLE)


class Frame:
    """Draws in local coordinates: x right, y UP, one unit = the subject's nominal height.

    Every shape takes an RGB fill and an optional alpha (0 to 255). Angles are in degrees,
    counter-clockwise in local coordinates.
    """

    def __init__(self, draw: ImageDraw.ImageDraw, ox: float, oy: float, unit: float, mirror: float, angle: float):
        self.draw, self.ox, self.oy, self.unit, self.mirror, self.angle = draw, ox, oy, unit, mirror, angle
        self.ground = 0.0  # the local y of the ground, where the shadow lies; below 0 under a subject in the air
        self.cos, self.sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))

    def at(self, x: float, y: float, size: float = 1.0, angle: float = 0.0) -> Frame:
        """A frame inside this one: origin at local (x, y), scaled and turned."""
        px, py = self.pixel(x, y)
        return Frame(self.draw, px, py, self.unit * size, self.mirror, self.angle + angle)

    def pixel(self, x: float, y: float) -> Point:
        """Local (x, y) to supersampled pixels."""
        rx = x * self.cos - y * self.sin
        ry = x * self.sin + y * self.cos
        return self.ox + self.mirror * rx * self.unit, self.oy - ry * self.unit

    def polygon(self, points: Sequence[Point], fill: Color, alpha: int = 255) -> None:
        self.draw.polygon([self.pixel(x, y) for x, y in points], fill=(*fill, alpha))

    def ellipse(
        self, x: float, y: float, rx: float, ry: float, fill: Color, angle: float = 0.0, alpha: int = 255
    ) -> None:
        """An ellipse with half-axes rx, ry, turned by `angle`."""
        turn = self.angle + angle
        if turn == 0.0 or rx == ry:
            px, py = self.pixel(x, y)
            ax, ay = abs(rx) * self.unit, abs(ry) * self.unit
            self.draw.ellipse((px - ax, py - ay, px + ax, py + ay), fill=(*fill, alpha))
            return
        cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        self.polygon(
            [(x + c * rx * cos - s * ry * sin, y + c * rx * sin + s * ry * cos) for c, s in _CIRCLE], fill, alpha
        )

    def line(self, points: Sequence[Point], width: float, fill: Color, alpha: int = 255) -> None:
        """A polyline with round joints and ends; `width` in local units."""
        pixels = [self.pixel(x, y) for x, y in points]
        thick = max(1, round(width * self.unit))
        self.draw.line(pixels, fill=(*fill, alpha), width=thick, joint="curve")
        if alpha == 255 and thick > 2:
            radius = thick / 2
            for px, py in (pixels[0], pixels[-1]):
                self.draw.ellipse((px - radius, py - radius, px + radius, py + radius), fill=fill)

    def blob(self, points: Sequence[Point], fill: Color, alpha: int = 255, steps: int = 5) -> None:
        """A smooth closed shape through the points (Catmull-Rom)."""
        self.polygon(smooth(points, closed=True, steps=steps), fill, alpha)

    def curve(self, points: Sequence[Point], width: float, fill: Color, alpha: int = 255, steps: int = 5) -> None:
        """A smooth open stroke through the points."""
        self.line(smooth(points, closed=False, steps=steps), width, fill, alpha)

    def arc(
        self, x: float, y: float, rx: float, ry: float, start: float, end: float, width: float, fill: Color
    ) -> None:
        """A stroke along an ellipse from `start` to `end` degrees."""
        count = max(4, round(abs(end - start) / 15))
        angles = [math.radians(start + (end - start) * i / count) for i in range(count + 1)]
        self.line([(x + math.cos(a) * rx, y + math.sin(a) * ry) for a in angles], width, fill)


_CIRCLE = [(math.cos(math.radians(a)), math.sin(math.radians(a))) for a in range(0, 360, 12)]


def smooth(points: Sequence[Point], closed: bool, steps: int) -> list[Point]:
    """Points along the Catmull-Rom spline through `points`, `steps` for each span."""
    n = len(points)
    spans = n if closed else n - 1
    out: list[Point] = []
    for i in range(spans):
        if closed:
            p0, p1, p2, p3 = points[i - 1], points[i], points[(i + 1) % n], points[(i + 2) % n]
        else:
            p0, p1, p2, p3 = points[max(i - 1, 0)], points[i], points[i + 1], points[min(i + 2, n - 1)]
        for k in range(steps):
            t = k / steps
            a, b, c, d = (
                -0.5 * t + t * t - 0.5 * t**3,
                1 - 2.5 * t * t + 1.5 * t**3,
                0.5 * t + 2 * t * t - 1.5 * t**3,
                0.5 * (t**3 - t * t),
            )
            out.append((a * p0[0] + b * p1[0] + c * p2[0] + d * p3[0], a * p0[1] + b * p1[1] + c * p2[1] + d * p3[1]))
    if not closed:
        out.append(points[-1])
    return out
