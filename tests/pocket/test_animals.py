"""The animals and what they wear: the same picture every time, each one told apart."""

import pytest
from PIL import Image, ImageChops

from cdiff.pocket.world.accessories import draw_accessory
from cdiff.pocket.world.animals import draw_animal, look_of, main_color
from cdiff.pocket.world.canvas import Canvas, darken, mix
from cdiff.pocket.world.spec import ACCESSORIES, COLORS, LIVE_KINDS, Identity, Subject

GROUND = (214, 226, 232)


def picture(
    identity: Identity, pose: int = 0, phase: float = 0.0, accessory: str | None = None, ground: tuple = GROUND
) -> Image.Image:
    canvas = Canvas(Image.new("RGB", (96, 96), ground))
    subject = Subject(identity, 0.5, 0.92, 0.66, False, pose, phase, accessory)
    anchors = draw_animal(canvas.frame(subject.x, subject.y, subject.size), subject)
    if accessory:
        draw_accessory(accessory, anchors)
    return canvas.finish()


def changed(a: Image.Image, b: Image.Image) -> int:
    """How many pixels differ clearly."""
    return sum(ImageChops.difference(a, b).convert("L").point(lambda v: 1 if v > 24 else 0).get_flattened_data())


@pytest.mark.parametrize("kind", LIVE_KINDS)
def test_same_subject_same_bytes(kind: str) -> None:
    identity = Identity(kind, "brown", 7)
    first = picture(identity, 3, 0.3).tobytes()
    look_of.cache_clear()
    assert picture(identity, 3, 0.3).tobytes() == first


@pytest.mark.parametrize("kind", LIVE_KINDS)
@pytest.mark.parametrize("name", ACCESSORIES)
def test_every_accessory_shows(kind: str, name: str) -> None:
    for color in ("red", "white", "black", "blue"):
        identity = Identity(kind, color, 4)
        assert changed(picture(identity), picture(identity, accessory=name)) > 120


@pytest.mark.parametrize("kind", LIVE_KINDS)
def test_identities_and_poses_differ(kind: str) -> None:
    pictures = [picture(Identity(kind, "orange", seed)) for seed in range(6)]
    for i, a in enumerate(pictures):
        for b in pictures[:i]:
            assert changed(a, b) > 200
    assert len({picture(Identity(kind, "orange", 0), pose).tobytes() for pose in range(8)}) == 8


@pytest.mark.parametrize("kind", LIVE_KINDS)
def test_walk_cycle_moves_and_loops(kind: str) -> None:
    identity = Identity(kind, "grey", 2)
    steps = [picture(identity, 1, k / 8).tobytes() for k in range(1, 9)]
    assert len(set(steps)) >= 4
    assert changed(picture(identity, 1, 1.0), picture(identity, 1, 0.001)) < 60


def main_share(identity: Identity, pose: int) -> float:
    """The share of the animal's pixels that are its main colour, in light or in shade."""
    look = look_of(identity)
    main = look.main
    tones = [
        main,
        look.rim,
        look.shade,
        look.light,
        darken(main, 0.2),
        mix(main, look.rim, 0.5),
        mix(main, look.light, 0.5),
    ]
    # What stays the same on two grounds is the animal; its see-through shadow does not.
    over = picture(identity, pose, ground=(255, 0, 255)), picture(identity, pose, ground=(0, 255, 0))
    pixels = [a for a, b in zip(*(p.get_flattened_data() for p in over)) if a == b]
    return sum(min(sum(abs(u - v) for u, v in zip(p, t)) for t in tones) < 60 for p in pixels) / len(pixels)


@pytest.mark.parametrize("kind", LIVE_KINDS)
def test_main_color_rules(kind: str) -> None:
    shares = [main_share(Identity(kind, COLORS[seed % len(COLORS)], seed), seed) for seed in range(22)]
    assert sum(shares) / len(shares) > 0.6
    assert min(shares) > 0.42


def test_main_color_is_exact_and_varies() -> None:
    shades = {main_color(Identity("dog", "red", seed)) for seed in range(20)}
    assert len(shades) > 10
    assert look_of(Identity("dog", "red", 1)).main == main_color(Identity("dog", "red", 1))
