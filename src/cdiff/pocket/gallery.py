"""The concepts shipped with cdiff: individuals that no pocket model has seen, and five pictures of each."""

from __future__ import annotations

import hashlib
import os
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from cdiff import __version__
from cdiff.cache import cache_folder
from cdiff.errors import UserError
from cdiff.pocket.world.sample import CONCEPT, FRESH, compose, sample_identity
from cdiff.pocket.world.spec import SCENES, Identity, Scene

PICTURES = 5
SIDE = 128
# name -> (individual, backgrounds of its pictures)
GALLERY = {
    "dog": (Identity("dog", "brown", CONCEPT + 108), ("studio", "grass", "wooden floor", "beach", "autumn")),
    "cat": (Identity("cat", "grey", CONCEPT + 22), ("wooden floor", "studio", "grass", "pink fabric", "city")),
    "teapot": (Identity("teapot", "blue", CONCEPT + 33), ("studio", "wooden floor", "pink fabric", "grass", "night")),
    "rabbit": (Identity("rabbit", "grey", CONCEPT + 7), ("studio", "grass", "wooden floor", "pink fabric", "autumn")),
    "backpack": (Identity("backpack", "green", CONCEPT + 51), ("studio", "grass", "wooden floor", "beach", "city")),
    "car": (Identity("car", "yellow", CONCEPT + 12), ("studio", "city", "grass", "beach", "mountain")),
}


def draw_concept(name: str) -> list[Image.Image]:
    """The PICTURES pictures of a shipped concept (RGB, SIDE pixels), without accessories."""
    identity, backgrounds = GALLERY[name]
    return portraits(identity, backgrounds, random.Random(f"gallery/{name}"))


def portraits(identity: Identity, backgrounds: Sequence[str], rng: random.Random) -> list[Image.Image]:
    """One picture of an individual in each of the backgrounds (RGB, SIDE pixels)."""
    from cdiff.pocket.world.render import render

    return [render(_portrait(rng, identity, background), SIDE) for background in backgrounds]


def other_individuals(kind: str, count: int) -> list[list[Image.Image]]:
    """PICTURES pictures each of `count` individuals whose seeds lie outside those of training and of the gallery."""
    rng = random.Random(f"others/{kind}")
    people = [sample_identity(rng, kind, base=FRESH) for _ in range(count)]
    return [portraits(who, rng.sample(SCENES, PICTURES), rng) for who in people]


def _portrait(rng: random.Random, identity: Identity, background: str) -> Scene:
    """A scene in which the subject fills about two thirds of the height, as people photograph what they love."""
    while not 0.55 <= (scene := compose(rng, identity, background)).subjects[0].size <= 0.8:
        pass
    return scene


def render_concept(name: str) -> Path:
    """Renders the pictures of a shipped concept into the user's cache and returns their folder.

    Raises:
        UserError: unknown name, or a cache that can't be written.
    """
    if name not in GALLERY:
        raise UserError(f"pocket:{name} is no concept of the pocket world; it has {', '.join(GALLERY)}")
    folder = cache_folder() / "pocket" / f"{name}-{_version(name)}"
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as place:
            part = Path(place) / "part"
            part.mkdir()
            for number, image in enumerate(draw_concept(name)):
                image.save(part / f"{name}-{number + 1}.png")
            if not folder.is_dir():  # another process may have been faster
                os.replace(part, folder)
    except OSError as error:
        raise UserError(
            f"The pictures of pocket:{name} can't be written to {folder.parent} ({error.strerror}); "
            "set CDIFF_CACHE to a folder you may write to."
        ) from error
    return folder


def _version(name: str) -> str:
    """Changes when the description of the concept or cdiff's version does, so that an old cache is not used."""
    return hashlib.sha256(f"{__version__} {GALLERY[name]} {PICTURES} {SIDE}".encode()).hexdigest()[:8]
