"""What a prompt asks of a picture, in the words of the captions and of the personalisation benchmarks.

Only what this world can draw is read: "a dog in a chef outfit" asks for a dog. Light: no torch.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Protocol

from cdiff.pocket.world.spec import COLORS, KINDS

ATTRIBUTES = ("class", "scene", "accessory", "color")

# Patterns over a prompt's words: lower case, single blanks, no punctuation. PLACES and WORN all read (a test holds it).
SCENE_WORDS = {
    "studio": r"plain (?:white )?background|white background|studio|top of a table|on a table",
    "beach": r"beach|seaside|seashore|sand by the sea",
    "snow": r"snow|snowy|winter",
    "jungle": r"jungle|tropical forest|rainforest",
    "city": r"city|cobblestone|street|sidewalk",
    "mountain": r"mountains?",
    "desert": r"desert|sand dunes?",
    "night": r"night|stars|moonlight",
    "grass": r"grass|meadow|lawn|(?<!wheat )(?<!corn )(?<!snowy )field",
    "wooden floor": r"wooden (?:floor|planks)|wood floor",
    "pink fabric": r"pink (?:fabric|cloth)",
    "autumn": r"autumn|fall leaves",
    "water": r"(?:on|in|top of) (?:the )?water|lake|pond",
}
ACCESSORY_WORDS = {
    "headphones": r"headphones?|headset",
    "red hat": r"red hat",
    "santa hat": r"santa (?:claus )?hat|christmas hat",
    "top hat": r"top hat",
    "sunglasses": r"sunglasses",
    "rainbow scarf": r"scarf",
    "crown": r"crown",
    "bow tie": r"bow tie|bowtie",
}
KIND_WORDS = {
    **{kind: kind for kind in KINDS},
    **{"boots" if kind == "boot" else f"{kind}s": kind for kind in KINDS},
    "doggy": "dog", "puppy": "dog", "puppies": "dog", "kitten": "cat", "kittens": "cat", "kitty": "cat",
    "bunny": "rabbit", "bunnies": "rabbit", "piglet": "pig", "piggy": "pig", "teddybear": "bear", "automobile": "car",
    "rucksack": "backpack", "mug": "cup", "mugs": "cup", "teacup": "cup",
}  # fmt: skip
COLOR_WORDS = {**{color: color for color in COLORS}, "gray": "grey", "violet": "purple"}
# Words that end the phrase before a noun, so that "a red hat on a dog" says nothing of the dog's colour.
BREAKS = frozenset({
    "a", "an", "the", "one", "my", "this", "that", "his", "her", "its", "and", "or", "of", "in", "on", "at", "with",
    "wearing", "by", "to", "from", "near", "next", "front", "behind", "beside", "above", "below", "under", "over",
    "top", "photo", "picture", "image",
})  # fmt: skip
SAID_AFTER = re.compile(r"^(?:that is|which is|is|are|in the color|colou?red|painted) (?:all )?(\w+)")


@dataclass(frozen=True)
class Asked:
    """What a prompt names; what it does not name is empty.

    Of several scenes ("on the beach at night") a picture shows one: any of them is right.
    """

    kinds: frozenset[str] = frozenset()
    scenes: frozenset[str] = frozenset()
    accessories: frozenset[str] = frozenset()
    colors: dict[str, str] = field(default_factory=dict)  # kind -> colour


class Sight(Protocol):
    """What is seen of a picture: `cdiff.pocket.probe.Seen`."""

    scene: str
    kinds: tuple[str, ...]
    accessories: tuple[str, ...]
    colors: dict[str, str]


def read_prompt(prompt: str) -> Asked:
    """The kinds, scenes, accessories and colours that a prompt names, tokens (<new1>) passed over."""
    text = re.sub(r"<[^<>\s]*>", " ", prompt.lower())
    text = " ".join(re.findall(r"[a-z]+", text.replace("'s ", " ")))
    accessories, text = _take(ACCESSORY_WORDS, text)
    scenes, text = _take(SCENE_WORDS, text)
    words = text.split()
    kinds: set[str] = set()
    said: dict[str, set[str]] = {}
    for place, word in enumerate(words):
        if word in KIND_WORDS:
            kinds.add(KIND_WORDS[word])
            if color := _color_before(words[:place]) or _color_after(words[place + 1 :]):
                said.setdefault(KIND_WORDS[word], set()).add(color)
    # "a red dog and a blue dog" has no one colour of dogs to judge
    colors = {kind: next(iter(named)) for kind, named in said.items() if len(named) == 1}
    return Asked(frozenset(kinds), scenes, accessories, colors)


def judge(asked: Asked, seen: Sight) -> dict[str, float]:
    """1 right, 0 wrong, NaN where nothing was asked, for each of ATTRIBUTES.

    Kinds and accessories must be those asked for and no others; every colour asked for must be right.
    """
    verdicts = {
        "class": set(seen.kinds) == asked.kinds if asked.kinds else None,
        "scene": seen.scene in asked.scenes if asked.scenes else None,
        "accessory": set(seen.accessories) == asked.accessories if asked.accessories else None,
        "color": all(seen.colors.get(k) == c for k, c in asked.colors.items()) if asked.colors else None,
    }
    return {name: math.nan if verdict is None else float(verdict) for name, verdict in verdicts.items()}


def _take(patterns: dict[str, str], text: str) -> tuple[frozenset[str], str]:
    """The names whose words are in the text, and the text with a bar in their place, so that they count once."""
    found = set()
    for name, words in patterns.items():
        pattern = re.compile(rf"\b(?:{words})\b")
        if pattern.search(text):
            found.add(name)
            text = pattern.sub("|", text)
    return frozenset(found), text


def _color_before(words: list[str]) -> str | None:
    """The colour in the phrase that leads up to a noun, "a red happy [dog]"; none of two: "a black and white [dog]"."""
    found: list[str] = []
    for place in range(len(words) - 1, max(-1, len(words) - 6), -1):
        word = words[place]
        joins = word == "and" and found and words[place - 1 : place] and words[place - 1] in COLOR_WORDS
        if word in KIND_WORDS or word == "|" or (word in BREAKS and not joins):
            break
        if word in COLOR_WORDS:
            found.append(COLOR_WORDS[word])
    return found[0] if len(found) == 1 else None


def _color_after(words: list[str]) -> str | None:
    """ "[dog] that is red"."""
    said = SAID_AFTER.match(" ".join(words))
    return COLOR_WORDS.get(said[1]) if said else None
