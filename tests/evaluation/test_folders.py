"""Anybody's images with their prompts."""

from __future__ import annotations

import json

import pytest
from fake_scorer import coloured

from cdiff.errors import UserError
from cdiff.evaluation.folders import read_image_folder


@pytest.fixture
def folder(tmp_path):
    for name in ("b.png", "a.png", "c.jpg"):
        coloured(tmp_path / "theirs" / "samples" / name, (10, 20, 30))
    write(tmp_path / "theirs", {"a": "a <new1> dog", "b": "a <new1> dog", "c": "a cat"})
    return tmp_path / "theirs"


def write(folder, index) -> None:
    (folder / "prompts.json").write_text(json.dumps(index), encoding="utf-8")


def test_the_layout_of_customconcept101(folder):
    jobs = read_image_folder(folder)
    assert [(j.file, j.text, j.index, j.seed) for j in jobs] == [
        ("a.png", "a dog", 0, None),
        ("b.png", "a dog", 1, None),
        ("c.jpg", "a cat", 0, None),
    ]
    assert {job.concept for job in jobs} == {"theirs"} and jobs[0].prompt == "a <new1> dog"


def test_our_own_layout(tmp_path):
    own = tmp_path / "samples"
    for name in ("x-0.png", "grid.png"):
        coloured(own / name, (1, 1, 1))
    write(own, {"x-0.png": {"prompt": "a dog", "seed": 5, "index": 3}})
    for folder in (own, tmp_path):
        [job] = read_image_folder(folder)
        assert (job.seed, job.index, job.path) == (5, 3, own / "x-0.png")


@pytest.mark.parametrize(
    ("index", "sentence"),
    [
        ({"a": "x", "b": "x"}, "has no prompt for c.jpg"),
        ({"a": "x", "b": "x", "c": "x", "d": "x", "e.png": "y"}, "names d, e.png, and there is no such image"),
        ({"a": "x", "b": 3, "c": "x"}, "no text as the prompt of b.png"),
        ({"a": "x", "b": " ", "c": "x"}, "no text as the prompt of b.png"),
        ({"a": "x", "b": {"prompt": "x", "seed": "7"}, "c": "x"}, "no whole number"),
        (["a"], "must map each image"),
    ],
)
def test_prompts_that_do_not_fit(folder, index, sentence):
    write(folder, index)
    with pytest.raises(UserError, match=sentence):
        read_image_folder(folder)


def test_folders_that_hold_nothing(folder, tmp_path):
    with pytest.raises(UserError, match="no folder that exists"):
        read_image_folder(tmp_path / "nowhere")
    (folder / "prompts.json").write_text("{broken")
    with pytest.raises(UserError, match="not readable JSON"):
        read_image_folder(folder)
    (folder / "prompts.json").unlink()
    with pytest.raises(UserError, match=r"no prompts.json"):
        read_image_folder(folder)
    (tmp_path / "empty" / "samples").mkdir(parents=True)
    write(tmp_path / "empty", {})
    with pytest.raises(UserError, match="no image in"):
        read_image_folder(tmp_path / "empty")
