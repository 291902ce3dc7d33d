"""Every shipped YAML file composes and validates; what the command line chooses arrives where it should."""

from __future__ import annotations

import json
from importlib import util

import pytest
import yaml

from cdiff import catalog
from cdiff.cli import main
from cdiff.compose import compose, to_checked_config
from cdiff.convert import OF_ONE_TASK
from cdiff.errors import UserError
from cdiff.pocket import WEIGHTS
from cdiff.pocket.gallery import GALLERY
from cdiff.pocket.pretrain import record_of
from cdiff.pocket.world.motion import MARGIN
from cdiff.schema import Config

PLUGINS = {"gpus": "joblib_launcher", "local": "submitit_launcher", "slurm": "submitit_launcher",
           "ray_cluster": "ray_launcher", "search": "optuna_sweeper"}  # fmt: skip
MADE_OF_OTHERS = ("dog_teapot", "folder")
NEEDS = {
    ("concept", "folder"): ["concept.images=photos", "concept.class_word=dog"],
    ("task", "pretrain"): ["pretrain.stage=vae"],
    ("pretrain", "pocket"): ["task=pretrain", "pretrain.stage=vae"],
    ("video", "animatediff"): ["task=video"],
    ("video", "pocket"): ["task=video"],
    ("task", "merge"): ["runs=[a,b]"],
    ("task", "concept"): ["images=photos", "name=rex", "class_word=dog"],
    ("prior", "folder"): ["prior.images=dogs"],
}


def config_of(*words: str, config_dirs=()) -> Config:
    return to_checked_config(compose(list(words), list(config_dirs)))


def test_every_option_of_every_group_composes_and_validates():
    problems, tried = [], 0
    for group, options in catalog.groups().items():
        for option in options:
            if group.startswith("hydra/") and not util.find_spec(f"hydra_plugins.hydra_{PLUGINS[option]}"):
                continue  # an extra that is not installed
            chosen = [f"{group}={option}"]
            if group == "concept" and "  pocket:" not in options[option].read_text() and option not in MADE_OF_OTHERS:
                chosen.append("model=sd15")  # DreamBooth's subjects: photos alone
            if group == "recipe":  # a recipe is named after the method and the model that it is for
                method, _, model = option.partition("-")
                chosen = [f"method={method}", f"model={model}"]
            tried += 1
            try:
                config_of(*chosen, *NEEDS.get((group, option), []))
            except UserError as error:
                problems.append(f"{group}/{option}: {error}")
    assert not problems, "\n".join(problems)
    assert tried >= 25


def test_every_file_says_what_it_is_and_the_command_that_uses_it():
    for options in catalog.groups().values():
        for file in options.values():
            head = [line for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
            assert any("python -m cdiff" in line for line in head), f"{file} names no command"
            assert catalog.describe(file), f"{file} does not say what it is"


def test_the_root_sets_every_setting_of_the_schema():
    """No default hides in the schema alone: the YAML shows all there is. Some groups come with their task only."""
    composed = {key: value for task in OF_ONE_TASK for key, value in compose([f"task={task}"]).items()}
    missing = [key for key in vars(Config()) if key not in composed]
    assert not missing


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        (["precision=bf16"], "precision", "bf16"),
        (["task=sample"], "task", "sample"),
        (["task=sample"], "logger.name", "none"),
        (["task=sample"], "concepts", {}),
        (["task=sample", "logger=wandb"], "logger.name", "wandb"),
        (["method=custom_diffusion"], "loss.spl_weight", 0.0),
        (["method=custom_diffusion", "loss=spl"], "loss.spl_weight", 1.0),
        (["method=custom_diffusion", "loss.spl_weight=0.5"], "loss.spl_weight", 0.5),
        (["method=dreambooth"], "loss.spl_weight", 0.0),
        (["method=dreambooth", "loss.spl_weight=1"], "loss.spl_weight", 1.0),
        (["method=textual_inversion", "loss=spl"], "loss.spl_weight", 1.0),
        (["method=lora", "loss=spl", "method.train_token=true"], "loss.spl_weight", 1.0),
        (["method=lora", "method.targets=[attn2.to_k]"], "method.targets", ["attn2.to_k"]),
        (["method=textual_inversion", "model=sd15"], "optimizer.learning_rate", 5e-4),  # as published
        (["method=textual_inversion", "model=sd15"], "train.steps", 3000),
        (["method=dreambooth", "model=sd15"], "optimizer.learning_rate", 5e-6),
        (["method=dreambooth", "model=sd15"], "train.steps", 1000),
        (["method=lora", "model=sd15"], "optimizer.learning_rate", 1e-4),
        (["method=lora", "model=sd15"], "train.steps", 800),
        (["method=lora", "train.steps=9", "optimizer.learning_rate=1e-3"], "train.steps", 9),
        (["model=sd15"], "model.resolution", 512),
        (["model=sd15"], "train.steps", 500),
        (["model=sd15"], "optimizer.learning_rate", 1e-5),
        (["train.steps=7"], "train.steps", 7),  # over the recipe
        (["sampler=ddim100"], "sampler.eta", 1.0),
        (["sampler=ddim100"], "sampler.steps", 100),
        (["loss=release"], "loss.spl_feature", "release"),
        (["task=video"], "sampler.name", "ddim"),
        (["task=video"], "sampler.guidance_scale", 7.5),
        (["task=video"], "sampler.negative_prompt", "bad quality, worse quality"),
        (["task=video"], "video.frames", 16),
        (["task=video"], "video.schedule.beta_schedule", "linear"),
        (["task=video", "sampler=euler"], "sampler.name", "euler"),
        (["task=video", "video=pocket"], "video.schedule.beta_schedule", None),
    ],
)
def test_what_is_chosen_arrives(words, key, value):
    config = config_of(*words)
    for name in key.split("."):
        config = getattr(config, name)
    assert config == value


def test_the_pocket_motion_adapter_is_drawn_with_as_it_was_trained():
    trained = json.loads(record_of(WEIGHTS, "motion").read_text())["settings"]
    drawn = config_of("task=video", "video=pocket").video
    least, most = trained["shared_noise"]
    assert least <= drawn.shared_noise <= most
    assert (drawn.anchor, drawn.margin) == (trained["anchor"], MARGIN)


@pytest.mark.parametrize(
    ("word", "key"),
    [
        ("concept.sources.pocket=pocket:cat", "concept.sources.pocket"),
        ("concepts.dgo.looks.pocket=tan", "concepts.dgo"),
        ("concepts.dog.looks.photo=tan", "concepts.dog.looks.photo"),
    ],
)
def test_a_key_that_is_not_there_is_named_whole_with_the_way_to_add_it(word, key):
    with pytest.raises(UserError, match=rf"^{key} is not in the configuration .* \+{key}=VALUE\.$"):
        config_of("concept=dog", word)
    if key.endswith(("pocket", "photo")):
        assert config_of("concept=dog", f"+{word}").concepts["dog"].looks["pocket"] == "brown"


def test_the_pocket_recipe_is_taken_by_itself():
    recipe = yaml.safe_load(catalog.groups()["recipe"]["class_diffusion-pocket"].read_text(encoding="utf-8"))
    assert config_of().train.steps == recipe["train"]["steps"]


@pytest.mark.parametrize("name", sorted(GALLERY))
def test_the_token_of_a_shipped_concept_starts_from_the_colour_of_its_individual(name):
    config = config_of(f"concept={name}")
    assert config.concepts[name].looks == {"pocket": GALLERY[name][0].color}
    assert config.method.initializer == "looks"


@pytest.mark.parametrize("name", ["claim", "weight_step"])
def test_studies_with_recorded_results_start_tokens_as_they_did(name):
    assert config_of(f"experiment={name}").method.initializer == "class_word"


@pytest.mark.parametrize("words", [["concept=[dog,teapot]"], ["concept=dog_teapot"]])
def test_two_concepts(words):
    config = config_of(*words)
    assert list(config.concepts) == ["dog", "teapot"]
    assert config.concepts["teapot"].class_word == "teapot"


def test_the_same_concept_has_a_source_in_both_worlds():
    for name in ("dog", "cat", "teapot"):
        assert set(config_of(f"concept={name}").concepts[name].sources) == {"pocket", "photo"}


def test_a_folder_of_the_users_own(monkeypatch, capsys):
    monkeypatch.setenv("HOME", "/home/ann")
    words = ["concept=folder", "concept.images=~/photos/rex (1)", "concept.class_word=dog", "dry_run=true"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "images: /home/ann/photos/rex (1)" in shown and "outputs/train/folder/" in shown


def test_a_concept_file_of_the_users_own(tmp_path):
    file = tmp_path / "my conf" / "concept" / "rex.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("# @package concepts.rex\nclass_word: dog\nimages: photos/rex\n", encoding="utf-8")
    config = config_of("concept=rex", config_dirs=[file.parent.parent])
    assert config.concepts["rex"].images == "photos/rex"
    assert main(["--config-dir", str(file.parent.parent), "concept=rex", "dry_run=true"]) == 0


def test_a_misspelt_key_in_a_file_of_the_users_own(tmp_path, capsys):
    file = tmp_path / "concept" / "rex.yaml"
    file.parent.mkdir()
    file.write_text("# @package concepts.rex\nclass_wrod: dog\n", encoding="utf-8")
    assert main([f"--config-dir={tmp_path}", "concept=rex", "dry_run=true"]) == 2
    assert "'concepts.rex.class_wrod'" in capsys.readouterr().err
