"""Class images of prior preservation: drawn once, found again, read from a folder."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny import TinyConcept
from tiny_job import draw_pictures, words

import cdiff.class_images as class_images
from cdiff.class_images import class_prompts, fingerprint, from_folder, prior_views, prompt_folder, shares
from cdiff.cli import main
from cdiff.errors import UserError
from cdiff.schema import Config, ModelConfig, PriorConfig, SamplerConfig

DOG, TEAPOT = TinyConcept(), TinyConcept("<new2>", "teapot", name="teapot")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("CDIFF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "prior"


@pytest.fixture
def drawn(monkeypatch) -> list[str]:
    """Prompts in the order in which they are drawn; the images are plain."""
    found = []

    def draw(base, requests, conf, *, resolution):
        found.extend(request.prompt for request in requests)
        return [Image.new("RGB", (resolution, resolution), (request.seed % 256, 9, 9)) for request in requests]

    monkeypatch.setattr(class_images, "sample", draw)
    return found


def config(**prior) -> Config:
    sampler = SamplerConfig(steps=2, batch_size=4)
    prior = PriorConfig(**{"name": "generated", "count": 6} | prior)
    return Config(model=ModelConfig(path="x", resolution=64), prior=prior, sampler=sampler)


def test_drawn_once_and_only_what_is_missing(sd15, drawn, cache):
    first = prior_views(config(), sd15, [DOG])
    assert drawn == ["a photo of a dog"] * 6 and first.prompts == drawn and first.masks.min() == 1
    second = prior_views(config(), sd15, [DOG])
    assert len(drawn) == 6 and torch.equal(first.mean, second.mean)
    assert len(prior_views(config(count=8), sd15, [DOG])) == 8 and len(drawn) == 8
    assert len(prior_views(config(count=3), sd15, [DOG])) == 3 and len(drawn) == 8
    [folder] = cache.iterdir()
    assert json.loads((folder / "prior.json").read_text())["resolution"] == 64
    assert not [p for p in folder.rglob("*") if p.name.startswith(".")]


@pytest.mark.parametrize("change", ["prompt", "seed", "steps", "resolution", "base", "vocabulary"])
def test_whatever_changes_the_images_draws_anew(sd15, drawn, change):
    prior_views(config(), sd15, [DOG])
    other = config()
    if change == "prompt":
        other.prior.prompt = "a {class_word} on grass"
    elif change == "seed":
        other.prior.seed = 1
    elif change == "steps":
        other.sampler.steps = 3
    elif change == "resolution":
        other.model.resolution = 128
    elif change == "base":
        with torch.no_grad():
            next(sd15.unet.parameters()).view(-1)[0] += 1e-3
    else:
        sd15.tokenizer.add_tokens(["<new1>"])
    prior_views(other, sd15, [DOG])
    assert len(drawn) == 12


def test_what_changes_no_pixel_draws_nothing(sd15, drawn):
    prior_views(config(), sd15, [DOG])
    other = config()
    other.sampler.batch_size, other.sampler.token_adjust.alpha, other.seed, sd15.path = 2, 0.5, 7, "/elsewhere"
    prior_views(other, sd15, [DOG])
    assert len(drawn) == 6


def test_a_damaged_image_is_drawn_again(sd15, drawn, cache):
    prior_views(config(), sd15, [DOG])
    [file] = cache.glob("*/*/3.png")
    file.write_bytes(file.read_bytes()[:40])
    prior_views(config(), sd15, [DOG])
    assert len(drawn) == 7


def test_several_concepts_have_equal_shares(sd15, drawn):
    assert shares(8, 3) == [3, 3, 2]
    views = prior_views(config(count=7), sd15, [DOG, TEAPOT, TinyConcept("<new3>")])  # two of them dogs
    assert views.prompts == ["a photo of a dog"] * 4 + ["a photo of a teapot"] * 3
    same = class_prompts(PriorConfig(prompt="a photo", count=3), ["dog", "teapot"])
    assert same == [("a photo", 0), ("a photo", 1), ("a photo", 2)]  # never an image twice


def test_captions_take_turns(sd15, drawn, tmp_path):
    file = tmp_path / "dogs.txt"
    file.write_text("# two\na {class_word} on grass\n\na bear\n", encoding="utf-8")
    views = prior_views(config(count=3, captions=str(file)), sd15, [DOG])
    assert views.prompts == ["a dog on grass", "a bear", "a dog on grass"]


def test_images_do_not_depend_on_the_order_of_drawing(sd15, cache, tmp_path, monkeypatch):
    """The real sampler: a run that finds half of the images gets the same ones as a run that draws all."""
    monkeypatch.setenv("CDIFF_CACHE", str(tmp_path / "other"))
    whole = prior_views(config(count=4), sd15, [DOG])
    monkeypatch.setenv("CDIFF_CACHE", str(tmp_path / "cache"))
    prior_views(config(count=2), sd15, [DOG])
    halves = prior_views(config(count=4), sd15, [DOG])
    assert (whole.mean - halves.mean).abs().max() < 0.02  # rounding of another batch size


def _fill(model: str, cache: str) -> None:
    import os

    from cdiff.models import load_base

    os.environ["CDIFF_CACHE"] = cache
    torch.set_num_threads(1)
    views = prior_views(config(count=8), load_base(ModelConfig(path=model), torch.float32, "cpu"), [DOG])
    assert len(views) == 8


def test_two_processes_at_once(sd15_folder, cache):
    context = multiprocessing.get_context("fork")
    jobs = [context.Process(target=_fill, args=(str(sd15_folder), str(cache.parent))) for _ in range(2)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(60)
    assert [job.exitcode for job in jobs] == [0, 0]
    assert sorted(p.name for p in cache.glob("*/*/*")) == [f"{i}.png" for i in range(8)]


def test_fingerprints(sd15):
    before = fingerprint(sd15)
    assert before == fingerprint(sd15)
    sd15.text_encoder.half()
    assert before != fingerprint(sd15)
    assert prompt_folder("a/../dog") != prompt_folder("a .. dog")


# ---- a folder of the user's own ----


def folder_config(folder: Path, **changes) -> Config:
    return config(name="folder", images=str(folder), **changes)


def test_a_folder_with_captions_and_unreadable_files(tmp_path, caplog):
    folder = draw_pictures(tmp_path / "dogs", 4)
    (folder / "0.txt").write_text("a dog\n  on grass\n", encoding="utf-8")
    (folder / "1.txt").write_bytes(b"\xff\xfe\xff")
    (folder / "2.png").write_bytes(b"no picture")
    with caplog.at_level("WARNING"):
        images = from_folder(folder_config(folder), ["dog"])
    assert [(i.picture.path.name, i.prompt) for i in images] == [
        ("0.png", "a dog on grass"),
        ("3.png", "a photo of a dog"),
    ]
    assert "2.png" in caplog.text and "1.png" in caplog.text
    assert len(from_folder(folder_config(folder, count=1), ["dog"])) == 1


def test_a_folder_for_each_class(tmp_path):
    for word in ("dog", "teapot"):
        draw_pictures(tmp_path / "classes" / word)
    images = from_folder(folder_config(tmp_path / "classes", count=5), ["dog", "teapot"])
    assert [i.prompt for i in images] == ["a photo of a dog"] * 3 + ["a photo of a teapot"] * 2
    with pytest.raises(UserError, match="it lacks cat"):
        from_folder(folder_config(tmp_path / "classes"), ["dog", "cat"])


@pytest.mark.parametrize(
    ("prior", "text"),
    [
        ({"name": "folder"}, "prior.images=DIR"),
        ({"name": "folder", "images": "nowhere"}, "prior.images=nowhere"),
        ({"captions": "nowhere.txt"}, "nowhere.txt can't be read"),
        ({"prompt": "a <new1> dog"}, "names <new1>"),
        ({"count": 1}, "too few for 2 classes"),
    ],
)
def test_mistakes_are_one_sentence(sd15, drawn, prior, text):
    with pytest.raises(UserError) as caught:
        prior_views(config(**prior), sd15, [DOG, TEAPOT])
    assert text in str(caught.value) and "\n" not in str(caught.value) and not drawn


def test_a_cache_that_cannot_be_written(sd15, drawn, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CDIFF_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="CDIFF_CACHE"):
        prior_views(config(), sd15, [DOG])


# ---- in training ----


def test_prior_and_spl_together(sd15_folder, tmp_path, cache, capsys):
    job = [*words(sd15_folder, draw_pictures(tmp_path / "pictures")), "train.then=[]"]
    job += ["prior=generated", "prior.count=3", "loss.spl_weight=1"]
    assert main([*job, "dry_run=true"]) == 0
    assert "3 class images of dog to draw" in capsys.readouterr().out and not cache.exists()
    assert main([*job, "output=a"]) == 0
    files = {file: file.stat().st_mtime_ns for file in cache.rglob("*.png")}
    assert len(files) == 3
    assert main([*job, "output=b", "seed=5"]) == 0
    assert files == {file: file.stat().st_mtime_ns for file in cache.rglob("*.png")}
    events = [json.loads(line) for line in Path("a/events.jsonl").read_text().splitlines()]
    scalars = [event for event in events if event["event"] == "scalars" and "loss/total" in event]
    assert scalars
    for row in scalars:
        assert row["loss/total"] == pytest.approx(row["loss/recon"] + row["loss/prior"] + row["loss/spl"], rel=1e-4)
        assert row["loss/prior"] > 0 and row["loss/spl"] >= 0
    assert "prior" in json.loads(Path("a/run.json").read_text())["timings"]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (["prior=folder"], "prior.images=DIR"),
        (["prior=generated", "prior.images=x"], "prior=folder alone"),
        (["prior=generated", "prior.captions=x", "prior.prompt=y"], "not both"),
        (["prior=generated", "prior.count=0"], "prior.count must be"),
    ],
)
def test_settings_that_do_not_go_together(given, text, capsys):
    assert main(["task=train", "concept=dog", *given, "dry_run=true"]) == 2
    assert text in capsys.readouterr().err
