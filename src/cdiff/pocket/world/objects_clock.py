"""The clock."""

from __future__ import annotations

import math
import random

from cdiff.pocket.world.canvas import Frame, darken, mix
from cdiff.pocket.world.objects_kit import WHITE, gloss, rim_color
from cdiff.pocket.world.sketch import Art, Sketch, box, heart, make_look, ring


def build_clock(color: str, rng: random.Random) -> Art:
    look = make_look(color, rng, ("plain", "plain", "dots", "stripes", "checks", "confetti"))
    s = Sketch()
    style = rng.choice(("bells", "bells", "square", "arch", "house", "round"))
    part, metal = rim_color(look), rng.choice(((232, 196, 96), (198, 204, 212), look.second, look.accent))
    r = {"bells": 0.37, "round": 0.42, "square": 0.38, "arch": 0.4, "house": 0.36}[style] * rng.uniform(0.95, 1.05)
    cy = r + 0.1
    if style in ("bells", "round"):
        body = ring(0, cy, r, r, 30)
        for side in (-1, 1):
            s.tube([(side * r * 0.5, cy - r * 0.7), (side * r * 0.82, 0.03)], 0.1, part, 0.075, steps=1)
        if style == "bells":
            big = rng.uniform(0.13, 0.17)
            s.tube(
                [(-0.2, cy + r + 0.06), (-0.12, cy + r + 0.19), (0.12, cy + r + 0.19), (0.2, cy + r + 0.06)],
                0.035,
                part,
            )
            for side in (-1, 1):
                x, y = side * r * 0.62, cy + r * 0.9
                dome = [
                    (x + p * big * 1.1, y + q * big * 1.1)
                    for p, q in (
                        (math.cos(math.radians(a - side * 32)), math.sin(math.radians(a - side * 32)))
                        for a in range(-10, 200, 21)
                    )
                ]
                s.add(dome, look.main)
                s.shade(dome, look.main, 0.8)
                s.ellipse(x - 0.03, y + 0.06, 0.03, 0.022, WHITE, 130)
            s.tube([(0, cy + r), (0, cy + r + 0.07)], 0.05, metal, steps=1)
        else:
            s.ellipse(0, cy + r + 0.03, 0.07, 0.07, metal)
    elif style == "square":
        body = box(-r * 1.02, 0.06, r * 1.02, 0.06 + r * 2.05, rng.uniform(0.08, 0.24))
        for side in (-1, 1):
            s.ellipse(side * r * 0.6, 0.05, 0.08, 0.05, part)
        s.add(box(-0.13, 0.05 + r * 2.0, 0.13, 0.13 + r * 2.05, 0.04), metal)
    elif style == "arch":
        wide, base = r * 1.02, 0.06
        body = [
            (wide, base),
            *[
                (wide * math.cos(math.radians(a)), cy + 0.02 + wide * math.sin(math.radians(a)))
                for a in range(0, 181, 9)
            ],
            (-wide, base),
        ]
        s.add(box(-r * 1.2, 0.0, r * 1.2, 0.09, 0.03), part)
    else:
        body = [(r, 0.04), (r, cy + r * 0.5), (0, cy + r * 1.55), (-r, cy + r * 0.5), (-r, 0.04)]
        s.add(box(-r * 1.1, 0.0, r * 1.1, 0.07, 0.03), part)
    s.add(body, look.main)
    s.decorate(body, look, rng, (0.0, 0.12))
    s.shade(body, look.main, 1.1)
    if style == "house":
        roof = rng.choice((look.second, look.accent, part))
        s.tube([(-r * 1.2, cy + r * 0.36), (0, cy + r * 1.5), (r * 1.2, cy + r * 0.36)], 0.1, roof, steps=1)
        s.blob(heart(0, cy + r * 1.0, 0.06), metal, steps=2)
    fy = cy if style in ("bells", "round", "house") else cy + (0.0 if style == "square" else 0.02)
    if style == "square":
        fy = 0.06 + r * 1.025
    f = r * rng.uniform(0.57, 0.63)
    base = (255, 252, 244)
    face = rng.choice((base, base, mix(base, look.main, 0.16), mix(base, look.main, 0.3)))
    if look.pale:
        face = mix((250, 250, 250), look.second, 0.3)
    s.ellipse(0, fy, f * 1.1, f * 1.1, metal)
    s.ellipse(0, fy, f, f, face)
    s.rim(ring(0, fy, f, f), (0.2 * f, fy - 0.3 * f), 0.9, (60, 60, 90), 44)
    ink = (52, 48, 62)
    ticks = rng.choice(("bars", "dots", "four"))
    tick = rng.choice((ink, ink, darken(look.main, 0.3) if not look.pale else ink))
    for k in range(0, 12, 3 if ticks == "four" else 1):
        a = math.radians(30 * k)
        px, py = math.cos(a), math.sin(a)
        if ticks == "dots":
            s.ellipse(px * f * 0.8, fy + py * f * 0.8, 0.018, 0.018, tick)
        else:
            s.tube(
                [(px * f * 0.72, fy + py * f * 0.72), (px * f * 0.88, fy + py * f * 0.88)],
                0.034 if ticks == "four" or k % 3 == 0 else 0.02,
                tick,
                steps=1,
            )
    hand = rng.choice((ink, ink, (196, 46, 52), (40, 74, 150)))
    if style in ("bells", "round"):
        gloss(s, -r * 0.62, fy + r * 0.62, r * 0.07, r * 0.2, -45, look)

    def moving(frame: Frame, free: tuple[float, float, float], phase: float) -> None:
        minutes = free[0] * 720.0 + phase * 60.0
        # Only the minute hand moves with the phase, so that the film loops.
        for angle, length, width in ((free[0] * 360.0, 0.52, 0.055), (minutes * 6.0, 0.8, 0.04)):
            a = math.radians(90.0 - angle)
            x, y = math.cos(a), math.sin(a)
            # A clock must read clockwise also in a mirrored picture.
            x *= frame.mirror
            nx, ny = -y * width / 2, x * width / 2
            end, tail = length * f, -0.12 * f
            frame.polygon(
                [
                    (x * tail + nx, fy + y * tail + ny),
                    (x * end + nx * 0.6, fy + y * end + ny * 0.6),
                    (x * end - nx * 0.6, fy + y * end - ny * 0.6),
                    (x * tail - nx, fy + y * tail - ny),
                ],
                hand,
            )
        frame.ellipse(0, fy, 0.036, 0.036, metal if metal != face else hand)

    return Art(s, 2 * r * 0.9, moving)
