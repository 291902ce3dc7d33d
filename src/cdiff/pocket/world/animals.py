"""The animals of the pocket world: bodies, poses and the walk cycle."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from cdiff.pocket.world.animal_kinds import ears_behind, ears_front, face, tail
from cdiff.pocket.world.animal_look import BUILD, Look, look_of, main_color
from cdiff.pocket.world.animal_parts import (
    Pose,
    ball,
    body_marks,
    cheeks,
    collar,
    eyes,
    fill,
    form,
    leg,
    oval,
    pen,
    pose_of,
    shadow,
    skull,
)
from cdiff.pocket.world.canvas import Frame, Point, darken, smooth
from cdiff.pocket.world.spec import Subject

__all__ = ["Anchors", "draw_animal", "look_of", "main_color"]

HATS = ("red hat", "santa hat", "top hat", "crown")


@dataclass(frozen=True)
class Anchors:
    """Where accessories go on the animal as it was just drawn.

    head: origin at the head's centre, tilted with it, one unit = half the head's height. `head_rx`, `eyes`,
    `eye_radius`, `top` (of the skull between the ears) and `ears` (where the cups of headphones go) are in it.
    body: the animal's local frame. `neck` is (x, y, half-width) in it, y just under the chin.
    """

    head: Frame
    head_rx: float
    eyes: tuple[Point, Point]
    eye_radius: float
    top: float
    ears: tuple[Point, Point]
    body: Frame
    neck: tuple[float, float, float]


def draw_animal(frame: Frame, subject: Subject) -> Anchors:
    """Draws the animal with its contact shadow; the local frame stands on the ground, y up, about 1.0 high."""
    look = look_of(subject.identity)
    pose = pose_of(subject.pose, subject.phase, subject.accessory in HATS)
    if look.kind == "bird":
        return _bird(frame, look, pose)
    if pose.sitting:
        head_x, head_y, neck_half = _sitting(frame, look, pose)
    else:
        head_x, head_y, neck_half = _standing(frame, look, pose)
    build = BUILD[look.kind]
    head = frame.at(head_x, head_y, build.head, pose.tilt)
    ears_behind(head, look, pose)
    skull(head, look)
    ears_front(head, look, pose)
    eye_y, eye_radius = face(head, look, pose)
    return _anchors(frame, head, look, eye_y, eye_radius, (head_x, head_y - build.head * 0.97, neck_half))


def _anchors(
    frame: Frame, head: Frame, look: Look, eye_y: float, eye_radius: float, neck: tuple[float, float, float]
) -> Anchors:
    gap = look.eye_gap * look.head_rx * 0.94
    side = look.head_rx * 0.99
    return Anchors(
        head, look.head_rx, ((-gap, eye_y), (gap, eye_y)), eye_radius, 0.97, ((-side, 0.0), (side, 0.0)), frame, neck
    )


@lru_cache(maxsize=4096)
def _torso(a: float, b: float, egg: float, slope: float) -> tuple[Point, ...]:
    """An outline around the origin: `egg` makes it wider below, `slope` lifts the front (x > 0)."""
    points = []
    for i in range(30):
        t = 2 * math.pi * i / 30
        c, s = math.cos(t), math.sin(t)
        points.append(
            (
                a * math.copysign(abs(c) ** 0.86, c) * (1.0 - egg * s),
                b * math.copysign(abs(s) ** 0.9, s) * (1.0 + slope * c),
            )
        )
    return tuple(points)


def _step(pose: Pose, offset: float) -> tuple[float, float]:
    """Angle and lift of a leg in the walk cycle: the foot rises while it swings forward."""
    if pose.stride is None:
        return 5.0 * pose.stance * (1 if offset else -1), 0.0
    t = 2 * math.pi * (pose.stride + offset)
    return 24.0 * math.sin(t), 0.035 * max(0.0, math.cos(t))


def _standing(frame: Frame, look: Look, pose: Pose) -> tuple[float, float, float]:
    """A three-quarter body on four legs, the front at x > 0. Gives the head's place and the neck's half-width."""
    build = BUILD[look.kind]
    a, b, height = look.length, look.depth, look.leg
    bob = 0.0
    if pose.stride is not None:
        bob = 0.012 * math.cos(4 * math.pi * pose.stride)
    x, y = -0.04, height + b * 0.92 + bob
    hip = height + 0.35 * b + bob
    width = look.leg_width
    shadow(frame, x + 0.02, a + 0.12)
    tail(frame, look, pose, x - a * 0.90, y + b * 0.25, -1)
    back, front = x - a + width * 1.25, x + a - width * 1.1
    for place, offset in ((back + width * 1.9, 0.5), (front + width * 0.7, 0.0)):
        angle, lift = _step(pose, offset)
        leg(frame, look, place, hip, angle, lift + 0.012, far=True)
    head_x = x + a * 0.68 + 0.03 + pose.shift[0]
    head_y = height + b * 1.15 + build.neck + bob * 0.6 + pose.shift[1]
    half = build.head * 0.80
    chin = head_y - build.head
    chest = (half * 0.98, build.head * 0.66)
    oval(frame, head_x - 0.025, chin + 0.015, *chest, look.rim)
    outline = _torso(a, b, 0.03, 0.10)
    form(frame.at(x, y), outline, look.main, core=0.89, lift=0.014)
    oval(frame, x + 0.05, y - b * 0.62, a * 0.62, b * 0.24, look.belly, alpha=200)
    body_marks(frame, look, x, y, a, b, outline)
    for place, offset in ((back, 0.0), (front - width * 1.3, 0.5)):
        angle, lift = _step(pose, offset)
        leg(frame, look, place, hip, angle, lift, far=False)
    # A chest ties the head to the body wherever the neck is long; its rim lies behind the body, so there is no seam.
    oval(frame, head_x - 0.025, chin + 0.015, chest[0] - 0.012, chest[1] - 0.012, look.main)
    if look.pattern == "bib":
        oval(frame, head_x - 0.01, chin - 0.015, half * 0.70, build.head * 0.42, look.second)
    oval(frame, head_x - 0.02, chin + 0.02, half * 0.82, build.head * 0.30, (30, 20, 40), alpha=46)
    collar(frame, look, head_x - 0.01, chin - 0.005, half * 0.82)
    return head_x, head_y, half


def _sitting(frame: Frame, look: Look, pose: Pose) -> tuple[float, float, float]:
    """A frontal sitting body: a pear with haunches, hind feet and two straight front legs."""
    build = BUILD[look.kind]
    top = build.sit - build.head * 0.55
    b = top / 2 + 0.01
    a = 0.50 * look.length + 0.42 * look.depth
    width = look.leg_width
    shadow(frame, 0.0, a + 0.14)
    tail(frame, look, pose, a * 0.82, 0.12, 1)
    outline = _torso(a, b, 0.22, 0.0)
    form(frame.at(0.0, b + 0.012), outline, look.main, core=0.89, lift=0.012)
    if look.kind in ("bear", "pig", "rabbit") or look.pattern == "bib":
        oval(frame, 0.0, b * 0.92, a * 0.62, b * 0.66, look.belly)
    body_marks(frame, look, 0.0, b + 0.012, a, b, outline)
    spread = a * 0.98
    for side in (-1, 1):
        ball(frame, side * spread, 0.10, width * 1.5, 0.092, look.main, side * -12)
        ball(frame, side * (spread + 0.025), 0.034, width * 1.45, 0.040, look.foot)
    gap = max(width * 1.08, a * 0.36)
    for side in (-1, 1):
        if side == pose.wave:
            # A raised paw: a short arm that points outwards and up.
            arm = frame.at(side * a * 0.62, top * 0.66, 1.0, 90.0 - side * (66.0 + 14.0 * pose.stance))
            ball(arm, 0.085, 0.0, 0.105, width * 1.05, look.main)
            ball(arm, 0.165, 0.0, width * 1.08, width * 1.08, look.foot)
            if look.foot == look.main:
                oval(arm, 0.085, 0.0, 0.093, width * 1.05 - 0.012, look.main)
        else:
            leg(frame, look, side * gap, top * 0.56, side * 1.5, 0.0, far=False, foot=1.12)
    half = build.head * 0.80
    head_x, head_y = pose.shift[0] * 0.6, build.sit + pose.shift[1]
    chin = head_y - build.head
    if look.pattern == "bib":
        oval(frame, head_x, chin - 0.03, half * 0.62, build.head * 0.46, look.second)
    oval(frame, head_x, chin + 0.025, min(half * 0.85, a * 0.75), build.head * 0.24, (30, 20, 40), alpha=46)
    collar(frame, look, head_x, chin - 0.005, half * 0.78)
    return head_x, head_y, half


def _bird(frame: Frame, look: Look, pose: Pose) -> Anchors:
    """A round bird on two thin legs; it hops where the others walk."""
    build = BUILD["bird"]
    walking = pose.stride is not None
    bob = 0.014 * math.cos(4 * math.pi * pose.stride) if walking else 0.0
    a, b = look.length, look.depth
    height = look.leg * (0.45 if pose.sitting else 1.0)
    y = height + b * 0.94 + bob
    beak = ((244, 160, 40), (236, 112, 52), (250, 196, 60), (92, 84, 92))[look.ear]
    if sum(abs(p - q) for p, q in zip(beak, look.main)) < 110:
        beak = (92, 70, 60)
    limb = darken(beak, 0.12)
    shadow(frame, 0.0, a + 0.05)
    _tail_feathers(frame, look, pose, -a * 0.70, y - b * 0.30)
    for side, offset in ((-1, 0.0), (1, 0.5)):
        angle, lift = _step(pose, offset)
        shank = frame.at(side * 0.095, height + 0.06 + bob, 1.0, angle)
        foot = -(height + 0.055 + bob) + lift
        pen(shank, [(0, 0), (0, foot + 0.012)], 0.036, limb)
        pen(shank, [(-0.055, foot), (0.0, foot + 0.03), (0.065, foot)], 0.030, limb)
    outline = _torso(a, b, 0.10, 0.0)
    form(frame.at(0.0, y), outline, look.main, core=0.89, lift=0.014)
    oval(frame, 0.0, y - b * 0.24, a * 0.58, b * 0.56, look.belly if look.pattern != "plain" else look.light)
    if look.pattern != "plain":
        body_marks(frame, look, 0.0, y, a, b, outline)
    flap = pose.swing * 8.0 + (14.0 * math.sin(4 * math.pi * pose.stride) if walking else 0.0)
    tipped = look.pattern in ("socks", "patches", "mask")
    outline_key = round(look.tail_size, 2)
    for side in (-1, 1):
        wing = frame.at(side * a * 0.80, y + b * 0.42, 1.0, side * (16.0 + flap))
        outline = _wing(side, look.tail, outline_key)
        form(wing, outline, darken(look.main, 0.10), rim=0.93, core=0.84, lift=0.008)
        if tipped:
            oval(wing, side * 0.022, -0.20 * look.tail_size, 0.045, 0.062, look.second, side * 10.0)
    head_y = y + b * 0.62 + 0.16 + bob * 0.5
    chin = head_y - build.head
    oval(frame, 0.0, chin + 0.05, build.head * 0.78, build.head * 0.32, (30, 20, 40), alpha=40)
    if look.pattern == "bib":
        oval(frame, 0.0, chin - 0.01, build.head * 0.7, build.head * 0.5, look.second)
    collar(frame, look, 0.0, chin + 0.02, build.head * 0.74)
    head = frame.at(0.0, head_y, build.head, pose.tilt)
    _crest(head, look, pose)
    skull(head, look)
    eye_y, radius = 0.16, look.eye_size * 1.08
    cheeks(head, look, -0.22)
    w = look.muzzle_width
    fill(
        head,
        ((-0.34 * w, -0.10), (0.0, 0.08), (0.34 * w, -0.10), (0.14, -0.40), (0.0, -0.58), (-0.14, -0.40)),
        darken(beak, 0.35),
    )
    fill(head, ((-0.27 * w, -0.12), (0.0, 0.02), (0.27 * w, -0.12), (0.0, -0.27)), beak)
    fill(head, ((-0.19 * w, -0.26), (0.0, -0.33), (0.19 * w, -0.26), (0.0, -0.50)), darken(beak, 0.14))
    eyes(head, look, pose, eye_y, radius)
    return _anchors(frame, head, look, eye_y, radius, (0.0, chin + 0.015, build.head * 0.80))


@lru_cache(maxsize=1024)
def _wing(side: int, variant: int, size: float) -> tuple[Point, ...]:
    """A folded wing hanging from the shoulder at the origin."""
    tip, width = ((-0.30, 0.075), (-0.25, 0.095), (-0.34, 0.065))[variant]
    tip *= size
    points = [
        (-width * 0.6, 0.01),
        (0.0, 0.045),
        (width, -0.02),
        (width * 1.05, tip * 0.55),
        (width * 0.55, tip),
        (-width * 0.1, tip * 0.82),
        (-width * 0.75, tip * 0.4),
    ]
    return tuple((side * x, y) for x, y in smooth(points, closed=True, steps=4))


def _tail_feathers(frame: Frame, look: Look, pose: Pose, x: float, y: float) -> None:
    color = look.tail_tip if look.tail_tip != look.main else darken(look.main, 0.1)
    for k, turn in enumerate((-16.0, 0.0, 16.0)):
        feather = frame.at(x, y, 1.0, 150.0 + turn * (0.7 + 0.4 * look.tail) + 6.0 * pose.swing)
        ball(feather, 0.12 * look.tail_size, 0.0, 0.15 * look.tail_size, 0.045, color if k != 1 else look.main)


def _crest(head: Frame, look: Look, pose: Pose) -> None:
    """Feathers on the top of the head: none, a tuft of three, or a swept curl."""
    color = look.second if look.pattern != "plain" else look.main
    turns: Sequence[float] = ((), (62.0, 90.0, 118.0), (92.0, 118.0, 140.0), (90.0,))[look.ear]
    for turn in turns:
        feather = head.at(0.0, 0.78, 1.0, turn + pose.ear_lift)
        ball(feather, 0.26 * look.ear_size, 0.0, 0.34 * look.ear_size, 0.12, color, edge=0.05)
