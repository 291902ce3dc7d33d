"""task=sample with a finished run, on the tiny Stable Diffusion 1.5."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_job import words

from cdiff.cli import main
from cdiff.grids import read_metadata


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def prompts_of(folder: str) -> dict[str, dict]:
    return json.loads(Path(folder, "samples", "prompts.json").read_text(encoding="utf-8"))


@pytest.fixture
def job(trained, sd15_folder) -> list[str]:
    return [*words(sd15_folder), "task=sample", f"run={trained}"]


def test_default_prompts_give_the_images_of_the_training_run(job, trained, capsys):
    assert main([*job, "output=out"]) == 0
    there, here = trained / "samples", Path("out/samples")
    assert prompts_of("out") == json.loads((there / "prompts.json").read_text())
    for name in prompts_of("out"):
        assert (here / name).read_bytes() == (there / name).read_bytes()
    assert (here / "grid.png").is_file() and "grid" in capsys.readouterr().out
    info = json.loads(Path("out/run.json").read_text())
    assert info["status"] == "done" and set(info["timings"]) == {"load", "sample"}


def test_the_concepts_come_from_the_run_without_naming_them(job):
    assert main([*job, "output=out", "prompt='a new1 dog: on/the beach'", "sampler=ddim100", "sampler.steps=3"]) == 0
    assert set(prompts_of("out")) == {"a-new1-dog-on-the-beach-0.png", "a-new1-dog-on-the-beach-1.png"}
    found = read_metadata("out/samples/a-new1-dog-on-the-beach-0.png")
    assert found["prompt"] == "a <new1> dog: on/the beach" and found["eta"] == "1.0" and found["sampler"] == "ddim"


def test_base_alone_differs_and_drops_the_token(job, sd15_folder):
    prompt = "prompt='a <new1> dog on the beach'"
    assert main([*job, "output=tuned", prompt]) == 0
    assert main([*words(sd15_folder), "task=sample", "run=base", "concept=dog", "output=base", prompt]) == 0
    tuned, base = prompts_of("tuned"), prompts_of("base")
    assert {row["prompt"] for row in base.values()} == {"a dog on the beach"}
    assert [row["seed"] for row in base.values()] == [row["seed"] for row in tuned.values()]
    for ours, theirs in zip(tuned, base):
        difference = np.abs(pixels(Path("tuned/samples", ours)) - pixels(Path("base/samples", theirs)))
        assert difference.max() > 0


def test_the_adapter_changes_a_prompt_without_the_token(job, sd15_folder):
    assert main([*job, "output=tuned", "prompt='a dog'", "images_per_prompt=1"]) == 0
    plain = [*words(sd15_folder), "task=sample", "run=base", "output=base", "prompt='a dog'", "images_per_prompt=1"]
    assert main(plain) == 0
    assert np.abs(pixels("tuned/samples/a-dog-0.png") - pixels("base/samples/a-dog-0.png")).max() > 0


def test_prompt_file(job, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("# two\na new1 dog\n\n" + "very " * 120 + "long\n", encoding="utf-8")
    assert main([*job, "output=out", f"prompt_file={file}", "images_per_prompt=3"]) == 0
    assert len(prompts_of("out")) == 6


@pytest.mark.parametrize(
    ("words_", "error"),
    [
        (["prompt_file=nowhere.txt"], "nowhere.txt"),
        (["prompt='a <new2> dog'"], "<new2>"),
        (["run=nowhere"], "nowhere"),
    ],
)
def test_mistakes_start_no_run(job, words_, error, capsys):
    assert main([*job, "output=out", *words_]) == 2
    assert error in capsys.readouterr().err and not Path("out").exists()


def test_base_without_a_prompt(sd15_folder, capsys):
    assert main([*words(sd15_folder), "task=sample", "run=base", "output=out"]) == 2
    assert "prompt" in capsys.readouterr().err
