"""Large things outdoors: car, barn."""

from __future__ import annotations

import math
import random

from cdiff.pocket.world.canvas import Frame, darken, lighten, smooth
from cdiff.pocket.world.objects_kit import WHITE, rim_color
from cdiff.pocket.world.palette import contrast_color
from cdiff.pocket.world.sketch import Art, Sketch, box, clip, fitted, heart, make_look, ring, star

GLASS = (176, 218, 234)
TYRE = (46, 46, 54)


def build_car(color: str, rng: random.Random) -> Art:
    look = make_look(
        color, rng, ("plain", "plain", "band", "bands", "star", "heart", "flower", "dots", "checks", "zigzag")
    )
    s = Sketch()
    part = rim_color(look)
    style = rng.choice(("beetle", "sedan", "van", "pickup", "mini"))
    length = {"beetle": 1.24, "sedan": 1.46, "van": 1.36, "pickup": 1.46, "mini": 1.08}[style] * rng.uniform(0.97, 1.03)
    a = length / 2
    r = rng.uniform(0.145, 0.18)
    lo, waist = 0.13, rng.uniform(0.4, 0.45)
    roof = {"beetle": 0.76, "sedan": 0.72, "van": 0.84, "pickup": 0.76, "mini": 0.8}[style] * rng.uniform(0.97, 1.04)
    # Outlines run counter-clockwise from the rear bumper; the car looks to the right.
    outline = {
        "beetle": [
            (-a, lo + 0.06),
            (-a * 0.9, lo),
            (-a * 0.7, lo),
            (a * 0.7, lo),
            (a * 0.9, lo),
            (a, lo + 0.08),
            (a * 0.97, waist - 0.04),
            (a * 0.62, waist + 0.05),
            (a * 0.36, roof - 0.08),
            (0, roof),
            (-a * 0.42, roof - 0.07),
            (-a * 0.78, waist + 0.1),
            (-a * 0.98, waist - 0.08),
        ],
        "sedan": [
            (-a, lo + 0.05),
            (-a * 0.94, lo),
            (-a * 0.7, lo),
            (a * 0.7, lo),
            (a * 0.94, lo),
            (a, lo + 0.06),
            (a * 0.98, waist - 0.03),
            (a * 0.5, waist + 0.05),
            (a * 0.26, roof - 0.03),
            (-a * 0.02, roof),
            (-a * 0.34, roof - 0.03),
            (-a * 0.62, waist + 0.06),
            (-a * 0.98, waist),
        ],
        "van": [
            (-a, lo + 0.05),
            (-a * 0.94, lo),
            (-a * 0.7, lo),
            (a * 0.7, lo),
            (a * 0.94, lo),
            (a, lo + 0.06),
            (a * 0.99, waist - 0.02),
            (a * 0.86, waist + 0.1),
            (a * 0.7, roof - 0.05),
            (a * 0.5, roof),
            (-a * 0.8, roof),
            (-a * 0.97, roof - 0.07),
            (-a, waist),
        ],
        "pickup": [
            (-a, lo + 0.05),
            (-a * 0.94, lo),
            (-a * 0.7, lo),
            (a * 0.7, lo),
            (a * 0.94, lo),
            (a, lo + 0.06),
            (a * 0.98, waist),
            (a * 0.62, waist + 0.05),
            (a * 0.42, roof - 0.03),
            (a * 0.2, roof),
            (-a * 0.06, roof - 0.01),
            (-a * 0.13, roof - 0.08),
            (-a * 0.15, waist + 0.05),
            (-a * 0.97, waist + 0.03),
        ],
        "mini": [
            (-a, lo + 0.05),
            (-a * 0.93, lo),
            (-a * 0.7, lo),
            (a * 0.7, lo),
            (a * 0.93, lo),
            (a, lo + 0.06),
            (a * 0.97, waist),
            (a * 0.66, waist + 0.08),
            (a * 0.46, roof - 0.04),
            (a * 0.1, roof),
            (-a * 0.6, roof - 0.01),
            (-a * 0.86, roof - 0.08),
            (-a * 0.98, waist),
        ],
    }[style]
    # The spline overshoots where the long underside meets the short bumpers: cut that off.
    body = clip(smooth(outline, closed=True, steps=3), box(-a, lo - 0.01, a, 1.2))
    s.add(box(-a * 0.9, lo - 0.03, a * 0.9, lo + 0.08, 0.03), (52, 52, 60))
    s.add(body, look.main)
    low = clip(body, box(-a * 1.1, 0, a * 1.1, waist + 0.02))
    wheels = (-a * 0.58, a * 0.6)
    if look.pattern == "plain" and rng.random() < 0.5:
        s.add(clip(body, box(-a * 1.1, roof - 0.075, a * 1.1, roof + 0.1)), look.second)
    elif look.pattern in ("star", "heart", "flower"):
        s.decorate(body, look, rng, (0.02, (lo + waist) / 2 + 0.03), 0.75)
    else:
        s.decorate(low, look, rng, None, 0.85)
    s.shade(body, look.main)
    # Windows follow the roof line.
    y0, y1 = waist + 0.035, roof - 0.075
    slopes = {
        "beetle": (-a * 0.62, -a * 0.36, a * 0.28, a * 0.52, (0.0,)),
        "sedan": (-a * 0.52, -a * 0.3, a * 0.22, a * 0.42, (-0.06,)),
        "van": (-a * 0.9, -a * 0.88, a * 0.58, a * 0.76, (-0.3, 0.16)),
        "pickup": (-a * 0.08, -a * 0.04, a * 0.34, a * 0.53, ()),
        "mini": (-a * 0.84, -a * 0.74, a * 0.36, a * 0.58, (-0.08,)),
    }[style]
    b0, b1, f1, f0, posts = slopes
    glass = clip(
        smooth(
            [(b0, y0), ((b0 + f0) / 2, y0), (f0, y0), (f1, y1), ((b1 + f1) / 2, y1 + 0.008), (b1, y1)],
            closed=True,
            steps=4,
        ),
        box(b0, y0 - 0.005, f0, y1 + 0.02),
    )
    tint = GLASS if sum(look.main) < 560 or look.main[2] < 150 else (120, 160, 186)
    s.add(glass, tint)
    for x in (-0.1, 0.12):
        m = (b0 + f0) / 2 + x * length * 0.5
        s.add(clip(glass, [(m - 0.06, y0), (m, y0), (m + 0.12, y1 + 0.02), (m + 0.06, y1 + 0.02)]), WHITE, 110)
    s.rim(glass, ((b0 + f0) / 2 + 0.1, y0 - 0.05), 0.92, (40, 60, 90), 60)
    for p in posts:
        s.tube([(p, y0 - 0.01), (p, y1 + 0.02)], 0.05, look.main, steps=1)
    # Door lines, handle, lamps, bumpers.
    for p in posts or (-a * 0.12,):
        s.tube([(p, y0), (p + 0.005, lo + 0.06)], 0.014, part, steps=1)
        s.add(
            box(p - 0.13, waist - 0.04, p - 0.05, waist - 0.015, 0.012),
            lighten(look.main, 0.6) if not look.pale else (120, 124, 134),
        )
    s.ellipse(a * 0.91, waist - 0.09, 0.05, 0.055, (255, 244, 190))
    s.ellipse(a * 0.91, waist - 0.085, 0.028, 0.03, WHITE)
    s.add(
        box(-a * 0.99, waist - 0.14, -a * 0.92, waist - 0.04, 0.02),
        (232, 66, 58) if look.main[0] < 180 or look.main[1] > 110 else (255, 190, 80),
    )
    chrome = rng.choice(((208, 214, 222), look.second, (70, 72, 82)))
    s.add(box(a * 0.84, lo, a * 1.04, lo + 0.075, 0.035), chrome)
    s.add(box(-a * 1.04, lo, -a * 0.84, lo + 0.075, 0.035), chrome)
    extra = rng.choice(("none", "none", "rack", "light", "spare"))
    top = (b1 + f1) / 2
    if extra == "rack" and style != "pickup":
        s.tube([(top - 0.2, roof + 0.03), (top + 0.2, roof + 0.03)], 0.025, (80, 82, 92), steps=1)
        s.add(box(top - 0.17, roof + 0.04, top + 0.05, roof + 0.14, 0.03), look.accent)
        s.add(box(top + 0.07, roof + 0.04, top + 0.18, roof + 0.1, 0.03), (150, 100, 62))
    elif extra == "light":
        s.add(box(top - 0.06, roof - 0.02, top + 0.08, roof + 0.07, 0.03), look.accent)
    elif extra == "spare" and style in ("van", "mini"):
        s.ellipse(-a * 1.02, waist - 0.02, 0.05, 0.12, TYRE)
    for x in wheels:
        s.add(
            clip(body, ring(x, r * 1.02, r * 1.22, r * 1.22, 22)),
            darken(look.main, 0.45) if sum(look.main) > 200 else (20, 20, 24),
        )
    s.tube(
        [(-a * 0.75, waist + 0.005), (0, waist + 0.014), (a * 0.72, waist + 0.005)],
        0.016,
        lighten(look.main, 0.5),
        alpha=150,
    )
    hub = rng.choice(((216, 220, 228), (216, 220, 228), look.second, look.accent))
    spokes = rng.choice((0, 4, 5, 6))
    white_wall = rng.random() < 0.3

    def moving(frame: Frame, free: tuple[float, float, float], phase: float) -> None:
        turn = -360.0 * phase + 90.0 * free[0]
        for x in wheels:
            frame.ellipse(x, r, r, r, TYRE)
            frame.ellipse(x, r, r * 0.72, r * 0.72, (240, 238, 230) if white_wall else (72, 74, 84))
            frame.ellipse(x, r, r * 0.58, r * 0.58, hub)
            if spokes:
                for k in range(spokes):
                    c = math.radians(turn + 360.0 * k / spokes)
                    frame.ellipse(
                        x + math.cos(c) * r * 0.36, r + math.sin(c) * r * 0.36, r * 0.12, r * 0.12, darken(hub, 0.45)
                    )
            else:
                c = math.radians(turn)
                frame.ellipse(
                    x + math.cos(c) * r * 0.2, r + math.sin(c) * r * 0.2, r * 0.16, r * 0.16, lighten(hub, 0.5)
                )
            frame.ellipse(x, r, r * 0.15, r * 0.15, darken(hub, 0.3))

    return fitted(s, length, 1.44, moving)


def build_barn(color: str, rng: random.Random) -> Art:
    look = make_look(color, rng, ("plain", "plain", "planks", "slats", "star", "heart", "band"))
    s = Sketch()
    main, part = look.main, rim_color(look)
    roof = rng.choice(
        (
            contrast_color(main, rng, 110.0, ("brown", "grey", "black", "red", "blue", "green")),
            contrast_color(main, rng, 110.0),
        )
    )
    trim = (
        (252, 250, 244)
        if not look.pale
        else contrast_color(main, rng, 150.0, ("red", "brown", "blue", "green", "black"))
    )
    w, wall = rng.uniform(0.4, 0.5), rng.uniform(0.46, 0.56)
    peak = wall + rng.uniform(0.36, 0.46)
    style = rng.choice(("gambrel", "gambrel", "gable", "round"))
    if style == "gambrel":
        top = [
            (w, wall),
            (w * 0.66, wall + (peak - wall) * 0.68),
            (0, peak),
            (-w * 0.66, wall + (peak - wall) * 0.68),
            (-w, wall),
        ]
    elif style == "gable":
        top = [(w, wall), (0, peak), (-w, wall)]
    else:
        top = [
            (w * math.cos(math.radians(t)), wall + (peak - wall) * 0.92 * math.sin(math.radians(t)))
            for t in range(0, 181, 12)
        ]
    front = [(-w, 0.0), (w, 0.0), *top]
    side = rng.choice(("silo", "shed", "none", "silo"))
    if side == "silo":
        x, sw, sh = -w - 0.06, 0.13, rng.uniform(0.66, 0.86)
        tower = box(x - sw, 0, x + sw, sh)
        s.add(
            [
                (x + sw * math.cos(math.radians(t)) * 1.08, sh + sw * 1.1 * math.sin(math.radians(t)))
                for t in range(0, 181, 15)
            ],
            roof,
        )
        s.add(tower, main)
        for k in (0.25, 0.5, 0.75):
            s.add(box(x - sw, sh * k, x + sw, sh * k + 0.025), part)
        s.shade(tower, main, 1.3)
    elif side == "shed":
        x, sw = -w, 0.24
        shed = [(x - sw, 0), (x, 0), (x, wall * 0.86), (x - sw, wall * 0.58)]
        s.add(shed, darken(main, 0.12))
        s.tube([(x - sw - 0.04, wall * 0.56), (x, wall * 0.9)], 0.07, roof, steps=1)
        s.add(box(x - sw * 0.72, 0.12, x - sw * 0.3, 0.26, 0.02), trim)
        s.add(box(x - sw * 0.65, 0.14, x - sw * 0.37, 0.24), (70, 62, 66))
    s.add(front, main)
    if look.pattern in ("planks", "plain"):
        count = rng.choice((8, 10, 12))
        for k in range(1, count):
            x = -w + 2 * w * k / count
            s.add(clip(front, box(x - 0.007, 0, x + 0.007, peak)), part, 130)
    elif look.pattern == "slats":
        for k in range(1, 11):
            s.add(clip(front, box(-w, k * 0.09 - 0.008, w, k * 0.09 + 0.008)), part, 150)
    elif look.pattern == "band":
        s.add(clip(front, box(-w, wall - 0.03, w, wall + 0.035)), trim)
    s.shade(front, main, 0.9)
    # Door: two leaves with an X each, or one wide leaf.
    dw, dh = rng.uniform(0.19, 0.24), wall * rng.uniform(0.66, 0.78)
    leaf = (
        rng.choice((main, darken(main, 0.16), look.second))
        if sum(main) > 200
        else rng.choice((lighten(main, 0.1), look.second))
    )
    if sum(abs(p - q) for p, q in zip(leaf, trim)) < 150:
        leaf = darken(main, 0.16)
    s.add(box(-dw - 0.03, 0, dw + 0.03, dh + 0.035), trim)
    leaves = ((-dw, -0.014), (0.014, dw)) if rng.random() < 0.5 else ((-dw, dw),)
    for x0, x1 in leaves:
        s.add(box(x0, 0, x1, dh), leaf)
        for p, q in (((x0, 0.0), (x1, dh)), ((x0, dh), (x1, 0.0))):
            s.add(clip(box(x0, 0, x1, dh), _beam(p, q, 0.036)), trim)
    # Loft.
    loft = rng.choice(("square", "round", "arch", "hay"))
    ly = wall + (peak - wall) * 0.36
    if look.pattern in ("star", "heart"):
        s.add(star(0, ly, 0.13), trim) if look.pattern == "star" else s.blob(heart(0, ly, 0.11), trim, steps=2)
    elif loft == "round":
        s.ellipse(0, ly, 0.1, 0.1, trim)
        s.ellipse(0, ly, 0.072, 0.072, (66, 62, 74))
    else:
        radius = 0.09 if loft == "arch" else 0.015
        s.add(box(-0.1, ly - 0.09, 0.1, ly + 0.1, radius), trim)
        s.add(box(-0.075, ly - 0.065, 0.075, ly + 0.075, radius * 0.8), (66, 62, 74))
        if loft == "hay":
            s.blob(
                [(-0.075, ly - 0.07), (0.08, ly - 0.07), (0.07, ly - 0.01), (0, ly + 0.03), (-0.06, ly)],
                (240, 200, 92),
                steps=2,
            )
        else:
            s.add(box(-0.008, ly - 0.065, 0.008, ly + 0.075), trim)
            s.add(box(-0.075, ly - 0.008, 0.075, ly + 0.008), trim)
    # Roof edge, a little lighter along its top.
    over = [(top[0][0] * 1.1, wall - 0.05), *top[1:-1], (top[-1][0] * 1.1, wall - 0.05)]
    s.tube([(x, y + 0.01) for x, y in over], 0.105, darken(roof, 0.18), steps=1)
    s.tube([(x, y + 0.024) for x, y in over], 0.07, roof, steps=1)
    crown = rng.choice(("none", "vane", "cupola", "none"))
    ridge = max(y for _, y in top)
    if crown == "cupola":
        s.add(box(-0.07, ridge + 0.03, 0.07, ridge + 0.13), trim)
        s.add(box(-0.035, ridge + 0.05, 0.035, ridge + 0.11), (66, 62, 74))
        s.add([(-0.11, ridge + 0.12), (0.11, ridge + 0.12), (0, ridge + 0.21)], roof)
    elif crown == "vane":
        s.tube([(0, ridge + 0.04), (0, ridge + 0.19)], 0.018, (58, 56, 66), steps=1)
        s.tube([(-0.09, ridge + 0.15), (0.09, ridge + 0.15)], 0.018, (58, 56, 66), steps=1)
        s.add([(0.06, ridge + 0.11), (0.15, ridge + 0.15), (0.06, ridge + 0.19)], (58, 56, 66))
    return fitted(s, 2.3 * w, 1.3)


def _beam(p: tuple[float, float], q: tuple[float, float], width: float) -> list[tuple[float, float]]:
    """A counter-clockwise bar from p to q, longer than both."""
    dx, dy = q[0] - p[0], q[1] - p[1]
    n = math.hypot(dx, dy)
    ux, uy = dx / n, dy / n
    px, py = -uy * width / 2, ux * width / 2
    a, b = (p[0] - ux * 0.05, p[1] - uy * 0.05), (q[0] + ux * 0.05, q[1] + uy * 0.05)
    return [(a[0] - px, a[1] - py), (b[0] - px, b[1] - py), (b[0] + px, b[1] + py), (a[0] + px, a[1] + py)]
