"""task=concept: checks pictures and writes a concept that a command line can name."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from tiny_job import draw_pictures, words

from cdiff.cli import main

MAKE = ["task=concept", "images=pictures", "name=rex", "class_word=dog"]


@pytest.fixture
def pictures():
    folder = draw_pictures(Path("pictures"))
    (folder / "0.txt").write_text("a dog on the grass")
    mask = Image.new("L", (90, 72))
    mask.paste(255, (20, 10, 70, 60))
    mask.save(folder / "1.mask.png")
    return folder


def test_a_concept_is_made_and_trained(pictures, sd15_folder, capsys):
    assert main(MAKE) == 0
    said = capsys.readouterr()
    assert "3, 1 with a caption, 1 with a mask" in said.out and "fewer than 128 pixels" in said.err
    with Image.open("concepts/concept/rex.png") as sheet:
        assert sheet.width > 3 * 100
    text = Path("concepts/concept/rex.yaml").read_text()
    assert text.startswith("# @package concepts.rex\n") and str(pictures.absolute()) in text
    job = ["--config-dir", "concepts", *words(sd15_folder), "task=train", "concept=rex", "train.then=[]"]
    assert main([*job, "train.steps=1", "output=run"]) == 0
    assert "3 pictures, 1 captions, 1 masks" in Path("run/log.txt").read_text()


def test_what_is_wrong_with_the_pictures_is_said(pictures, capsys):
    (pictures / "broken.jpg").write_bytes(b"no picture")
    (pictures / "copy.png").write_bytes((pictures / "0.png").read_bytes())
    assert main(MAKE) == 0
    said = capsys.readouterr().err
    assert "broken.jpg is not an image" in said
    assert "copy.png is the same picture as 0.png" in said and "no mask, while other pictures have one" in said


def test_a_concept_that_is_there_stays(pictures, capsys):
    assert main(MAKE) == 0
    before = Path("concepts/concept/rex.yaml").read_text()
    assert main([*MAKE, "class_word=cat"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert Path("concepts/concept/rex.yaml").read_text() == before


def test_another_folder_and_a_list(pictures):
    Path("few.txt").write_text("pictures/0.png\npictures/2.png\n")
    assert main(["task=concept", "images=few.txt", "name=rex", "class_word='toy dog'", "output=mine"]) == 0
    text = Path("mine/concept/rex.yaml").read_text()
    assert "class_word: toy dog" in text and "few.txt" in text


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["images=pictures", "name=rex"], "class_word=dog"),
        (["name=rex", "class_word=dog"], "images=DIR"),
        (["images=pictures", "class_word=dog"], "name=rex"),
        (["images=pictures", "name=7up", "class_word=dog"], "can't name a concept"),
        (["images=pictures", "name=dog", "class_word=dog"], "cdiff has a concept of this name"),
        (["images=nowhere", "name=rex", "class_word=dog"], "does not exist"),
        (["images=hub:nonsense", "name=rex", "class_word=dog"], "hub:OWNER/NAME"),
    ],
)
def test_what_is_missing_is_named_and_nothing_is_written(pictures, given, said, capsys):
    assert main(["task=concept", *given]) == 2
    assert said in capsys.readouterr().err
    assert not Path("concepts").exists()


def test_a_dry_run_writes_nothing(pictures, capsys):
    assert main([*MAKE, "dry_run=true"]) == 0
    assert "concepts/concept/rex.yaml" in capsys.readouterr().out and not Path("concepts").exists()
