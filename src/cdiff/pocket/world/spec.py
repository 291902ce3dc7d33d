"""What a picture of the pocket world shows: pure descriptions, no pixels.

Everything is a frozen dataclass of plain numbers and words, so that a picture follows
from its description alone and a description can be stored as JSON.
"""

from __future__ import annotations

from dataclasses import dataclass

LIVE_KINDS = ("dog", "cat", "bear", "rabbit", "bird", "pig")
OBJECT_KINDS = ("car", "barn", "teapot", "backpack", "boot", "cup", "clock", "vase")
KINDS = LIVE_KINDS + OBJECT_KINDS

SCENES = (
    "studio",
    "beach",
    "snow",
    "jungle",
    "city",
    "mountain",
    "desert",
    "night",
    "grass",
    "wooden floor",
    "pink fabric",
    "autumn",
    "water",
)

ACCESSORIES = (
    "headphones",
    "red hat",
    "santa hat",
    "top hat",
    "sunglasses",
    "rainbow scarf",
    "crown",
    "bow tie",
)

COLORS = (
    "red",
    "orange",
    "yellow",
    "green",
    "blue",
    "purple",
    "pink",
    "brown",
    "white",
    "grey",
    "black",
)

RELATIONS = ("next to", "in front of")


@dataclass(frozen=True)
class Identity:
    """One individual of a kind. Markings, proportions and exact shades follow from (kind, color, seed).

    `color` is the family of the main body colour (one of COLORS), so that a caption and
    the attribute probe agree on it; the exact shade is drawn from that family.
    """

    kind: str
    color: str
    seed: int


@dataclass(frozen=True)
class Subject:
    """An identity placed in a picture.

    x: centre, 0 (left) to 1 (right). y: the ground line it stands on, 0 (top) to 1 (bottom).
    size: height of a subject of height 1, as a share of the picture's side.
    flip: mirrored left-right. pose: seed of small variations (head tilt, legs, tail, gaze).
    phase: position in a walk cycle, 0 to 1, for animation (0 is standing still).
    lift: height above its ground line, as a share of the picture's side; the shadow stays on the ground.
    """

    identity: Identity
    x: float
    y: float
    size: float
    flip: bool = False
    pose: int = 0
    phase: float = 0.0
    accessory: str | None = None
    lift: float = 0.0


@dataclass(frozen=True)
class Scene:
    """A whole picture: a background variant and its subjects, painted in order (first is farthest)."""

    background: str
    background_seed: int
    subjects: tuple[Subject, ...]
    relation: str | None = None
