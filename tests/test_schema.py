"""Types and checks of the configuration."""

from __future__ import annotations

import math
from dataclasses import asdict

import pytest

from cdiff.checks import check, value_at
from cdiff.convert import all_keys, key_exists, to_config, to_dict
from cdiff.errors import UserError
from cdiff.ranges import CHOICES, RANGES
from cdiff.schema import ConceptConfig, Config, MethodConfig
from cdiff.suggest import nearest_key


def good() -> Config:
    return Config(concepts={"dog": ConceptConfig(class_word="dog", sources={"pocket": "pocket:dog"})})


def put(config: Config, dotted: str, value: object) -> Config:
    *parents, name = dotted.split(".")
    holder = config
    for parent in parents:
        holder = getattr(holder, parent)
    assert hasattr(holder, name)
    setattr(holder, name, value)
    return config


def mistakes(config: Config) -> str:
    with pytest.raises(UserError) as caught:
        check(config)
    return str(caught.value)


def test_the_default_configuration_is_valid():
    check(good())


def test_values_survive_the_way_through_plain_values():
    config = put(good(), "loss.spl_weight", 0.25)
    assert to_config(to_dict(config)) == config


@pytest.mark.parametrize("key", RANGES)
@pytest.mark.parametrize("value", [-1, math.nan, math.inf])
def test_no_number_may_be_negative_or_not_finite(key, value):
    assert key in mistakes(put(good(), key, value))


@pytest.mark.parametrize(
    "key", ["train.steps", "train.batch_size", "sampler.steps", "sampler.batch_size", "images_per_prompt"]
)
def test_counts_start_at_one(key):
    assert f"{key} must be" in mistakes(put(good(), key, 0))


@pytest.mark.parametrize("key", CHOICES)
def test_unknown_names_list_what_there_is(key):
    message = mistakes(put(good(), key, CHOICES[key][0] + "x"))
    assert f"did you mean '{CHOICES[key][0]}'" in message or f"there is: {', '.join(CHOICES[key])}" in message


@pytest.mark.parametrize(("resolution", "near"), [(100, 96), (0, 8), (-64, 8), (513, 512)])
def test_resolution_is_a_multiple_of_eight(resolution, near):
    assert f"the nearest is {near}" in mistakes(put(good(), "model.resolution", resolution))


def test_everything_wrong_is_told_at_once():
    config = put(put(put(good(), "train.steps", 0), "loss.spl_weight", -1.0), "precision", "fp61")
    lines = mistakes(config).splitlines()
    assert len(lines) == 3
    assert all(line.endswith((".", "?")) for line in lines)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method.train_token": False}, "loss.spl_weight needs method.train_token=true"),
        ({"method.train_token": False, "method.train_unet": "none", "loss.spl_weight": 0.0}, "Nothing would train"),
        (
            {"method.name": "lora", "method.train_unet": "lora", "method.train_token": False},
            "by themselves: class_diff",
        ),
        ({"method.name": "dreambooth", "method.train_unet": "all", "method.train_token": False}, "new tokens only"),
        ({"method.name": "dreambooth"}, "method=dreambooth takes method.train_unet=all, got crossattn_kv"),
        ({"method.train_unet": "lora"}, "got lora; method=lora trains that"),
        ({"method.train_text_encoder": True}, "works with method=dreambooth alone"),
        ({"method.targets": ["to_q", "conv_in"]}, "method.targets=conv_in is no layer of an attention"),
        ({"method.name": "lora", "method.train_unet": "lora", "method.targets": []}, "method.targets is empty"),
        ({"method.rank": 0}, "method.rank must be from 1"),
        ({"method.initializer": " "}, "method.initializer is empty"),
        ({"lr_schedule.warmup_steps": 5}, "lr_schedule=constant has no warm-up"),
        ({"lr_schedule.name": "cosine", "lr_schedule.warmup_steps": 500}, "must be below train.steps"),
        ({"sampler.eta": 1.0}, "sampler=ddim alone"),
        ({"augment.zoom_min": 2.0}, "augment.zoom_min must not be above"),
        ({"prompt": "a dog", "prompts": ["a cat"]}, "one way only"),
        ({"prompts": ["a dog", " "]}, "prompts[1] is empty"),
        ({"concepts": {}}, "No concept is chosen"),
        ({"concepts": {"rex": ConceptConfig(class_word="dog")}}, "Concept rex has no pictures for model=pocket"),
        ({"concepts": {"rex": ConceptConfig(images="x")}}, "needs its class word"),
        ({"device": "gpu"}, "device=gpu is unknown"),
        ({"run": []}, "run must be 'latest'"),
        ({"name": "a/b"}, "name may hold"),
        ({"task": "pretrain"}, "pretrain.stage"),
    ],
)
def test_what_must_hold_between_the_parts(changes, words):
    config = good()
    for key, value in changes.items():
        put(config, key, value)
    assert words in mistakes(config)


@pytest.mark.parametrize(
    ("name", "train_unet", "train_token", "text", "spl", "trains"),
    [
        ("class_diffusion", "crossattn_kv", True, False, 1.0, True),
        ("custom_diffusion", "crossattn", True, False, 0.0, True),
        ("textual_inversion", "none", True, False, 1.0, True),
        ("dreambooth", "all", None, False, 0.0, False),
        ("dreambooth", "all", None, False, 1.0, True),
        ("dreambooth", "all", None, True, 0.0, True),
        ("lora", "lora", False, False, 0.0, False),
        ("lora", "lora", True, False, 1.0, True),
    ],
)
def test_any_method_whose_token_trains_may_carry_spl(name, train_unet, train_token, text, spl, trains):
    config = put(good(), "loss.spl_weight", spl)
    config.method = MethodConfig(name, train_unet, train_token, train_text_encoder=text)
    check(config)
    assert config.method.trains_token(spl) == trains


def test_two_concepts_share_neither_token_nor_pictures():
    config = good()
    config.concepts["cat"] = ConceptConfig(class_word="cat", token="new7", images="x")
    config.concepts["dog"].token = "<new7>"
    config.concept.images = "y"
    message = mistakes(config)
    assert "the same token <new7>" in message
    assert "concept.images would be shared by dog, cat" in message


def test_sampling_does_not_ask_for_what_training_needs():
    check(put(put(good(), "task", "sample"), "concepts", {}))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("train.steps", 1.5, "train.steps must be a whole number, got 1.5"),
        ("train.steps", True, "train.steps must be a whole number, got true"),
        ("train.steps", "5", "train.steps must be a whole number, got the text '5'"),
        ("loss.spl_weight", "high", "loss.spl_weight must be a number"),
        ("loss.spl_weight", None, "loss.spl_weight must be a number, got null"),
        ("dry_run", 1, "dry_run must be true or false"),
        ("prompt", 7, "prompt must be text, got 7"),
        ("prompts", "a dog", "prompts must be a list"),
        ("prompts", ["a", 3], "prompts[1] must be text"),
        ("model", "sd15", "model is a group of settings"),
        ("concepts", {"rex": {"class_wrod": "dog"}}, "concepts.rex.class_wrod"),
    ],
)
def test_types_are_strict(key, value, words):
    values = asdict(good())
    *parents, name = key.split(".")
    holder = values
    for parent in parents:
        holder = holder[parent]
    holder[name] = value
    with pytest.raises(UserError) as caught:
        to_config(values)
    assert words in str(caught.value)


def test_a_whole_number_is_a_number():
    values = asdict(good())
    values["loss"]["spl_weight"] = 2
    assert type(to_config(values).loss.spl_weight) is float


def test_home_is_expanded_in_paths(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    values = asdict(good())
    values["concepts"]["dog"]["images"] = "~/photos/rex"
    values["model"]["path"] = "~/sd15"
    config = to_config(values)
    assert (config.concepts["dog"].images, config.model.path) == ("/home/ann/photos/rex", "/home/ann/sd15")


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("train.step", "train.steps"),
        ("spl_weight", "loss.spl_weight"),
        ("loss.spl_wieght", "loss.spl_weight"),
        ("lr", "optimizer.learning_rate"),
        ("learning_rate", "optimizer.learning_rate"),
        ("sampler.guidance", "sampler.guidance_scale"),
        ("trian.steps", "train.steps"),
        ("image_per_prompt", "images_per_prompt"),
    ],
)
def test_the_nearest_key(wrong, right):
    assert nearest_key(wrong, all_keys()) == right


def test_nonsense_has_no_nearest_key():
    assert nearest_key("xyzzy", all_keys()) is None


def test_keys_exist():
    assert key_exists("concepts.rex.class_word") and key_exists("pretrain.settings.vae.steps")
    assert not key_exists("concepts.rex.wrong") and not key_exists("train.steps.more")


def test_every_range_and_choice_names_a_setting():
    for key in (*RANGES, *CHOICES):
        value_at(Config(), key)
