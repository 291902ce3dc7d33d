"""Which prompts are drawn, and what of them the text metrics see."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from cdiff.compose import compose, to_checked_config
from cdiff.errors import UserError
from cdiff.evaluation.prompts import metric_text
from cdiff.evaluation.protocol import coverage, read_cases
from cdiff.schema import ProtocolConfig


def protocol(*words: str) -> ProtocolConfig:
    return to_checked_config(compose(["task=evaluate", *words])).protocol


def subject(name: str, class_word: str, token: str = "<new1>", folder: Path | None = None) -> SimpleNamespace:
    return SimpleNamespace(name=name, token=token, class_word=class_word, folder=folder)


@pytest.mark.parametrize(
    ("prompt", "rule", "text"),
    [
        ("a <new1> dog on the beach", "drop", "a dog on the beach"),
        ("<new1> dog", "drop", "dog"),
        ("a <new1> dog next to a <new2> teapot", "drop", "a dog next to a teapot"),
        ("a <new1> <new2> dog, <rex_2-b>.", "drop", "a dog,."),
        ("a dog called <new1>.", "drop", "a dog called."),
        ("<new1>'s dog", "drop", "dog"),
        ("a <new1>dog", "drop", "a dog"),
        ("a <new1> dog  on\tthe beach", "keep", "a <new1> dog  on\tthe beach"),
        ("a <new1> on the beach", "class", "a dog on the beach"),
        ("a <new1> dog on the beach", "class", "a dog on the beach"),
        ("a <new1> dogged look", "class", "a dog dogged look"),
        ("a <new1> next to <new2>", "class", "a dog next to stuffed animal"),
        ("a <new2> stuffed animal", "class", "a stuffed animal"),
        ("<new1>", "drop", "dog"),
        ("<other>", "drop", "<other>"),
        ("a sks dog of new1", "drop", "a dog of new1"),
        ("a dog with 3 < 4 legs", "drop", "a dog with 3 < 4 legs"),
    ],
)
def test_the_prompt_rule(prompt, rule, text):
    classes = {"<new1>": "dog", "<new2>": "stuffed animal"}
    assert metric_text(prompt, rule, classes, ["sks"]) == text


@pytest.mark.parametrize(
    ("name", "prompts", "images"), [("quick", 5, 2), ("pocket", 25, 4), ("dreambench", 25, 4), ("paper", 25, 20)]
)
@pytest.mark.parametrize("class_word", ["dog", "teapot"])
def test_the_shipped_protocols(name, prompts, images, class_word):
    conf = protocol(f"protocol={name}")
    cases = read_cases(conf, [subject("x", class_word)])
    assert (len(cases), conf.images_per_prompt, conf.name) == (prompts, images, name)
    assert all(f"<new1> {class_word}" in case.prompt and "{" not in case.prompt for case in cases)
    assert (any("wearing" in case.prompt for case in cases)) == (class_word == "dog")


def test_dreambench_takes_the_list_of_the_class():
    conf = protocol("protocol=dreambench")
    assert len(conf.subjects) == 30
    texts = {word: {c.prompt for c in read_cases(conf, [subject("x", word)])} for word in set(conf.subjects.values())}
    live = {word for word, prompts in texts.items() if f"a <new1> {word} in a chef outfit" in prompts}
    assert live == {"dog", "cat"}
    assert "a <new1> stuffed animal floating in an ocean of milk" in texts["stuffed animal"]
    assert all(len(prompts) == 25 for prompts in texts.values())
    assert coverage(conf, ["dog", "dog", "teapot", "rex"]) == "2 of the 30 subjects of dreambench"


def test_two_concepts_get_their_own_prompts_and_joint_ones():
    cases = read_cases(protocol("protocol=quick"), [subject("rex", "dog"), subject("pot", "teapot", "<new2>")])
    assert {case.label for case in cases} == {"rex", "pot", "rex+pot"}
    joint = [case for case in cases if case.label == "rex+pot"]
    assert joint[0].prompt == "a <new1> dog next to a <new2> teapot" and len(cases) == 12


def test_prompts_of_ones_own():
    conf = protocol("protocol.prompts=['{} in space','a dog']", "protocol.live=[]", "protocol.joint=[]")
    assert [case.prompt for case in read_cases(conf, [subject("rex", "dog")])] == ["<new1> dog in space", "a dog"]
    with pytest.raises(UserError, match="no prompt for dog"):
        read_cases(protocol("protocol.prompts=[]", "protocol.live=[]"), [subject("rex", "dog")])
    with pytest.raises(UserError, match="no concept"):
        read_cases(conf, [])


@pytest.fixture
def benchmark(tmp_path) -> Path:
    """CustomConcept101's folder, as published."""
    root = tmp_path / "customconcept101"
    (root / "prompts").mkdir(parents=True)
    (root / "prompts" / "dog.txt").write_text("Photo of a {}.\n{} swimming in a pool.\n\n", encoding="utf-8")
    (root / "prompts" / "cat.txt").write_text("a {} wearing a hat", encoding="utf-8")
    (root / "prompts" / "pet_pet.txt").write_text("photo of the {1} and {0}. \n", encoding="utf-8")

    def entry(name: str, word: str, token: str = "<new1>", file: str | None = None) -> dict:
        return {
            "instance_prompt": f"photo of a {token} {word}",
            "class_prompt": word,
            "instance_data_dir": f"./benchmark_dataset/{name}",
            "class_data_dir": f"./regularization/{word}",
            "prompt_filename": file or f"prompts/{word}.txt",
        }

    both = [entry("pet_dog1", "dog"), entry("pet_dog2", "dog"), entry("pet_cat1", "cat"), entry("car1", "car")]
    (root / "dataset.json").write_text(json.dumps(both))
    pair = [
        entry("pet_cat1", "cat"),
        entry("pet_dog2", "dog", "<new2>"),
        {"prompt_filename_compose": "prompts/pet_pet.txt"},
    ]
    (root / "dataset_multiconcept.json").write_text(json.dumps([pair]))
    return root


def test_customconcept101(benchmark):
    conf = protocol("protocol=customconcept101", f"protocol.benchmark={benchmark}")
    assert conf.images_per_prompt == 50
    dog = read_cases(conf, [subject("pet_dog2", "dog")])
    assert [c.prompt for c in dog] == ["Photo of a <new1> dog.", "<new1> dog swimming in a pool."]
    by_folder = read_cases(conf, [subject("rex", "hound", folder=Path("x/pet_cat1"))])
    assert [c.prompt for c in by_folder] == ["a <new1> hound wearing a hat"]
    assert len(read_cases(conf, [subject("rex", "dog")])) == 2  # all dogs there share their prompts
    pair = read_cases(conf, [subject("pet_dog2", "dog"), subject("pet_cat1", "cat", "<new2>")])
    assert [(c.prompt, c.label) for c in pair] == [("photo of the <new1> dog and <new2> cat.", "pet_cat1+pet_dog2")]


def test_customconcept101_that_does_not_fit(benchmark, tmp_path):
    conf = protocol("protocol=customconcept101", f"protocol.benchmark={benchmark}")
    for subjects, sentence in (
        ([subject("pet_dog9", "wolf")], r"no concept pet_dog9.*\(pet_dog"),
        ([subject("car1", "car")], "car.txt, named by its dataset.json, can't be read"),
        ([subject("a", "dog"), subject("b", "cat")], "no composition of a and b"),
    ):
        with pytest.raises(UserError, match=sentence):
            read_cases(conf, subjects)
    conf.benchmark = str(tmp_path / "nowhere")
    with pytest.raises(UserError, match="must be CustomConcept101's folder"):
        read_cases(conf, [subject("rex", "dog")])
    (benchmark / "dataset.json").write_text("{broken")
    conf.benchmark = str(benchmark)
    with pytest.raises(UserError, match="damaged"):
        read_cases(conf, [subject("rex", "dog")])
