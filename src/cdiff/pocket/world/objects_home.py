"""Vessels: teapot, cup, vase."""

from __future__ import annotations

import math
import random

from cdiff.pocket.world.canvas import Frame, darken, lighten
from cdiff.pocket.world.objects_kit import WHITE, gloss, rim_color
from cdiff.pocket.world.palette import contrast_color
from cdiff.pocket.world.sketch import Art, Sketch, box, fitted, heart, lathe, make_look, tube

WOOD = (150, 100, 62)


def build_teapot(color: str, rng: random.Random) -> Art:
    look = make_look(color, rng)
    s = Sketch()
    shape = rng.choice(("round", "squat", "pear", "tall", "drum"))
    w, h = {
        "round": (rng.uniform(0.39, 0.43), rng.uniform(0.64, 0.7)),
        "squat": (rng.uniform(0.44, 0.49), rng.uniform(0.5, 0.58)),
        "pear": (rng.uniform(0.38, 0.43), rng.uniform(0.68, 0.76)),
        "tall": (rng.uniform(0.29, 0.33), rng.uniform(0.76, 0.84)),
        "drum": (rng.uniform(0.36, 0.41), rng.uniform(0.56, 0.66)),
    }[shape]
    mouth = w * rng.uniform(0.4, 0.55)
    base = w * rng.uniform(0.5, 0.68)
    y0 = 0.05
    profile = {
        "round": ((base, y0), (w * 0.9, y0 + h * 0.2), (w, y0 + h * 0.48), (w * 0.84, y0 + h * 0.8), (mouth, y0 + h)),
        "squat": ((base, y0), (w * 0.94, y0 + h * 0.22), (w, y0 + h * 0.48), (w * 0.8, y0 + h * 0.82), (mouth, y0 + h)),
        "pear": ((base, y0), (w * 0.97, y0 + h * 0.2), (w, y0 + h * 0.36), (w * 0.66, y0 + h * 0.7), (mouth, y0 + h)),
        "tall": (
            (w, y0),
            (w * 0.98, y0 + h * 0.3),
            (w * 0.86, y0 + h * 0.7),
            (w * 0.72, y0 + h * 0.92),
            (w * 0.6, y0 + h),
        ),
        "drum": (
            (w * 0.95, y0),
            (w, y0 + h * 0.12),
            (w, y0 + h * 0.75),
            (w * 0.92, y0 + h * 0.9),
            (mouth * 1.2, y0 + h),
        ),
    }[shape]
    mouth = profile[-1][0]
    body = lathe(profile, belly=0.025)
    part = rim_color(look)
    trim = rng.choice((look.main, look.main, look.second, look.accent))
    # Handle first: it runs behind the body.
    handle = rng.choice(("loop", "ear", "square", "bail"))
    thick = rng.uniform(0.065, 0.095)
    grip = rng.choice((look.main, look.main, look.second, WOOD))
    edge = darken(grip, 0.22) if sum(grip) > 200 else lighten(grip, 0.2)
    reach = w + rng.uniform(0.22, 0.3)
    top, low = y0 + h * 0.82, y0 + h * 0.22
    if handle == "loop":
        path = [
            (-w * 0.7, top),
            (-reach * 0.86, top + 0.03),
            (-reach, (top + low) / 2),
            (-reach * 0.84, low - 0.02),
            (-w * 0.75, low),
        ]
    elif handle == "ear":
        path = [
            (-w * 0.7, top),
            (-reach * 0.9, top + 0.1),
            (-reach * 1.02, top - 0.08),
            (-reach * 0.92, low + 0.16),
            (-w * 0.8, low),
        ]
    elif handle == "square":
        path = [
            (-w * 0.7, top),
            (-reach * 0.93, top + 0.01),
            (-reach, top - 0.06),
            (-reach * 0.97, low + 0.06),
            (-w * 0.8, low),
        ]
    else:
        peak = y0 + h + rng.uniform(0.3, 0.36)
        path = [
            (-w * 0.8, top - 0.04),
            (-w * 0.88, peak - 0.16),
            (-w * 0.5, peak),
            (w * 0.5, peak),
            (w * 0.88, peak - 0.16),
            (w * 0.8, top - 0.04),
        ]
    s.tube(path, thick * 1.15, edge)
    s.tube([(x + 0.006, y + 0.012) for x, y in path], thick * 0.72, grip)
    # Spout: a tapering tube from the belly; its mouth is a small dark ellipse.
    spout = rng.choice(("swan", "straight", "stub"))
    wide, root = rng.uniform(0.19, 0.25), y0 + h * 0.36
    if spout == "swan":
        tip = (w + 0.29, y0 + h * 0.98)
        path = [(w * 0.7, root), (w + 0.09, root + 0.07), (w + 0.16, y0 + h * 0.7), tip]
    elif spout == "straight":
        tip = (w + 0.27, y0 + h * 0.94)
        path = [(w * 0.6, root + 0.02), (w + 0.1, y0 + h * 0.68), tip]
    else:
        tip = (w + 0.15, y0 + h * 0.92)
        path = [(w * 0.6, root + 0.12), (w + 0.04, y0 + h * 0.72), tip]
    s.tube(path, wide * 1.1, part, wide * 0.46)
    s.tube([(x - 0.012, y + 0.008) for x, y in path], wide * 0.86, look.main, wide * 0.32)
    s.ellipse(tip[0], tip[1], wide * 0.26, wide * 0.15, darken(look.main, 0.45), angle=-28)
    # Foot, body, lid.
    s.add(box(-profile[0][0] * 0.9, 0.0, profile[0][0] * 0.9, 0.08, 0.03), trim if trim != look.main else part)
    s.add(body, look.main)
    s.decorate(body, look, rng, (0.0, y0 + h * 0.44))
    s.shade(body, look.main)
    yl = y0 + h
    lid = rng.choice(("dome", "flat", "cone"))
    lw = mouth * 1.12
    rise = {"dome": 0.13, "flat": 0.07, "cone": 0.17}[lid]
    cap = {
        "dome": lathe([(lw, yl - 0.015), (lw * 0.82, yl + rise * 0.65), (lw * 0.36, yl + rise)], belly=0.012),
        "flat": lathe([(lw * 1.06, yl - 0.01), (lw * 0.95, yl + rise * 0.8), (lw * 0.7, yl + rise)], belly=0.012),
        "cone": lathe([(lw, yl - 0.015), (lw * 0.62, yl + rise * 0.5), (lw * 0.2, yl + rise)], belly=0.012),
    }[lid]
    s.add(cap, look.main)
    s.shade(cap, look.main)
    s.tube(
        [(-lw * 1.02, yl - 0.01), (0, yl - 0.028), (lw * 1.02, yl - 0.01)], 0.04, trim if trim != look.main else part
    )
    knob = rng.choice(("ball", "ball", "bar", "heart", "tall"))
    ky = yl + rise
    kc = trim if trim != look.main else rng.choice((look.second, part, look.accent))
    if knob == "ball":
        s.ellipse(0, ky + 0.05, 0.065, 0.062, kc)
    elif knob == "bar":
        s.add(box(-0.11, ky, 0.11, ky + 0.065, 0.032), kc)
    elif knob == "heart":
        s.blob(heart(0, ky + 0.06, 0.08), kc, steps=2)
    else:
        s.add(lathe([(0.03, ky - 0.01), (0.03, ky + 0.03), (0.06, ky + 0.08), (0.03, ky + 0.125)]), kc)
    s.ellipse(-0.02, ky + 0.07, 0.016, 0.016, WHITE, 150)
    gloss(s, -w * 0.5, y0 + h * 0.62, w * 0.14, h * 0.16, -14, look)
    return fitted(s, 2 * w * 0.95, 1.36)


def build_cup(color: str, rng: random.Random) -> Art:
    look = make_look(color, rng)
    s = Sketch()
    shape = rng.choice(("straight", "taper", "bowl", "flare", "barrel"))
    w, h = {
        "straight": (rng.uniform(0.33, 0.38), rng.uniform(0.7, 0.82)),
        "taper": (rng.uniform(0.35, 0.41), rng.uniform(0.7, 0.86)),
        "bowl": (rng.uniform(0.43, 0.49), rng.uniform(0.54, 0.62)),
        "flare": (rng.uniform(0.4, 0.45), rng.uniform(0.66, 0.78)),
        "barrel": (rng.uniform(0.35, 0.4), rng.uniform(0.66, 0.76)),
    }[shape]
    saucer = rng.random() < 0.4
    y0 = 0.08 if saucer else 0.03
    t = y0 + h
    profile = {
        "straight": ((w * 0.93, y0), (w, y0 + 0.06), (w, y0 + h * 0.5), (w, t)),
        "taper": ((w * 0.66, y0), (w * 0.72, y0 + 0.05), (w * 0.86, y0 + h * 0.5), (w, t)),
        "bowl": ((w * 0.48, y0), (w * 0.8, y0 + h * 0.22), (w * 0.95, y0 + h * 0.55), (w, t)),
        "flare": ((w * 0.62, y0), (w * 0.74, y0 + h * 0.2), (w * 0.78, y0 + h * 0.6), (w, t)),
        "barrel": ((w * 0.74, y0), (w * 0.98, y0 + h * 0.26), (w * 1.03, y0 + h * 0.58), (w * 0.9, t)),
    }[shape]
    mouth = profile[-1][0]
    body = lathe(profile, belly=0.03)
    part = rim_color(look)
    if saucer:
        tint = rng.choice((look.main, look.second))
        s.ellipse(0, 0.06, w * 1.28, 0.09, darken(tint, 0.22) if sum(tint) > 200 else lighten(tint, 0.14))
        s.ellipse(0, 0.078, w * 1.24, 0.08, tint)
        s.ellipse(0, 0.085, w * 0.86, 0.05, darken(tint, 0.16))
    thick = rng.uniform(0.085, 0.12)
    grip = rng.choice((look.main, look.main, look.main, look.second))
    edge = darken(grip, 0.22) if sum(grip) > 200 else lighten(grip, 0.2)
    reach = w + rng.uniform(0.19, 0.27)
    top, low = t - h * rng.uniform(0.12, 0.2), y0 + h * rng.uniform(0.2, 0.3)
    handle = rng.choice(("loop", "ear", "square"))
    root = w * (0.72 if shape != "straight" else 0.9)
    path = {
        "loop": [(root, top), (reach * 0.92, top), (reach, (top + low) / 2), (reach * 0.9, low), (root, low)],
        "ear": [
            (root, top),
            (reach * 0.9, top + 0.08),
            (reach * 1.03, top - 0.1),
            (reach * 0.85, low + 0.1),
            (root, low),
        ],
        "square": [
            (root, top),
            (reach * 0.95, top + 0.01),
            (reach, top - 0.07),
            (reach, low + 0.07),
            (reach * 0.95, low - 0.01),
            (root, low),
        ],
    }[handle]
    s.tube(path, thick * 1.12, edge)
    s.tube([(x - 0.006, y + 0.012) for x, y in path], thick * 0.7, grip)
    s.add(body, look.main)
    s.decorate(body, look, rng, (-0.01, y0 + h * 0.45))
    s.shade(body, look.main)
    # The mouth: rim, inside and what is in the cup.
    lip = look.main if rng.random() < 0.6 else look.second
    s.ellipse(0, t, mouth * 1.03, 0.085, lighten(lip, 0.35) if sum(lip) < 640 else darken(lip, 0.08))
    s.ellipse(0, t, mouth * 0.92, 0.066, part)
    drink = rng.choice(((106, 66, 40), (176, 104, 48), (240, 226, 204), (128, 176, 92), (196, 66, 74), (88, 52, 36)))
    s.ellipse(0, t - 0.014, mouth * 0.85, 0.05, drink)
    s.ellipse(-mouth * 0.25, t - 0.006, mouth * 0.36, 0.02, lighten(drink, 0.4), 150)
    if rng.random() < 0.25:
        for x in (-0.1, 0.04, 0.15):
            s.ellipse(x, t + 0.01, 0.07, 0.045, (255, 246, 238))
    gloss(s, -w * 0.6, y0 + h * 0.62, w * 0.12, h * 0.2, -4, look)
    steam = rng.random() < 0.6

    def moving(frame: Frame, free: tuple[float, float, float], phase: float) -> None:
        if not steam:
            return
        turn = 2.0 * math.pi * (phase + free[0])
        for x, high in ((-0.09, 0.2), (0.1, 0.25)):
            bend = 0.045 * math.sin(turn + x * 9.0)
            points = [
                (x, t + 0.05),
                (x + 0.05 + bend, t + 0.05 + high * 0.36),
                (x - 0.05 + bend, t + high * 0.8),
                (x + bend * 0.5, t + 0.05 + high),
            ]
            frame.polygon(tube(points, 0.05, 0.018, 3), WHITE, 150)

    return fitted(s, 2 * w, 1.2, moving)


def build_vase(color: str, rng: random.Random) -> Art:
    look = make_look(color, rng)
    s = Sketch()
    bloom = rng.choice(("none", "tulip", "daisy", "twig", "daisy", "tulip", "ball"))
    total = rng.uniform(0.86, 0.96) if bloom == "none" else rng.uniform(0.66, 0.76)
    shape = rng.choice(("classic", "bottle", "gourd", "amphora", "trumpet", "globe", "drum"))
    w = {"bottle": 0.27, "trumpet": 0.28, "globe": 0.37, "drum": 0.27, "gourd": 0.31}.get(shape, 0.32) * rng.uniform(
        0.94, 1.1
    )
    y0, h = 0.02, total
    profile = {
        "classic": ((0.52, 0), (0.82, 0.2), (1.0, 0.5), (0.78, 0.76), (0.44, 0.9), (0.56, 1)),
        "bottle": ((0.8, 0), (1.0, 0.12), (1.0, 0.4), (0.5, 0.62), (0.3, 0.8), (0.4, 1)),
        "gourd": ((0.6, 0), (1.0, 0.2), (0.95, 0.4), (0.52, 0.58), (0.64, 0.76), (0.42, 0.9), (0.5, 1)),
        "amphora": ((0.34, 0), (0.5, 0.1), (1.0, 0.56), (0.86, 0.76), (0.4, 0.86), (0.52, 1)),
        "trumpet": ((0.72, 0), (0.6, 0.1), (0.56, 0.4), (0.7, 0.7), (1.12, 1)),
        "globe": ((0.56, 0), (0.92, 0.2), (1.0, 0.44), (0.84, 0.7), (0.42, 0.84), (0.5, 1)),
        "drum": ((0.7, 0), (0.84, 0.1), (0.98, 0.45), (1.0, 0.72), (0.62, 0.86), (0.6, 0.93), (0.84, 1)),
    }[shape]
    profile = [(p * w, y0 + q * h) for p, q in profile]
    mouth, t = profile[-1]
    body = lathe(profile, belly=0.022)
    part = rim_color(look)
    petal = contrast_color(look.main, rng, 80.0, ("red", "yellow", "pink", "white", "purple", "orange"))
    leaf = (72, 148, 84)
    if bloom != "none":
        count = 3 if bloom != "twig" else 4
        tall = rng.uniform(0.26, 0.34)
        for i in range(count):
            lean = (i - (count - 1) / 2) / (count - 1) * 2
            x, y = lean * (mouth + rng.uniform(0.1, 0.16)), t + tall * (1.0 - 0.22 * abs(lean)) * rng.uniform(0.9, 1.05)
            s.tube([(lean * mouth * 0.4, t - 0.05), (x * 0.6, t + (y - t) * 0.5), (x, y)], 0.028, darken(leaf, 0.12))
            if bloom == "tulip":
                s.blob(
                    [
                        (x - 0.07, y + 0.02),
                        (x - 0.05, y - 0.06),
                        (x + 0.05, y - 0.06),
                        (x + 0.07, y + 0.02),
                        (x + 0.06, y + 0.1),
                        (x, y + 0.05),
                        (x - 0.06, y + 0.1),
                    ],
                    petal,
                    steps=2,
                )
                s.ellipse(x - 0.02, y - 0.01, 0.024, 0.045, lighten(petal, 0.35), 170)
            elif bloom == "daisy":
                for k in range(6):
                    a = math.radians(60 * k + 20 * i)
                    s.ellipse(x + 0.065 * math.cos(a), y + 0.065 * math.sin(a), 0.045, 0.045, petal)
                s.ellipse(x, y, 0.042, 0.042, (250, 200, 60) if petal[2] > 120 else (122, 74, 40))
            elif bloom == "ball":
                s.ellipse(x, y, 0.1, 0.1, petal)
                s.ellipse(x - 0.02, y + 0.025, 0.06, 0.055, lighten(petal, 0.3), 160)
            else:
                for k in range(4):
                    px, py = x * (0.5 + 0.15 * k), t + (y - t) * (0.4 + 0.2 * k)
                    s.ellipse(px + (0.045 if k % 2 else -0.045), py, 0.05, 0.026, leaf, angle=35 if k % 2 else 145)
        for side in (-1, 1):
            s.blob(
                [
                    (side * mouth * 0.3, t - 0.02),
                    (side * (mouth + 0.06), t + 0.05),
                    (side * (mouth + 0.15), t + 0.15),
                    (side * mouth * 0.5, t + 0.1),
                ],
                leaf if side < 0 else darken(leaf, 0.15),
                steps=3,
            )
    if shape == "amphora" or (shape in ("classic", "globe") and rng.random() < 0.4):
        for side in (-1, 1):
            path = [
                (side * mouth * 0.8, t - 0.08),
                (side * (w * 0.9), t - 0.05),
                (side * w * 1.16, t - h * 0.22),
                (side * w * 0.86, t - h * 0.38),
            ]
            s.tube(path, 0.07, part)
            s.tube(path, 0.036, look.main)
    s.add(box(-profile[0][0] * 0.96, 0.0, profile[0][0] * 0.96, 0.06, 0.03), part)
    s.add(body, look.main)
    wide = max(range(len(profile)), key=lambda i: profile[i][0])
    middle = profile[wide][1] if shape not in ("trumpet", "drum") else y0 + h * 0.5
    s.decorate(body, look, rng, (0.0, middle), 0.85)
    s.shade(body, look.main)
    s.ellipse(0, t, mouth * 1.06, 0.042, lighten(look.main, 0.2) if not look.pale else darken(look.main, 0.1))
    s.ellipse(0, t, mouth * 0.86, 0.026, darken(look.main, 0.5))
    gloss(s, -profile[wide][0] * 0.52, middle + 0.06, w * 0.13, h * 0.12, -10, look)
    return Art(s, 2 * max(profile[0][0], w * 0.8))
