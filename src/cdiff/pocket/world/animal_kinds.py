"""What makes a kind: its ears, tail and face."""

from __future__ import annotations

from functools import lru_cache

from cdiff.pocket.world.animal_look import INK, Look
from cdiff.pocket.world.animal_parts import WHITE, Pose, ball, cheeks, eyes, fill, form, mouth, oval, pen, stroke
from cdiff.pocket.world.canvas import Color, Frame, Point, darken, lighten, mix, smooth

Outline = tuple[Point, ...]

# Ears in their own frame: the base at the origin, pointing up, the outer side at x > 0, one unit long.
_EAR_SHAPES: dict[str, tuple[Point, ...]] = {
    "point": ((-0.36, -0.15), (-0.30, 0.35), (-0.08, 0.88), (0.02, 1.0), (0.12, 0.88), (0.42, 0.32), (0.44, -0.15)),
    "broad": ((-0.50, -0.15), (-0.42, 0.40), (-0.16, 0.86), (0.02, 0.98), (0.22, 0.84), (0.54, 0.35), (0.56, -0.15)),
    "drop": ((-0.20, -0.06), (-0.36, 0.42), (-0.34, 0.80), (-0.04, 1.0), (0.27, 0.86), (0.36, 0.45), (0.20, -0.06)),
    "long": ((-0.13, -0.05), (-0.21, 0.40), (-0.17, 0.82), (0.0, 1.0), (0.17, 0.82), (0.21, 0.40), (0.13, -0.05)),
    "wide": ((-0.14, -0.05), (-0.28, 0.42), (-0.26, 0.80), (0.0, 1.0), (0.26, 0.80), (0.28, 0.42), (0.14, -0.05)),
    "round": ((-0.5, 0.3), (-0.36, 0.74), (0.0, 0.92), (0.36, 0.74), (0.5, 0.3), (0.36, -0.1), (-0.36, -0.1)),
    "fold": (
        (-0.42, 0.0),
        (-0.30, 0.42),
        (0.05, 0.66),
        (0.44, 0.55),
        (0.66, 0.10),
        (0.62, -0.22),
        (0.30, 0.06),
        (0.1, 0.0),
    ),
}


@lru_cache(maxsize=64)
def _ear(shape: str, mirrored: bool) -> Outline:
    points = smooth(_EAR_SHAPES[shape], closed=True, steps=4)
    return tuple((-x, y) for x, y in points) if mirrored else tuple(points)


def _pair(
    head: Frame,
    look: Look,
    x: float,
    y: float,
    length: float,
    angles: tuple[float, float],
    shape: str,
    inner: float = 0.0,
) -> None:
    """Both ears at (+-x, y) leaning outwards by `angles` (left, right); `inner` is the size of the pink inside."""
    for side, angle, color in ((-1, angles[0], look.ears[0]), (1, angles[1], look.ears[1])):
        ear = head.at(side * x, y, length, -side * angle)
        outline = _ear(shape, side < 0)
        form(ear, outline, color, rim=0.93, core=0.86, lift=0.04)
        if inner:
            fill(ear, outline, mix(look.inner, color, 0.15), scale=inner, dy=0.08)


def ears_behind(head: Frame, look: Look, pose: Pose) -> None:
    """Ears that stand behind the skull."""
    lift, size = pose.ear_lift, look.ear_size
    rx, v = look.head_rx, look.ear
    spread = look.ear_spread
    if look.kind == "dog":
        if v == 1:
            _pair(
                head, look, 0.62 * rx, 0.62, 0.92 * size, (20 + spread + lift, 20 + spread - lift * 0.5), "point", 0.6
            )
        elif v == 2:
            _pair(head, look, 0.62 * rx, 0.62, 0.66 * size, (26 + spread + lift, 26 + spread), "broad")
    elif look.kind == "cat":
        shape, length = (("broad", 0.80), ("point", 0.94), ("broad", 0.95), ("point", 0.78))[v]
        tilt = 20 + spread + lift * 0.5
        _pair(head, look, 0.60 * rx, 0.60, length * (0.5 + 0.5 * size), (tilt, tilt - lift * 0.4), shape, 0.62)
    elif look.kind == "bear":
        x, y, r = ((0.68, 0.62, 0.66), (0.78, 0.50, 0.60), (0.60, 0.72, 0.56), (0.70, 0.60, 0.82))[v]
        _pair(head, look, x * rx, y, r * (0.4 + 0.6 * size), (34 + lift * 0.4, 34 + lift * 0.4), "round", 0.6)
    elif look.kind == "rabbit":
        shape, length = (("long", 1.75), ("wide", 1.55), ("long", 1.95), ("wide", 1.75))[v]
        length *= 0.8 + 0.2 * size
        base = (8, 26, 10, 16)[v] + spread * 0.6
        angles = (base + lift, base - lift * 0.6)
        # A hat takes the middle of the head, so the ears give way to its sides.
        if pose.splay:
            angles = (58.0 + lift * 0.5, 58.0 - lift * 0.5)
        _pair(head, look, (0.62 if pose.splay else 0.40) * rx, 0.62, length, angles, shape, 0.62)
        if v == 3 and not pose.splay:
            _bent_tip(head, look, 0.40 * rx, 0.62, length, angles[1])
    elif look.kind == "pig" and v == 3:
        _pair(head, look, 0.66 * rx, 0.56, 0.72 * size, (30 + lift, 30 + lift), "broad", 0.6)


def _bent_tip(head: Frame, look: Look, x: float, y: float, length: float, angle: float) -> None:
    """The upper half of the right ear folded over, hanging outwards."""
    ear = head.at(x, y, length, -angle)
    tip = ear.at(0.08, 0.80, 0.62, -140)
    form(tip, _ear("wide", False), darken(look.ears[1], 0.06), rim=0.93, core=0.84, lift=0.03)


def ears_front(head: Frame, look: Look, pose: Pose) -> None:
    """Ears that hang over the sides of the skull."""
    rx, size, lift = look.head_rx, look.ear_size, pose.ear_lift
    if look.kind == "dog":
        if look.ear == 0:
            _pair(head, look, 0.74 * rx, 0.62, 1.12 * size, (138 + lift, 138 - lift * 0.5), "drop")
        elif look.ear == 3:
            _pair(head, look, 0.80 * rx, 0.52, 1.45 * size, (156 + lift * 0.6, 156), "drop")
        elif look.ear == 2:
            # The tips of half-pricked ears hang forward.
            for side, color in ((-1, look.ears[0]), (1, look.ears[1])):
                tip = head.at(side * 0.88 * rx, 0.62 + 0.50 * size, 0.56 * size, -side * (150 + lift))
                form(tip, _ear("broad", side < 0), darken(color, 0.08), rim=0.92, core=0.84)
    elif look.kind == "pig" and look.ear != 3:
        length = (0.86, 1.05, 0.74)[look.ear]
        angle = (14, 34, -4)[look.ear] + lift
        _pair(head, look, 0.66 * rx, 0.70, length * (0.6 + 0.4 * size), (angle, angle), "fold", 0.0)


def tail(frame: Frame, look: Look, pose: Pose, x: float, y: float, side: int) -> None:
    """The tail, rooted at (x, y) and pointing to `side`; its swing follows the pose."""
    k, s, swing = look.tail_size, side, pose.swing * 0.05
    if look.kind == "dog":
        if look.tail == 0:
            path = [
                (x, y),
                (x + s * 0.10 * k, y + 0.06),
                (x + s * (0.15 + swing) * k, y + 0.20 * k),
                (x + s * (0.13 + 2 * swing) * k, y + 0.32 * k),
            ]
            width = 0.066
        elif look.tail == 1:
            path = [
                (x, y),
                (x + s * 0.12, y + 0.08),
                (x + s * (0.13 + swing), y + 0.20 * k),
                (x + s * (0.04 + swing), y + 0.24 * k),
                (x + s * (0.02 + swing), y + 0.17 * k),
            ]
            width = 0.088
        else:
            path = [(x, y), (x + s * 0.11 * k, y + 0.06 + swing), (x + s * 0.22 * k, y + 0.17 + 2 * swing)]
            width = 0.115
        stroke(frame, path, width, look.main)
        if look.tail_tip != look.main:
            oval(frame, *path[-1], width * 0.36, width * 0.36, look.tail_tip)
    elif look.kind == "cat":
        width = (0.060, 0.070, 0.095)[look.tail]
        reach, height = (0.17, 0.34) if look.tail != 1 else (0.14, 0.42)
        path = [
            (x, y),
            (x + s * 0.11, y - 0.02),
            (x + s * reach * k, y + 0.10),
            (x + s * (reach - 0.05 + swing) * k, y + 0.6 * height),
            (x + s * (reach + 0.01 + swing) * k, y + height * k),
            (x + s * (reach + 0.06 + swing) * k, y + (height + 0.03) * k),
        ]
        stroke(frame, path, width, look.main)
        if look.tail_tip != look.main:
            frame.curve([path[-2], path[-1]], width - 0.024, look.tail_tip)
    elif look.kind == "rabbit":
        color = lighten(look.main, 0.55) if look.tail_tip == look.main else look.tail_tip
        ball(frame, x + s * 0.035, y, 0.078 * k, 0.074 * k, color)
    elif look.kind == "bear":
        ball(frame, x + s * 0.01, y + 0.02, 0.06, 0.05, look.main)
    elif look.kind == "pig":
        r = 0.052 * k
        path = [
            (x, y),
            (x + s * 0.05, y + 0.02),
            (x + s * 0.09, y + 0.02 + r),
            (x + s * 0.055, y + 0.02 + 1.7 * r),
            (x + s * 0.03, y + 0.03 + 0.6 * r),
            (x + s * 0.10, y + 0.0 + swing),
            (x + s * 0.15, y + 0.06 + swing),
        ]
        stroke(frame, path, 0.046, look.main)


def face(head: Frame, look: Look, pose: Pose) -> tuple[float, float]:
    """Muzzle, nose, mouth and eyes; gives the height and the radius of the eyes."""
    return {"dog": _dog, "cat": _cat, "bear": _bear, "rabbit": _rabbit, "pig": _pig}[look.kind](head, look, pose)


def _tongue(head: Frame, y: float) -> None:
    oval(head, 0, y, 0.15, 0.19, (170, 60, 78))
    oval(head, 0, y, 0.11, 0.15, (240, 112, 128))


def _line_color(look: Look, over: Color) -> Color:
    """Ink, or a light line where ink would drown."""
    return INK if sum(over) > 230 else lighten(over, 0.55)


def _dog(head: Frame, look: Look, pose: Pose) -> tuple[float, float]:
    w, r, y = look.muzzle_width, look.eye_size, 0.17
    if look.whim < 0.3 and look.pattern in ("bib", "patches", "plain"):
        fill(head, ((-0.10, 0.88), (0.10, 0.88), (0.14, 0.3), (0.28, -0.2), (-0.28, -0.2), (-0.14, 0.3)), look.muzzle)
    oval(head, 0, -0.43, 0.56 * w, 0.47, darken(look.muzzle, 0.10))
    oval(head, -0.01, -0.40, 0.52 * w, 0.43, look.muzzle)
    ink = _line_color(look, look.muzzle)
    if pose.happy:
        _tongue(head, -0.74)
    mouth(head, -0.53, 0.26, ink)
    oval(head, 0, -0.24, 0.28 * w, 0.20, look.nose)
    oval(head, -0.07, -0.18, 0.09, 0.045, WHITE, alpha=150)
    cheeks(head, look, -0.28)
    eyes(head, look, pose, y, r)
    return y, r


def _cat(head: Frame, look: Look, pose: Pose) -> tuple[float, float]:
    w, r, y = look.muzzle_width, look.eye_size * 1.12, 0.06
    rx = look.head_rx
    ink = _line_color(look, look.main)
    oval(head, -0.17, -0.47, 0.27 * w, 0.23, look.muzzle)
    oval(head, 0.17, -0.47, 0.27 * w, 0.23, look.muzzle)
    cheeks(head, look, -0.36)
    mouth(head, -0.42, 0.22, _line_color(look, look.muzzle), 0.06)
    fill(head, ((-0.15, -0.24), (0.15, -0.24), (0.06, -0.38), (-0.06, -0.38)), look.nose)
    # Whiskers leave the head, so they take a grey that shows on light and on dark grounds.
    pale = sum(look.main) < 330
    color = (236, 234, 232) if pale else mix(ink, look.main, 0.25)
    for side in (-1, 1):
        for dy, end in ((-0.36, -0.24), (-0.50, -0.56)):
            pen(head, [(side * 0.50 * rx, dy), (side * 1.32 * rx, end)], 0.05, color)
    eyes(head, look, pose, y, r, slit=True)
    return y, r


def _bear(head: Frame, look: Look, pose: Pose) -> tuple[float, float]:
    w, r, y = look.muzzle_width, look.eye_size * 0.78, 0.22
    oval(head, 0, -0.36, 0.58 * w, 0.47, darken(look.muzzle, 0.10))
    oval(head, -0.01, -0.33, 0.54 * w, 0.43, look.muzzle)
    ink = _line_color(look, look.muzzle)
    pen(head, [(0, -0.25), (0, -0.5)], 0.07, ink)
    mouth(head, -0.48, 0.25, ink)
    oval(head, 0, -0.14, 0.27 * w, 0.18, look.nose)
    oval(head, -0.08, -0.08, 0.10, 0.05, WHITE, alpha=150)
    cheeks(head, look, -0.16)
    eyes(head, look, pose, y, r)
    return y, r


def _rabbit(head: Frame, look: Look, pose: Pose) -> tuple[float, float]:
    w, r, y = look.muzzle_width, look.eye_size * 1.05, 0.10
    ink = _line_color(look, look.muzzle)
    # Teeth first: the cheeks cover their upper ends.
    fill(head, ((-0.19, -0.48), (0.19, -0.48), (0.17, -0.86), (-0.17, -0.86)), INK)
    fill(head, ((-0.13, -0.48), (-0.015, -0.48), (-0.015, -0.81), (-0.12, -0.81)), WHITE)
    fill(head, ((0.13, -0.48), (0.015, -0.48), (0.015, -0.81), (0.12, -0.81)), WHITE)
    for side in (-1, 1):
        oval(head, side * 0.25 * w, -0.42, 0.32 * w, 0.25, darken(look.muzzle, 0.09))
        oval(head, side * 0.25 * w, -0.40, 0.28 * w, 0.22, look.muzzle)
    fill(head, ((-0.16, -0.16), (0.16, -0.16), (0.05, -0.32), (-0.05, -0.32)), look.nose)
    pen(head, [(0, -0.32), (0, -0.52)], 0.06, ink)
    cheeks(head, look, -0.26, 0.22)
    eyes(head, look, pose, y, r)
    return y, r


def _pig(head: Frame, look: Look, pose: Pose) -> tuple[float, float]:
    w, r, y = look.muzzle_width, look.eye_size * 0.86, 0.22
    snout = mix(look.main, (240, 120, 140), 0.4) if sum(look.main) > 230 else lighten(look.main, 0.35)
    snout = darken(snout, 0.06)
    dark = darken(snout, 0.55)
    mouth_y = -0.60
    pen(head, [(-0.3, mouth_y), (-0.16, mouth_y - 0.12), (0.16, mouth_y - 0.12), (0.3, mouth_y)], 0.07, dark)
    oval(head, 0, -0.26, 0.52 * w, 0.36, darken(snout, 0.25))
    oval(head, 0, -0.24, 0.46 * w, 0.30, lighten(snout, 0.12))
    for side in (-1, 1):
        oval(head, side * 0.18 * w, -0.24, 0.085, 0.14, dark)
    cheeks(head, look, -0.28, 0.2)
    eyes(head, look, pose, y, r)
    return y, r
