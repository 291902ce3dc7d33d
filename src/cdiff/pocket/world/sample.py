"""Random scenes of the pocket world, and the combinations that training never shows."""

from __future__ import annotations

import random

from cdiff.pocket.world.scenes import ground
from cdiff.pocket.world.spec import ACCESSORIES, COLORS, KINDS, LIVE_KINDS, SCENES, Identity, Scene, Subject

# Seeds of identities: training draws below FRESH, scores draw in [FRESH, CONCEPT), the concepts
# shipped with cdiff lie at CONCEPT and above. So no base model has seen an identity it is tested on.
FRESH = 2**31
CONCEPT = 3 * 2**30

# Never drawn in training, so that composing them proves composition.
HELD_OUT = frozenset(
    {
        ("rabbit", "crown"),
        ("bear", "sunglasses"),
        ("pig", "headphones"),
        ("bird", "top hat"),
        ("cat", "santa hat"),
        ("dog", "bow tie"),
        ("teapot", "snow"),
        ("car", "jungle"),
        ("clock", "beach"),
        ("bear", "city"),
        ("vase", "autumn"),
        ("boot", "water"),
        ("cat", "purple"),
        ("car", "green"),
        ("pig", "blue"),
        ("barn", "yellow"),
        ("backpack", "pink"),
        ("rabbit", "orange"),
    }
)

# What a kind usually looks like; a caption names these colours less often than unusual ones.
NATURAL_COLORS = {
    "dog": ("brown", "orange", "white", "grey", "black", "yellow"),
    "cat": ("orange", "grey", "white", "black", "brown"),
    "bear": ("brown", "black", "white", "grey"),
    "rabbit": ("white", "grey", "brown", "black"),
    "bird": ("blue", "yellow", "red", "green", "white", "black"),
    "pig": ("pink", "white", "black", "brown"),
    "barn": ("red", "brown", "white", "grey"),
}
BIG_OBJECTS = ("barn", "car")
TALL = ("red hat", "santa hat", "top hat", "crown")  # reach above the head


def sample_identity(
    rng: random.Random,
    kind: str,
    color: str | None = None,
    natural: float = 0.65,
    base: int = 0,
    everything: bool = False,
) -> Identity:
    """An individual of `kind`, of a held-out colour only with `everything`; its seed lies in [base, base + 2**30)."""
    while color is None or ((kind, color) in HELD_OUT and not everything):
        usual = NATURAL_COLORS.get(kind)
        color = rng.choice(usual) if usual and rng.random() < natural else rng.choice(COLORS)
    return Identity(kind, color, base + rng.randrange(2**30))


def is_held_out(scene: Scene) -> bool:
    """Whether the scene contains a combination that training never shows."""
    for subject in scene.subjects:
        kind = subject.identity.kind
        for value in (scene.background, subject.accessory, subject.identity.color):
            if (kind, value) in HELD_OUT:
                return True
    return False


def place_alone(rng: random.Random, identity: Identity, background: str, seed: int, accessory: str | None) -> Subject:
    """One subject of a random size: far away, usual, or close up (cut by the lower border)."""
    low, high = ground(background, seed)
    draw = rng.random()
    if draw < 0.1 and accessory is None:
        size = rng.uniform(0.28, 0.38)
    elif draw > 0.87:
        size = rng.uniform(0.92, 1.15)
    else:
        size = rng.uniform(0.5, 0.8)
    widest = 1.5 if identity.kind == "car" else 1.1
    size = min(size, 0.72 if identity.kind == "car" else 1.15)
    x = 0.5 + rng.uniform(-0.06, 0.06)
    if size < 0.62 and rng.random() < 0.4:
        margin = min(0.5, size * widest / 2 + 0.02)
        x = rng.choice((margin, 1 - margin)) + rng.uniform(-0.02, 0.02)
    y = rng.uniform(low + 0.3 * (high - low), high)
    height = size * (1.24 if accessory in TALL else 1.1 if identity.kind == "rabbit" else 1.02)
    y = height + rng.uniform(0.0, 0.08) if size > 0.85 else max(y, height + 0.02)
    return Subject(
        identity, round(x, 3), round(y, 3), round(size, 3), rng.random() < 0.5, rng.randrange(2**20), 0.0, accessory
    )


def place_pair(
    rng: random.Random, first: Identity, second: Identity, relation: str, background: str, seed: int, accessories: tuple
) -> tuple:
    """Two subjects, farthest first: side by side, or the first in front of the second."""
    low, high = ground(background, seed)
    left = rng.random() < 0.5
    if relation == "next to":
        sizes = [rng.uniform(0.42, 0.5) if i.kind != "car" else rng.uniform(0.34, 0.38) for i in (first, second)]
        xs = (rng.uniform(0.24, 0.29), rng.uniform(0.71, 0.76))
        xs = xs if left else xs[::-1]
        ys = [max(rng.uniform(low, high), s + 0.04) for s in sizes]
    else:
        sizes = [rng.uniform(0.4, 0.48), rng.uniform(0.72, 0.85) if second.kind != "car" else rng.uniform(0.58, 0.66)]
        xs = (rng.uniform(0.24, 0.33), rng.uniform(0.58, 0.64))
        xs = xs if left else (1 - xs[0], 1 - xs[1])
        back = max(low, sizes[1] + 0.04)
        ys = [min(0.97, max(high, back + 0.05)), back]
    made = [
        Subject(i, round(x, 3), round(y, 3), round(s, 3), rng.random() < 0.5, rng.randrange(2**20), 0.0, a)
        for i, x, y, s, a in zip((first, second), xs, ys, sizes, accessories)
    ]
    return tuple(sorted(made, key=lambda s: s.y))


def sample_scene(
    rng: random.Random,
    identity: Identity | None = None,
    base: int = 0,
    pair: float = 0.16,
    everything: bool = False,
) -> Scene:
    """A random picture. With `identity`, that individual is its main subject.

    Drawn again until nothing in it is held out of training, unless `everything` may come.
    """
    for _ in range(200):
        first = identity or sample_identity(rng, rng.choice(KINDS), base=base, everything=everything)
        background = rng.choice(SCENES)
        accessory = rng.choice(ACCESSORIES) if first.kind in LIVE_KINDS and rng.random() < 0.55 else None
        if rng.random() < pair:
            others = [k for k in KINDS if k != first.kind]
            relation = rng.choice(("next to", "in front of"))
            kind = rng.choice(BIG_OBJECTS) if relation == "in front of" and rng.random() < 0.4 else rng.choice(others)
            if kind == first.kind:
                continue
            second = sample_identity(rng, kind, base=base, everything=everything)
            if rng.random() < 0.6:
                accessory = None
            scene = compose(rng, first, background, accessory, second, relation)
        else:
            scene = compose(rng, first, background, accessory)
        if everything or not is_held_out(scene):
            return scene
    raise ValueError(f"no scene of {identity} lies outside the held-out combinations")


def compose(
    rng: random.Random,
    first: Identity,
    background: str,
    accessory: str | None = None,
    second: Identity | None = None,
    relation: str | None = None,
) -> Scene:
    """The scene asked for, with random placement."""
    seed = rng.randrange(48)
    if second is None:
        return Scene(background, seed, (place_alone(rng, first, background, seed, accessory),))
    return Scene(
        background, seed, place_pair(rng, first, second, relation, background, seed, (accessory, None)), relation
    )


def main_subject(scene: Scene) -> Subject:
    """The subject a caption begins with: the only one, or for a pair the nearer or dressed one."""
    if len(scene.subjects) == 1:
        return scene.subjects[0]
    dressed = [s for s in scene.subjects if s.accessory]
    return dressed[0] if dressed else scene.subjects[-1]
