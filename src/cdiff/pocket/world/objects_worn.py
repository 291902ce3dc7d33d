"""Things that are worn: backpack, boot."""

from __future__ import annotations

import math
import random

from cdiff.pocket.world.canvas import darken, lighten, mix, smooth
from cdiff.pocket.world.objects_kit import WHITE, gloss, rim_color
from cdiff.pocket.world.sketch import Art, Sketch, box, clip, fitted, heart, make_look, star


def build_backpack(color: str, rng: random.Random) -> Art:
    look = make_look(color, rng)
    s = Sketch()
    main, part = look.main, rim_color(look)
    w, h = rng.uniform(0.34, 0.43), rng.uniform(0.82, 0.92)
    style = rng.choice(("arch", "box", "roll", "flap"))
    strap = rng.choice((look.second, part, look.accent, (140, 92, 58)))
    # Straps peep out at both sides, the loop on top.
    for side in (-1, 1):
        path = [
            (side * w * 0.5, h * 0.9),
            (side * w * 1.16, h * 0.72),
            (side * w * 1.24, h * 0.34),
            (side * w * 0.8, 0.08),
        ]
        s.tube(path, 0.1, darken(strap, 0.22))
        s.tube(path, 0.066, strap)
    loop = rng.uniform(0.12, 0.17)
    s.tube([(-loop, h - 0.03), (-loop * 0.8, h + 0.09), (loop * 0.8, h + 0.09), (loop, h - 0.03)], 0.055, strap)
    if rng.random() < 0.6:
        pouch = lighten(look.second, 0.05)
        for side in (-1, 1):
            b = box(side * w - 0.09, 0.07, side * w + 0.09, 0.36, 0.06)
            s.add(b, rng.choice((pouch, part)) if side < 0 else part)
            s.shade(b, part)
    radius = {"arch": w * 0.92, "box": 0.13, "roll": 0.1, "flap": 0.17}[style]
    body = box(-w, 0.0, w, h, 0.1)
    if style == "arch":
        body = [
            (w * 0.9, 0),
            (w, 0.06),
            (w, h - radius),
            *[
                (w * math.cos(math.radians(t)), h - radius + radius * math.sin(math.radians(t)))
                for t in range(10, 171, 16)
            ],
            (-w, h - radius),
            (-w, 0.06),
            (-w * 0.9, 0),
        ]
    elif style == "roll":
        body = smooth(
            [(-w, 0.02), (w, 0.02), (w * 1.02, h * 0.45), (w * 0.82, h), (-w * 0.82, h), (-w * 1.02, h * 0.45)],
            closed=True,
            steps=4,
        )
    else:
        body = box(-w, 0.0, w, h, radius)
    s.add(body, main)
    emblem = look.pattern in ("star", "heart", "flower")
    if not (emblem and style in ("roll", "flap")):  # there the flap carries it
        s.decorate(body, look, rng, (0.0, h * 0.66), 0.9)
    s.shade(body, main)
    # Front pocket.
    pw, ph = w * rng.uniform(0.66, 0.78), h * rng.uniform(0.34, 0.42)
    pocket = box(-pw, 0.06, pw, 0.06 + ph, rng.choice((0.05, 0.1, 0.16)))
    fill = main if look.pattern not in ("plain", "star", "heart", "flower") or rng.random() < 0.4 else look.second
    s.add(
        [(x * 1.05, 0.06 + (y - 0.06) * 1.04 - 0.012) for x, y in pocket],
        darken(main, 0.3) if sum(main) > 200 else (16, 16, 20),
    )
    s.add(pocket, mix(fill, WHITE, 0.08))
    s.shade(pocket, fill, 0.9)
    if look.pattern == "plain" and rng.random() < 0.7:
        kind = rng.choice(("star", "heart", "dot"))
        cx, cy = 0.0, 0.06 + ph * 0.4
        mark = look.accent if fill != main else look.second
        if kind == "star":
            s.add(star(cx, cy, 0.1), mark)
        elif kind == "heart":
            s.blob(heart(cx, cy, 0.085), mark, steps=2)
        else:
            s.ellipse(cx, cy, 0.075, 0.075, mark)
    zipper = (246, 236, 206) if not look.pale else (96, 98, 110)
    zy = 0.06 + ph * 0.8
    s.tube([(-pw * 0.82, zy), (pw * 0.82, zy)], 0.026, zipper, steps=1)
    s.add(box(pw * 0.5, zy - 0.075, pw * 0.5 + 0.045, zy, 0.02), look.accent)
    if style in ("arch", "box"):
        top = [
            (-w * 0.86, h * 0.56),
            (-w * 0.8, h * 0.78),
            (-w * 0.45, h * 0.9),
            (w * 0.45, h * 0.9),
            (w * 0.8, h * 0.78),
            (w * 0.86, h * 0.56),
        ]
        s.tube(top, 0.024, zipper)
        s.add(box(w * 0.8, h * 0.5, w * 0.8 + 0.045, h * 0.58, 0.02), look.accent)
    else:
        bottom = h * (0.52 if style == "flap" else 0.7)
        flap = [
            (-w * 1.02, h * 0.96),
            (-w * 1.0, bottom + 0.06),
            (-w * 0.7, bottom),
            (w * 0.7, bottom),
            (w * 1.0, bottom + 0.06),
            (w * 1.02, h * 0.96),
            (w * 0.7, h * 1.02),
            (-w * 0.7, h * 1.02),
        ]
        flap = smooth(flap, closed=True, steps=3)
        cover = mix(main, WHITE, 0.1)
        s.add([(x, y - 0.02) for x, y in flap], darken(main, 0.32) if sum(main) > 200 else (14, 14, 18))
        s.add(flap, cover)
        if look.pattern in ("star", "heart", "flower", "dots", "stripes", "checks"):
            s.decorate(flap, look, rng, (0.0, (bottom + h) / 2), 0.85 if style == "flap" else 0.7)
        s.shade(flap, main, 0.8)
        for side in (-1, 1):
            s.add(box(side * w * 0.5 - 0.03, bottom - 0.1, side * w * 0.5 + 0.03, bottom + 0.12, 0.012), strap)
            s.add(
                box(side * w * 0.5 - 0.042, bottom - 0.02, side * w * 0.5 + 0.042, bottom + 0.04, 0.012),
                (236, 204, 120),
            )
    gloss(s, -w * 0.66, h * 0.66, w * 0.08, h * 0.1, 0, look)
    return Art(s, 2.1 * w)


def build_boot(color: str, rng: random.Random) -> Art:
    look = make_look(color, rng)
    s = Sketch()
    main, part = look.main, rim_color(look)
    style = rng.choice(("rain", "rain", "laced", "laced", "chelsea", "fur"))
    tall = {
        "rain": rng.uniform(0.9, 0.98),
        "laced": rng.uniform(0.72, 0.88),
        "chelsea": rng.uniform(0.68, 0.8),
        "fur": rng.uniform(0.74, 0.84),
    }[style]
    sw = rng.uniform(0.19, 0.23)
    toe = rng.uniform(0.48, 0.58)
    bump = rng.uniform(0.3, 0.36)
    back = -sw - 0.13
    front = back + 2 * sw
    sole = rng.choice((0.06, 0.09, 0.12))
    outline = [
        (back + 0.01, sole - 0.01),
        (0.1, sole - 0.012),
        (toe - 0.04, sole - 0.01),
        (toe, sole + 0.1),
        (toe - 0.07, bump - 0.02),
        (toe - 0.24, bump + 0.03),
        (front + 0.04, bump + 0.13),
        (front - 0.005, bump + 0.27),
        (front + 0.015, tall),
        ((front + back) / 2, tall + 0.012),
        (back - 0.03, tall),
        (back + 0.01, tall * 0.6),
        (back - 0.005, sole + 0.14),
    ]
    body = smooth(outline, closed=True, steps=4)
    rubber = rng.choice(((70, 60, 58), (240, 232, 214), look.second, (150, 104, 66), (54, 54, 62)))
    if sum(abs(p - q) for p, q in zip(rubber, main)) < 120:
        rubber = (240, 232, 214) if sum(main) < 380 else (84, 66, 58)
    # Pull loop behind the shaft, mouth of the boot.
    if rng.random() < 0.6:
        s.tube(
            [(back + 0.03, tall - 0.06), (back - 0.07, tall + 0.02), (back - 0.01, tall + 0.1), (back + 0.06, tall)],
            0.04,
            look.second,
        )
    s.add(body, main)
    # An emblem keeps clear of laces and of the elastic.
    spot = (0.2, 0.24) if style == "chelsea" else ((front + back) / 2 - (0.05 if style == "laced" else 0.0), tall * 0.7)
    s.decorate(body, look, rng, spot, 0.62)
    s.shade(body, main)
    if (style == "rain" and rng.random() < 0.6) or (style == "laced" and rng.random() < 0.4):
        cap = clip(body, box(toe - 0.2, 0, toe + 0.1, bump + 0.1))
        s.add(cap, look.second if look.pattern == "plain" else part)
        s.shade(cap, look.second, 0.8)
    if style == "laced":
        tongue = [
            (front - 0.05, bump + 0.1),
            (front + 0.1, bump + 0.07),
            (front + 0.05, bump + 0.2),
            (front + 0.06, tall + 0.05),
            (front - 0.07, tall + 0.03),
        ]
        s.blob(tongue, part, steps=3)
        lace = (252, 246, 232) if not look.pale else look.accent
        for k in range(4):
            y = bump + 0.1 + (tall - bump - 0.16) * k / 3
            x = front + (0.06 if k == 0 else 0.0)
            s.tube([(x - 0.13, y - 0.015), (x + 0.03, y + 0.03)], 0.034, lace, steps=1)
            s.ellipse(x - 0.14, y - 0.015, 0.022, 0.022, (232, 200, 110))
    elif style == "chelsea":
        elastic = [
            ((front + back) / 2 - 0.1, tall - 0.02),
            ((front + back) / 2 - 0.05, bump + 0.08),
            ((front + back) / 2 + 0.05, bump + 0.08),
            ((front + back) / 2 + 0.1, tall - 0.02),
        ]
        s.add(elastic, part)
        for k in (-1, 0, 1):
            m = (front + back) / 2 + k * 0.045
            s.tube(
                [(m, tall - 0.04), (m * 0.4 + 0.6 * (front + back) / 2, bump + 0.12)], 0.012, darken(main, 0.5), steps=1
            )
    elif style == "fur":
        fluff = rng.choice(((255, 250, 240), (240, 222, 196))) if not look.pale else (206, 176, 146)
        for k in range(5):
            x = back - 0.02 + (front - back + 0.05) * k / 4
            s.ellipse(x, tall, 0.075, 0.07, darken(fluff, 0.1))
        for k in range(5):
            x = back - 0.02 + (front - back + 0.05) * k / 4
            s.ellipse(x - 0.01, tall + 0.015, 0.062, 0.056, fluff)
        s.tube([(back, bump + 0.17), (front + 0.05, bump + 0.15)], 0.05, look.accent, steps=1)
        s.add(box(front - 0.1, bump + 0.11, front - 0.01, bump + 0.21, 0.02), (236, 204, 120))
    if style == "rain":
        s.tube(
            [(back - 0.02, tall - 0.03), ((front + back) / 2, tall - 0.045), (front + 0.01, tall - 0.03)],
            0.085,
            look.second if look.pattern in ("plain", "star", "heart", "flower", "dots") else part,
        )
    if style != "fur":
        s.ellipse((front + back) / 2 - 0.005, tall + 0.005, sw * 1.02, 0.032, darken(main, 0.5))
    # Sole with a heel.
    heel = rng.random() < 0.6
    s.add(box(back - 0.025, 0.0 if not heel else 0.035, toe + 0.025, sole + 0.03, 0.04), rubber)
    if heel:
        s.add(box(back - 0.025, 0.0, back + 0.24, sole + 0.02, 0.03), rubber)
        s.add(box(back + 0.34, 0.0, toe + 0.02, sole, 0.035), rubber)
    s.add(box(back - 0.02, sole + 0.008, toe + 0.02, sole + 0.028, 0.01), darken(rubber, 0.25), 160)
    gloss(s, back + 0.075, tall * 0.66, 0.032, tall * 0.13, 0, look)
    s.ellipse(toe - 0.12, bump - 0.05, 0.075, 0.034, WHITE, 90, -18)
    return fitted(s, toe - back, 1.1)
