"""Prompts read: what each asks of a picture."""

from __future__ import annotations

import math
import random

import pytest

from cdiff.pocket import read_prompt
from cdiff.pocket.probe import Seen
from cdiff.pocket.reading import judge
from cdiff.pocket.world.captions import PLACES, WORN, caption
from cdiff.pocket.world.sample import sample_scene
from cdiff.pocket.world.spec import KINDS

# prompt -> kinds, scenes, accessories, colours
CASES = {
    "a photo of a dog": ("dog", "", "", {}),
    "a photo of a <new1> dog": ("dog", "", "", {}),
    "a <new1>dog in the snow": ("dog", "snow", "", {}),
    "A Dog, on the BEACH!": ("dog", "beach", "", {}),
    "a red dog": ("dog", "", "", {"dog": "red"}),
    "a red cute <new1> dog": ("dog", "", "", {"dog": "red"}),
    "a dog wearing a red hat": ("dog", "", "red hat", {}),
    "a dog wearing a santa hat in a snowy forest": ("dog", "snow", "santa hat", {}),
    "a dog with a pair of headphones": ("dog", "", "headphones", {}),
    "a cat in a bow-tie and sunglasses": ("cat", "", "bow tie,sunglasses", {}),
    "a dog wearing a blue bow tie": ("dog", "", "bow tie", {}),
    "a dog wearing a rainbow scarf": ("dog", "", "rainbow scarf", {}),
    "a dog wearing a black top hat and a monocle": ("dog", "", "top hat", {}),
    "a golden crown on a grey cat": ("cat", "", "crown", {"cat": "grey"}),
    "a blue teapot next to a red cup": ("teapot,cup", "", "", {"teapot": "blue", "cup": "red"}),
    "a dog in front of a barn": ("dog,barn", "", "", {}),
    "two dogs and a kitten": ("dog,cat", "", "", {}),
    "a pair of boots on a wooden floor": ("boot", "wooden floor", "", {}),
    "a black and white cat next to a red car": ("cat,car", "", "", {"car": "red"}),
    "a cat and a white dog": ("cat,dog", "", "", {"dog": "white"}),
    "a red dog and a blue dog": ("dog", "", "", {}),
    "an orange yellow backpack": ("backpack", "", "", {}),
    "a gray rabbit": ("rabbit", "", "", {"rabbit": "grey"}),
    "a vase that is purple": ("vase", "", "", {"vase": "purple"}),
    "a backpack on the beach at night": ("backpack", "beach,night", "", {}),
    # DreamBooth's prompts
    "a dog on top of pink fabric": ("dog", "pink fabric", "", {}),
    "a dog on top of green grass with sunflowers around it": ("dog", "grass", "", {}),
    "a dog on top of a wooden floor": ("dog", "wooden floor", "", {}),
    "a dog with a city in the background": ("dog", "city", "", {}),
    "a dog with a mountain in the background": ("dog", "mountain", "", {}),
    "a dog with a blue house in the background": ("dog", "", "", {}),
    "a dog on top of a purple rug in a forest": ("dog", "", "", {}),
    "a dog with a wheat field in the background": ("dog", "", "", {}),
    "a dog with a tree and autumn leaves in the background": ("dog", "autumn", "", {}),
    "a dog with the Eiffel Tower in the background": ("dog", "", "", {}),
    "a dog floating on top of water": ("dog", "water", "", {}),
    "a dog floating in an ocean of milk": ("dog", "", "", {}),
    "a dog on top of the sidewalk in a crowded street": ("dog", "city", "", {}),
    "a dog on top of a dirt road": ("dog", "", "", {}),
    "a dog on top of a white rug": ("dog", "", "", {}),
    "a dog in a chef outfit": ("dog", "", "", {}),
    "a dog in a purple wizard outfit": ("dog", "", "", {}),
    "a dog wearing a yellow shirt": ("dog", "", "", {}),
    "a purple dog": ("dog", "", "", {"dog": "purple"}),
    "a cube shaped clock": ("clock", "", "", {}),
    "a wet stuffed animal": ("", "", "", {}),
    "": ("", "", "", {}),
}


def names(text: str) -> frozenset[str]:
    return frozenset(filter(None, text.split(",")))


@pytest.mark.parametrize("prompt", CASES)
def test_what_a_prompt_asks(prompt):
    kinds, scenes, accessories, colors = CASES[prompt]
    asked = read_prompt(prompt)
    assert (asked.kinds, asked.scenes, asked.accessories) == (names(kinds), names(scenes), names(accessories))
    assert asked.colors == colors


def test_every_phrase_of_the_grammar_is_read():
    for scene, phrases in PLACES.items():
        for phrase in phrases:
            assert read_prompt(f"a photo of a dog {phrase}").scenes == {scene}, phrase
    for accessory, phrases in WORN.items():
        for phrase in phrases:
            assert read_prompt(f"a dog wearing {phrase}").accessories == {accessory}, phrase


def test_captions_of_scenes_ask_for_nothing_that_is_not_there():
    for number in range(600):
        rng = random.Random(number)
        scene = sample_scene(rng)
        text = caption(scene, rng, rng.choice((0.0, 0.5, 1.0)))
        asked, colors = read_prompt(text), {(s.identity.kind, s.identity.color) for s in scene.subjects}
        assert asked.kinds == {s.identity.kind for s in scene.subjects}, text
        assert asked.scenes <= {scene.background}, text
        assert asked.accessories <= {s.accessory for s in scene.subjects}, text
        assert set(asked.colors.items()) <= colors, text


def test_verdicts():
    seen = Seen("beach", ("dog", "barn"), ("crown",), {"dog": "red", "barn": "blue"})
    assert judge(read_prompt("a red dog in front of a barn on the beach"), seen) == pytest.approx(
        {"class": 1, "scene": 1, "accessory": math.nan, "color": 1}, nan_ok=True
    )
    assert judge(read_prompt("a blue dog wearing a top hat at night"), seen) == {
        "class": 0, "scene": 0, "accessory": 0, "color": 0,
    }  # fmt: skip
    assert all(math.isnan(value) for value in judge(read_prompt("something"), seen).values())


def test_every_kind_has_its_word():
    assert all(read_prompt(f"a {kind}").kinds == {kind} for kind in KINDS)
