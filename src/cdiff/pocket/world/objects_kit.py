"""What the drawings of objects share."""

from __future__ import annotations

from cdiff.pocket.world.canvas import Color, darken, lighten
from cdiff.pocket.world.sketch import Look, Sketch

WHITE = (255, 255, 255)


def rim_color(look: Look) -> Color:
    """A darker shade of the main colour that still shows on black."""
    return lighten(look.main, 0.22) if sum(look.main) < 200 else darken(look.main, 0.24)


def gloss(sketch: Sketch, x: float, y: float, rx: float, ry: float, angle: float, look: Look) -> None:
    """A soft highlight with a bright spark in it."""
    sketch.ellipse(x, y, rx, ry, WHITE, 52 if sum(look.main) < 200 else 88, angle)
    sketch.ellipse(x - rx * 0.1, y + ry * 0.25, rx * 0.5, ry * 0.5, WHITE, 120, angle)
