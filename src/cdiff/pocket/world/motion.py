"""How subjects move: clips of the pocket world, and single pictures taken out of one.

A movement carries its subject through the picture in the direction it looks, in a still scene.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace

from cdiff.pocket.world.animal_parts import pose_of
from cdiff.pocket.world.captions import caption
from cdiff.pocket.world.sample import is_held_out, sample_identity
from cdiff.pocket.world.scenes import ground
from cdiff.pocket.world.spec import ACCESSORIES, KINDS, LIVE_KINDS, SCENES, Identity, Scene, Subject

FRAMES = 16
MARGIN = 2  # frames before and after a clip that the motion adapter is trained with (see video.margin)
STILL = 0.15  # share of clips in which nothing moves
WIDTH = {"car": 1.45, "bird": 0.7}  # of a subject of size 1; 1.0 for the others


@dataclass(frozen=True)
class Movement:
    """distance: the way made in a clip, share of the picture's side. cycles: of the walk, wheels or wings in a clip.
    hops: arcs in a clip, `high` of the side. words: what a caption says."""

    distance: tuple[float, float]
    words: tuple[str, ...]
    cycles: tuple[float, float] = (0.0, 0.0)
    hops: tuple[int, ...] = ()
    high: tuple[float, float] = (0.0, 0.0)


MOVEMENTS = {
    "walk": Movement((0.26, 0.34), ("walking",), (1.75, 2.25)),
    "run": Movement((0.40, 0.52), ("running",), (2.75, 3.25)),
    "hop": Movement((0.26, 0.40), ("hopping", "hopping", "jumping"), (0.9, 1.1), (2, 3), (0.09, 0.14)),
    "fly": Movement((0.36, 0.50), ("flying",), (1.75, 2.25), (1,), (0.04, 0.07)),
    "drive": Movement((0.32, 0.46), ("driving", "driving", "rolling", "moving"), (1.5, 2.5)),
    "drift": Movement((0.20, 0.30), ("drifting", "drifting", "floating", "moving"), hops=(1, 2), high=(0.01, 0.02)),
    "still": Movement((0.0, 0.0), ("standing still", "standing")),
}


def movements_of(kind: str, background: str) -> tuple[str, ...]:
    """The ways a kind moves in a scene; barns stay where they are, unless they float."""
    if kind == "bird":
        return ("fly", "fly", "hop")
    if background == "water":
        return ("drift",)
    if kind == "car":
        return ("drive",)
    if kind == "barn":
        return ("still",)
    if kind == "rabbit":
        return ("hop", "hop", "run")
    return ("walk", "run") if kind in LIVE_KINDS else ("hop",)


@dataclass(frozen=True)
class Clip:
    """FRAMES scenes (and twice a margin) that differ in the place, height and phase of their one subject."""

    frames: tuple[Scene, ...]
    movement: str

    @property
    def distance(self) -> float:
        """The way between the first and the last frame, share of the picture's side."""
        first, last = (frame.subjects[0] for frame in (self.frames[0], self.frames[-1]))
        return math.dist((first.x, first.y - first.lift), (last.x, last.y - last.lift))


def sample_clip(
    rng: random.Random,
    identity: Identity | None = None,
    base: int = 0,
    movement: str | None = None,
    background: str | None = None,
    margin: int = 0,
) -> Clip:
    """A random clip, outside the held-out combinations; identities' seeds start at `base`. `margin` frames more before
    it and after it go on with the movement at the same pace."""
    for _ in range(200):
        who = identity or sample_identity(rng, rng.choice(KINDS), base=base)
        place = background or rng.choice(SCENES)
        dressed = who.kind in LIVE_KINDS and rng.random() < 0.3
        move = movement or ("still" if rng.random() < STILL else rng.choice(movements_of(who.kind, place)))
        subject = Subject(who, 0.5, 0.9, 0.5, False, rng.randrange(2**20), 0.0, rng.choice(ACCESSORIES))
        subject = subject if dressed else replace(subject, accessory=None)
        seed = rng.randrange(48)
        scene = Scene(place, seed, (subject,))
        if not is_held_out(scene):
            return Clip(_frames(rng, scene, move, margin), move)
    raise ValueError(f"no clip of {identity} in {background} lies outside the held-out combinations")


def _frames(rng: random.Random, scene: Scene, move: str, margin: int) -> tuple[Scene, ...]:
    """Places the subject and moves it at an even pace."""
    subject, how = scene.subjects[0], MOVEMENTS[move]
    low, high = ground(scene.background, scene.background_seed)
    kind = subject.identity.kind
    size = rng.uniform(0.34, 0.42) if kind == "car" else rng.uniform(0.4, 0.56)
    edge = 0.42 * size * WIDTH.get(kind, 1.0)  # a little of it may leave the picture
    stretch = 1.0 + 2.0 * margin / (FRAMES - 1)
    distance = min(rng.uniform(*how.distance), (1.0 - 2.0 * edge) / stretch)
    start = rng.uniform(edge, 1.0 - edge - distance * stretch) + distance * (stretch - 1.0) / 2.0
    flip = rng.random() < 0.5
    y = min(max(rng.uniform(low + 0.3 * (high - low), high), 1.2 * size + 0.02), 0.96)
    hops, arc, cycles = rng.choice(how.hops or (0,)), rng.uniform(*how.high), rng.uniform(*how.cycles)
    room = max(0.0, y - 1.2 * size)  # so that the head stays in the picture
    above = min(rng.uniform(0.1, 0.22), room - arc) if move == "fly" else 0.0
    begin, out = rng.random(), []
    for number in range(-margin, FRAMES + margin):
        t = number / (FRAMES - 1)
        x = start + distance * t
        turn = begin + hops * t
        lift = above + min(arc, room) * (
            math.sin(2 * math.pi * turn) if move == "fly" else abs(math.sin(math.pi * turn))
        )
        phase = (begin + cycles * t) % 1.0 or 0.001  # 0 would sit down
        placed = replace(
            subject,
            x=round(1.0 - x if flip else x, 4),
            y=round(y, 4),
            size=round(size, 4),
            flip=flip,
            phase=round(phase, 4) if cycles else 0.0,
            lift=round(max(lift, 0.0), 4),
        )
        out.append(replace(scene, subjects=(placed,)))
    return tuple(out)


def stirred(scene: Scene, rng: random.Random) -> Scene:
    """The scene with its one subject caught in a movement, so that the base knows how that looks, and its words."""
    subject = scene.subjects[0]
    move = rng.choice(movements_of(subject.identity.kind, scene.background))
    how = MOVEMENTS[move]
    if len(scene.subjects) > 1 or move == "still":
        return scene
    room = max(0.0, subject.y - 1.2 * subject.size)
    lift = min(room, rng.uniform(0.0, 0.3) if move == "fly" else rng.uniform(*how.high) * rng.random())
    phase = round(rng.uniform(0.001, 0.999), 4) if how.cycles[1] else 0.0
    return replace(scene, subjects=(replace(subject, phase=phase, lift=round(lift, 4)),))


def verb(subject: Subject, move: str, rng: random.Random) -> str:
    """What a caption says of the movement, such as "running"."""
    if move == "still" and subject.identity.kind in LIVE_KINDS and pose_of(subject.pose, 0.0, False).sitting:
        return rng.choice(("sitting still", "sitting"))
    return rng.choice(MOVEMENTS[move].words)


def verb_of_picture(scene: Scene, rng: random.Random) -> str | None:
    """The verb that one caption of a single picture uses, if any."""
    subject = scene.subjects[0]
    if len(scene.subjects) > 1:
        return None
    kind, draw = subject.identity.kind, rng.random()
    if subject.phase > 0 or subject.lift > 0:
        ways = [m for m in movements_of(kind, scene.background) if m != "still" and (m != "fly" or subject.lift > 0.08)]
        return verb(subject, rng.choice(ways), rng) if ways and draw < 0.7 else None
    return verb(subject, "still", rng).split()[0] if kind in LIVE_KINDS and draw < 0.12 else None


def clip_caption(clip: Clip, rng: random.Random, detail: float) -> str:
    """A caption of the scene with the verb, and at times the direction: "a dog running to the left on the beach"."""
    scene = clip.frames[0]
    subject = scene.subjects[0]
    words = verb(subject, clip.movement, rng) if rng.random() < 0.88 else None
    if words and clip.movement != "still" and rng.random() < 0.12:
        words += " to the left" if subject.flip else " to the right"
    return caption(scene, rng, detail, words)
