"""Captions of scenes, in the words of the personalisation benchmarks, and the vocabulary they use."""

from __future__ import annotations

import random
import re
import string

from cdiff.pocket.world.sample import NATURAL_COLORS, main_subject
from cdiff.pocket.world.spec import ACCESSORIES, COLORS, KINDS, Scene, Subject

OPENERS = (
    "a photo of {}",
    "a photo of {}",
    "a photo of {}",
    "a picture of {}",
    "an image of {}",
    "a drawing of {}",
    "an illustration of {}",
    "a rendering of {}",
    "a good photo of {}",
    "a nice photo of {}",
    "a clear photo of {}",
    "a good picture of {}",
    "a bright photo of {}",
    "a dark photo of {}",
    "a clean photo of {}",
    "a cropped photo of {}",
    "a depiction of {}",
    "photo of {}",
    "a bad photo of {}",
    "a blurry photo of {}",
    "a low resolution photo of {}",
    "a pixelated photo of {}",
    "a jpeg corrupted photo of {}",
    "a rendition of {}",
    "a painting of {}",
    "art of {}",
    "itap of {}",
    "{}",
    "{}",
    "{}",
    "{}",
    "{}",
    "{}",
    "this is {}",
)
NEAR = (
    "a close up photo of {}",
    "a close-up photo of {}",
    "{}, zoomed in",
    "a zoomed in photo of {}",
    "a close up of {}",
    "close up {}",
)
FAR = ("a far away photo of {}", "{}, far away", "a photo of {}, very small", "a photo of very small {}", "far away {}")
ADJECTIVES = (
    "cute",
    "nice",
    "lovely",
    "beautiful",
    "good",
    "cool",
    "weird",
    "happy",
    "little",
    "big",
    "small",
    "large",
    "old",
    "new",
    "young",
    "funny",
    "pretty",
    "friendly",
    "clean",
    "fancy",
    "sweet",
    "strange",
    "tiny",
    "calm",
    "shiny",
    "plain",
)
PLACES = {
    "studio": ("on a plain background", "in a studio", "on a white background", "on top of a table"),
    "beach": ("on the beach", "on the beach", "at the beach", "on a sandy beach", "on the sand by the sea"),
    "snow": ("in the snow", "in the snow", "on snow", "in a snowy forest", "in winter"),
    "jungle": ("in the jungle", "in the jungle", "in a green jungle", "in a tropical forest"),
    "city": (
        "in the city",
        "with a city in the background",
        "on a cobblestone street",
        "in a city street",
        "on top of the sidewalk in a crowded street",
    ),
    "mountain": (
        "with a mountain in the background",
        "in the mountains",
        "in front of mountains",
        "with mountains in the background",
    ),
    "desert": ("in the desert", "in the desert", "on a sand dune in the desert", "on top of a dirt road in the desert"),
    "night": ("at night", "at night", "under the stars", "in the moonlight", "under the night sky"),
    "grass": (
        "on the grass",
        "on green grass",
        "in a meadow",
        "on top of green grass",
        "on top of green grass with flowers around it",
        "in a field",
    ),
    "wooden floor": ("on a wooden floor", "on a wooden floor", "on top of a wooden floor", "on wooden planks"),
    "pink fabric": ("on pink fabric", "on top of pink fabric", "on top of pink fabric", "on pink cloth"),
    "autumn": (
        "in autumn",
        "in an autumn forest",
        "with a tree and autumn leaves in the background",
        "on autumn leaves",
    ),
    "water": (
        "on water",
        "on top of water",
        "floating on top of water",
        "floating on the water",
        "in a lake",
        "floating on a lake",
    ),
}
WORN = {
    "headphones": ("headphones", "headphones", "a pair of headphones"),
    "red hat": ("a red hat",),
    "santa hat": ("a santa hat",),
    "top hat": ("a top hat", "a black top hat"),
    "sunglasses": ("sunglasses", "sunglasses", "black sunglasses"),
    "rainbow scarf": ("a rainbow scarf", "a rainbow scarf", "a scarf"),
    "crown": ("a crown", "a golden crown"),
    "bow tie": ("a bow tie", "a blue bow tie"),
}
# Words of the personalisation benchmarks that name nothing this world draws.
BENCHMARK_WORDS = tuple(
    "house rug forest wheat eiffel tower ocean milk sunflowers mirror wet cube shaped chef outfit firefighter "
    "police glasses yellow shirt wizard monocle sneaker bowl can candle stuffed animal toy pet object".split()
)


def article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def subject_phrase(subject: Subject, rng: random.Random, detail: float) -> str:
    """ "a red dog wearing headphones": colour and accessory are named more often the higher `detail` (0 to 1)."""
    kind, color = subject.identity.kind, subject.identity.color
    usual = color in NATURAL_COLORS.get(kind, ())
    words = []
    if rng.random() < 0.12:
        words.append(rng.choice(ADJECTIVES))
    if rng.random() < (0.25 if usual else 0.8) + 0.2 * detail:
        words.append(color)
    if rng.random() < 0.04:  # a word no one knows: the text side learns to pass over names
        letters = "".join(rng.choice(string.ascii_lowercase) for _ in range(rng.randint(2, 5)))
        words.append(rng.choice((letters, rng.choice(BENCHMARK_WORDS))))
    words.append(kind)
    draw = rng.random()
    phrase = " ".join(words)
    noun = article(phrase) if draw < 0.86 else ("the " if draw < 0.93 else "one " if draw < 0.96 else "my ") + phrase
    if subject.accessory and rng.random() < 0.96:
        noun += rng.choice((" wearing ", " wearing ", " wearing ", " with ", " in ")) + rng.choice(
            WORN[subject.accessory]
        )
    return noun


def caption(scene: Scene, rng: random.Random, detail: float = 0.0, verb: str | None = None) -> str:
    """One of the many captions of a scene. `detail` 1 names everything that can be named.

    `verb` ("running") follows the main subject.
    """
    main = main_subject(scene)
    phrase = subject_phrase(main, rng, detail)
    phrase += f" {verb}" if verb else ""
    for other in scene.subjects:
        if other is main:
            continue
        relation = scene.relation or "next to"
        if relation == "in front of" and main is not scene.subjects[-1]:
            relation = "behind"
        second = subject_phrase(other, rng, detail)
        phrase += f" and {second}" if rng.random() < 0.2 else f" {relation} {second}"
    if rng.random() < (0.35 if scene.background == "studio" else 0.78) + 0.3 * detail:
        phrase += " " + rng.choice(PLACES[scene.background])
    alone = len(scene.subjects) == 1
    if alone and main.size > 0.85 and rng.random() < 0.7:
        return rng.choice(NEAR).format(phrase)
    if alone and main.size < 0.4 and rng.random() < 0.7:
        return rng.choice(FAR).format(phrase)
    return rng.choice(OPENERS).format(phrase)


def vocabulary() -> list[str]:
    """Every word a caption can use, and the words of the usual prompt templates and benchmarks, sorted."""
    text = [
        *OPENERS,
        *NEAR,
        *FAR,
        *ADJECTIVES,
        *KINDS,
        *COLORS,
        *ACCESSORIES,
        "wearing with in and next to front of behind",
    ]
    text += [p for places in PLACES.values() for p in places] + [w for worn in WORN.values() for w in worn]
    text += [
        *BENCHMARK_WORDS,
        "a an the one my this is photo of two three and quality worse sitting standing running walking",
    ]
    text += ["hopping rolling drifting flying playing sleeping holding left right middle above below side many"]
    text += ["driving jumping moving swimming floating still across video clip"]
    text += ["dogs cats bears rabbits birds pigs cars barns teapots backpacks boots cups clocks vases"]
    words = set(re.findall(r"[a-z]+", " ".join(text).replace("{}", " ")))
    return sorted(words)
