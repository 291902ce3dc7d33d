"""Captions say what the scene holds, in words the tokenizer knows."""

from __future__ import annotations

import random
import re

import pytest

from cdiff.pocket.pretrain.scores import fresh_scene, grammar_prompts, held_out_prompts, judge, spoken
from cdiff.pocket.probe import Seen
from cdiff.pocket.world.captions import article, caption, vocabulary
from cdiff.pocket.world.motion import clip_caption, sample_clip
from cdiff.pocket.world.sample import HELD_OUT, main_subject
from cdiff.pocket.world.spec import KINDS, SCENES, Identity, Scene, Subject

WORDS = set(vocabulary())


def words_of(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text)


@pytest.mark.parametrize("detail", [0.0, 0.5, 1.0])
def test_captions_name_what_is_there_and_nothing_else(detail):
    for index in range(300):
        scene = fresh_scene(index)
        text = caption(scene, random.Random(index), detail)
        said = spoken(scene, text)
        named = {kind for kind in KINDS if kind in words_of(text)}
        assert named == said["kinds"] == {s.identity.kind for s in scene.subjects}
        assert said["scene"] in (None, scene.background)
        for kind, color in said["colors"].items():
            assert any(s.identity.kind == kind and s.identity.color == color for s in scene.subjects)


def test_full_detail_names_nearly_everything():
    scenes = [fresh_scene(i, pair=0.0) for i in range(300)]
    said = [spoken(scene, caption(scene, random.Random(i), 1.0)) for i, scene in enumerate(scenes)]
    assert sum(s["scene"] is not None for s in said) > 0.8 * len(said)
    worn = [bool(s["accessories"]) for s, scene in zip(said, scenes) if scene.subjects[0].accessory]
    assert sum(worn) > 0.9 * len(worn)


def test_nearly_every_word_is_in_the_vocabulary():
    """All but the made-up names, which are there so that the text side learns to pass over names."""
    unknown, count = [], 0
    for index in range(500):
        text = caption(fresh_scene(index), random.Random(index), 0.5)
        text += " " + clip_caption(sample_clip(random.Random(index)), random.Random(index), 0.5)
        count += len(words_of(text))
        unknown += [w for w in words_of(text) if w not in WORDS]
    assert len(unknown) < 0.01 * count and max(map(len, unknown)) <= 5
    assert not set(unknown) & set(KINDS) and len(vocabulary()) == len(WORDS)


def test_the_verb_follows_its_subject():
    dog, barn = Subject(Identity("dog", "red", 1), 0.3, 0.9, 0.4), Subject(Identity("barn", "red", 1), 0.6, 0.8, 0.7)
    text = caption(Scene("beach", 1, (barn, dog), "in front of"), random.Random(3), 1.0, "running")
    assert re.search(r"dog running (in front of|and) .*barn", text)


def test_a_pair_is_told_from_its_main_subject():
    dog, barn = Subject(Identity("dog", "red", 1), 0.3, 0.9, 0.4), Subject(Identity("barn", "red", 1), 0.6, 0.8, 0.7)
    scene = Scene("beach", 1, (barn, dog), "in front of")
    assert main_subject(scene) is dog
    texts = {caption(scene, random.Random(i)) for i in range(50)}
    assert any("in front of" in t for t in texts)
    assert all(t.index("dog") < t.index("barn") for t in texts)


def test_articles():
    assert article("orange cat") == "an orange cat" and article("red cat") == "a red cat"


def test_held_out_prompts_ask_for_every_combination():
    prompts = held_out_prompts(2 * len(HELD_OUT))
    for text, asked in prompts:
        (kind,) = asked["kinds"]
        values = {asked["scene"], *asked["accessories"], asked["colors"][kind]}
        assert kind in words_of(text) and any((kind, value) in HELD_OUT for value in values)
        assert asked["scene"] in SCENES


def test_judging_reads_only_what_was_asked():
    asked = {"kinds": {"dog"}, "scene": "beach", "accessories": set(), "colors": {}}
    right = judge(asked, Seen("beach", ("dog",), ("crown",), {"dog": "red"}))
    assert right == {"class": True, "scene": True, "accessory": None, "color": None}
    wrong = judge(asked | {"colors": {"dog": "blue"}}, Seen("snow", ("dog", "cat"), (), {"dog": "red"}))
    assert wrong == {"class": False, "scene": False, "accessory": None, "color": False}


def test_prompts_of_the_scores_stay_the_same():
    assert grammar_prompts(5) == grammar_prompts(8)[:5]
