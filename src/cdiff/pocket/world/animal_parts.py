"""Brushes and body parts that the animals share."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from cdiff.pocket.world.animal_look import INK, Look, tones
from cdiff.pocket.world.canvas import Color, Frame, Point, darken, smooth

ROUND = [(math.cos(2 * math.pi * i / 24), math.sin(2 * math.pi * i / 24)) for i in range(24)]
WHITE: Color = (255, 255, 255)


@dataclass(frozen=True)
class Pose:
    """Small variations of one picture. `swing` and `stance` are -1 to 1, `shift` moves the head,
    `wave` is the side of a raised paw (0: none), `stride` the walk cycle (None when standing still)."""

    sitting: bool
    tilt: float
    gaze: Point
    ear_lift: float
    swing: float
    blink: bool
    happy: bool
    shift: Point = (0.0, 0.0)
    stance: float = 0.0
    wave: int = 0
    splay: bool = False
    stride: float | None = None


def pose_of(seed: int, phase: float, splay: bool) -> Pose:
    """The pose of a seed. A walking animal stands; only its legs, wings and bobbing follow the phase."""
    rng = random.Random(f"pose/{seed}")
    sitting = rng.random() < 0.5
    return Pose(
        sitting=sitting and phase <= 0.0,
        tilt=rng.uniform(-10.0, 10.0),
        gaze=(rng.uniform(-1.0, 1.0), rng.uniform(-0.8, 0.8)),
        ear_lift=rng.uniform(-9.0, 9.0),
        swing=rng.uniform(-1.0, 1.0),
        blink=rng.random() < 0.06,
        happy=rng.random() < 0.35,
        shift=(rng.uniform(-0.03, 0.03), rng.uniform(-0.02, 0.012)),
        stance=rng.uniform(-1.0, 1.0),
        wave=rng.choice((-1, 1)) if rng.random() < 0.3 else 0,
        splay=splay,
        stride=phase % 1.0 if phase > 0.0 else None,
    )


def fill(
    frame: Frame,
    points: Sequence[Point],
    color: Color,
    alpha: int = 255,
    scale: float = 1.0,
    dx: float = 0.0,
    dy: float = 0.0,
) -> None:
    """A polygon, scaled about its own origin and moved by (dx, dy): one outline serves for rim, shade and surface."""
    ox, oy = frame.pixel(dx, dy)
    c, s = frame.cos * frame.unit * scale, frame.sin * frame.unit * scale
    mc, ms = frame.mirror * c, frame.mirror * s
    frame.draw.polygon([(ox + mc * x - ms * y, oy - s * x - c * y) for x, y in points], fill=(*color, alpha))


def oval(
    frame: Frame, x: float, y: float, rx: float, ry: float, color: Color, angle: float = 0.0, alpha: int = 255
) -> None:
    """An ellipse; a true polygon wherever it is turned, with fewer corners than the frame's own."""
    turn = frame.angle + angle
    px, py = frame.pixel(x, y)
    ax, ay = rx * frame.unit, ry * frame.unit
    if turn == 0.0 or rx == ry:
        frame.draw.ellipse((px - ax, py - ay, px + ax, py + ay), fill=(*color, alpha))
        return
    c, s = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    a, b, d, e = frame.mirror * c * ax, frame.mirror * s * ay, s * ax, c * ay
    frame.draw.polygon([(px + a * u - b * v, py - d * u - e * v) for u, v in ROUND], fill=(*color, alpha))


def form(
    frame: Frame,
    points: Sequence[Point],
    color: Color,
    rim: float = 0.955,
    core: float = 0.87,
    lift: float = 0.04,
    size: float = 1.0,
) -> None:
    """A rounded volume: a darker rim, a shaded edge and the surface moved towards the light (up and left)."""
    edge, shade, _ = tones(color)
    fill(frame, points, edge)
    fill(frame, points, shade, scale=rim)
    fill(frame, points, color, scale=core, dx=-0.4 * lift * size, dy=lift * size)


def ball(
    frame: Frame, x: float, y: float, rx: float, ry: float, color: Color, angle: float = 0.0, edge: float = 0.012
) -> None:
    """A small round volume with a rim `edge` thick."""
    rim, _, _ = tones(color)
    oval(frame, x, y, rx, ry, rim, angle)
    oval(frame, x, y + 0.25 * edge, rx - edge, ry - edge, color, angle)


def stroke(frame: Frame, points: Sequence[Point], width: float, color: Color, steps: int = 4) -> None:
    """A smooth round-ended stroke with a darker rim, for tails: a ribbon polygon, cheaper than a jointed line."""
    path = smooth(points, closed=False, steps=steps)
    left = []
    for i, (x, y) in enumerate(path):
        (px, py), (qx, qy) = path[max(i - 1, 0)], path[min(i + 1, len(path) - 1)]
        dx, dy = qx - px, qy - py
        norm = math.hypot(dx, dy) or 1.0
        left.append((x, y, -dy / norm, dx / norm))
    right = left[::-1]
    for half, tone in ((width / 2, tones(color)[0]), (width / 2 - 0.012, color)):
        ribbon = [(x + nx * half, y + ny * half) for x, y, nx, ny in left] + [
            (x - nx * half, y - ny * half) for x, y, nx, ny in right
        ]
        fill(frame, ribbon, tone)
        oval(frame, *path[-1], half, half, tone)


def pen(frame: Frame, points: Sequence[Point], width: float, color: Color) -> None:
    """A thin line without the round joints, which would not show and take time."""
    frame.draw.line([frame.pixel(x, y) for x, y in points], fill=color, width=max(1, round(width * frame.unit)))


@lru_cache(maxsize=4096)
def leg_outline(length: float, width: float, foot: float) -> tuple[Point, ...]:
    """A leg hanging from the origin: a soft column with a round foot that sticks out a little in front (x > 0)."""
    w = width
    points = [
        (-w * 1.15, w * 0.6),
        (-w * 0.95, -length * 0.5),
        (-w * 1.05, -length + 0.012),
        (-w * 0.6, -length),
        (w * 0.6 * foot, -length),
    ]
    points += [
        (w * 1.15 * foot, -length + w * 0.5),
        (w * 0.95, -length + w * 1.15),
        (w * 1.0, -length * 0.45),
        (w * 1.2, w * 0.6),
    ]
    return tuple(smooth(points, closed=True, steps=3))


def leg(
    frame: Frame, look: Look, x: float, hip: float, angle: float, lift: float, far: bool, foot: float = 1.35
) -> None:
    """One leg from a hip at (x, hip), swung by `angle` with the foot raised by `lift`."""
    length = hip - lift
    outline = leg_outline(round(length, 3), look.leg_width, foot)
    color = darken(look.main, 0.2) if far else look.main
    sock = darken(look.foot, 0.2) if far else look.foot
    inner = frame.at(x, hip, 1.0, angle)
    fill(inner, outline, tones(color)[0])
    thin = leg_outline(round(length - 0.012, 3), look.leg_width - 0.012, foot)
    fill(inner, thin, color)
    if look.foot != look.main:
        w, top = look.leg_width - 0.012, -length + min(0.11, 0.55 * length)
        low = -length + 0.012
        fill(
            inner,
            (
                (-w, top),
                (-w * 1.02, low + 0.004),
                (-w * 0.6, low),
                (w * 0.7 * foot, low),
                (w * 1.1 * foot, low + w * 0.5),
                (w, low + w),
                (w, top),
            ),
            sock,
        )


def shadow(frame: Frame, x: float, rx: float) -> None:
    """The soft contact shadow: three thin layers, since there is no blur."""
    for k, alpha in ((1.0, 26), (0.82, 34), (0.6, 40)):
        oval(frame, x, frame.ground + 0.008, rx * k, 0.055 * k, (24, 20, 40), alpha=alpha)


def body_marks(frame: Frame, look: Look, x: float, y: float, a: float, b: float, outline: Sequence[Point]) -> None:
    """Spots, patches and stripes on a body centred at (x, y) with half-axes a, b; fixed in body coordinates."""
    for u, v, size, stretch, angle in look.body_marks:
        oval(frame, x + u * a * 0.88, y + v * b * 0.86, size, size * stretch, look.second, angle)
    for degrees in look.stripe_angles:
        wedge(frame, outline, degrees, 0.034, 0.55, look.second, x, y)


def wedge(
    frame: Frame,
    outline: Sequence[Point],
    degrees: float,
    half: float,
    depth: float,
    color: Color,
    x: float = 0.0,
    y: float = 0.0,
) -> None:
    """A stripe that starts at the edge of an outline (evenly sampled by angle) and tapers inwards."""
    n = len(outline)
    t = degrees / 360 * n
    i = int(t) % n
    px, py = outline[i]
    qx, qy = outline[(i + 1) % n]
    f = t - int(t)
    px, py = (px + (qx - px) * f) * 0.96, (py + (qy - py) * f) * 0.96
    norm = math.hypot(px, py)
    # Across the radius, in the units of the frame: the outline of a head is drawn in head units.
    cx, cy = -py / norm * half, px / norm * half
    tip = (px * (1 - depth), py * (1 - depth))
    mid = 1 - 0.55 * depth
    fill(
        frame,
        (
            (px + cx, py + cy),
            (px * mid + cx * 0.8, py * mid + cy * 0.8),
            tip,
            (px * mid - cx * 0.8, py * mid - cy * 0.8),
            (px - cx, py - cy),
        ),
        color,
        dx=x,
        dy=y,
    )


def skull(head: Frame, look: Look) -> None:
    """The head with its markings, before the face."""
    form(head, look.head, look.main, rim=0.95, core=0.88, lift=0.05)
    for x, y, rx, ry, angle in look.head_marks:
        oval(head, x * look.head_rx, y, rx * look.head_rx, ry, look.second, angle)
    # A striped forehead would turn a dog into a cat and a bear into a tiger.
    if look.stripe_angles and look.kind not in ("dog", "bear"):
        for degrees in (72, 90, 108):
            wedge(head, look.head, degrees, 0.085, 0.5 if degrees == 90 else 0.38, look.second)
        for degrees in (-8, 188):
            wedge(head, look.head, degrees % 360, 0.08, 0.28, look.second)
    oval(head, -0.32 * look.head_rx, 0.66, 0.26, 0.13, WHITE, 22, alpha=46)


def eyes(head: Frame, look: Look, pose: Pose, y: float, radius: float, slit: bool = False) -> None:
    """Two lively eyes: white, iris, pupil, and a highlight each; closed ones are small arcs."""
    gap = look.eye_gap * look.head_rx * 0.94
    for side in (-1, 1):
        x = side * gap
        if pose.blink:
            color = INK if sum(look.main) > 200 else (214, 208, 204)
            pen(
                head,
                [
                    (x - radius, y),
                    (x - radius * 0.5, y - radius * 0.5),
                    (x + radius * 0.5, y - radius * 0.5),
                    (x + radius, y),
                ],
                0.09,
                color,
            )
            continue
        oval(head, x, y, radius * 1.04, radius * 1.16, INK if sum(look.main) > 200 else (16, 14, 18))
        oval(head, x, y, radius * 0.84, radius * 0.96, (252, 250, 246))
        gx, gy = x + pose.gaze[0] * radius * 0.16, y + pose.gaze[1] * radius * 0.12
        r = radius * 0.76
        oval(head, gx, gy, r, r, look.iris)
        if slit:
            oval(head, gx, gy, r * 0.42, r * 0.92, (20, 16, 22))
        else:
            oval(head, gx, gy, r * 0.66, r * 0.66, (20, 16, 22))
        oval(head, gx - radius * 0.28, gy + radius * 0.34, radius * 0.30, radius * 0.30, WHITE)


def cheeks(head: Frame, look: Look, y: float, size: float = 0.2) -> None:
    if look.blush:
        for side in (-1, 1):
            oval(head, side * look.head_rx * 0.66, y, size, size * 0.66, (240, 96, 120), alpha=84)


def mouth(head: Frame, y: float, size: float, color: Color = INK, width: float = 0.07) -> None:
    """The soft w under a nose."""
    s = size
    pen(
        head,
        [
            (-s, y),
            (-s * 0.75, y - s * 0.42),
            (-s * 0.3, y - s * 0.42),
            (0, y),
            (s * 0.3, y - s * 0.42),
            (s * 0.75, y - s * 0.42),
            (s, y),
        ],
        width,
        color,
    )


def collar(frame: Frame, look: Look, x: float, y: float, half: float) -> None:
    """A coloured band under the chin with a golden tag."""
    if look.collar is None:
        return
    path = [
        (x - half, y + 0.035),
        (x - half * 0.5, y - 0.012),
        (x, y - 0.028),
        (x + half * 0.5, y - 0.012),
        (x + half, y + 0.035),
    ]
    frame.line(path, 0.058, darken(look.collar, 0.3))
    frame.line(path, 0.040, look.collar)
    oval(frame, x, y - 0.062, 0.030, 0.030, (150, 98, 20))
    oval(frame, x, y - 0.060, 0.022, 0.022, (252, 208, 84))
