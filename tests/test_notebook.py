"""cdiff.load and cdiff.open_run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_scorer import FakeScorer
from PIL import Image
from tiny_job import draw_pictures, words

import cdiff
from cdiff.cli import main
from cdiff.errors import UserError


@pytest.fixture(scope="module")
def run_folder(sd15_folder, tmp_path_factory):
    home = tmp_path_factory.mktemp("notebook")
    job = [*words(sd15_folder, draw_pictures(home / "pictures")), "optimizer.learning_rate=5e-2"]
    assert main([*job, "train.then=[]", f"output={home / 'run'}"]) == 0
    return home / "run"


def stock(folder, prompt="a <new1> dog"):
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)

    def draw():
        options = {"num_inference_steps": 3, "height": 64, "width": 64, "output_type": "np"}
        return pipe(prompt, generator=torch.Generator().manual_seed(0), **options).images[0]

    return pipe, draw


def test_importing_cdiff_is_light():
    script = "import sys, cdiff; assert 'load' in dir(cdiff); print(sorted({'torch', 'diffusers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        cdiff.lod  # noqa: B018


@pytest.mark.parametrize("what", ["", "adapter"])
def test_a_run_in_a_stock_pipeline_draws_what_its_export_draws(run_folder, sd15_folder, tmp_path, what):
    pipe, draw = stock(sd15_folder)
    before = draw()
    assert cdiff.load(pipe, run_folder / what) is pipe
    if not (run_folder / "export" / "diffusers").exists():
        assert main(["task=export", f"run={run_folder}", "format=diffusers"]) == 0
    whole, draw_whole = stock(run_folder / "export" / "diffusers")
    whole.scheduler = pipe.scheduler
    assert np.array_equal(draw(), draw_whole()) and not np.allclose(draw(), before, atol=1e-2)


def test_what_can_not_be_loaded_leaves_the_pipeline_as_it_was(run_folder, sd15_folder, tmp_path):
    pipe, draw = stock(sd15_folder, "a dog")
    before = draw()
    with pytest.raises(UserError, match="There is no run folder"):
        cdiff.load(pipe, tmp_path / "nothing")
    info = json.loads((run_folder / "run.json").read_text())
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(json.dumps(info | {"status": "failed"}))
    with pytest.raises(UserError, match="has failed"):
        cdiff.load(pipe, tmp_path / "run")
    assert np.array_equal(draw(), before)
    cdiff.load(pipe, run_folder)
    with pytest.raises(UserError, match="is this adapter applied already"):
        cdiff.load(pipe, run_folder)
    with pytest.raises(UserError, match="cdiff knows CLIPTokenizer"):
        cdiff.load(object(), run_folder)


def test_an_opened_run_draws_the_images_of_the_task(run_folder):
    rex = cdiff.open_run(run_folder, device="cpu")
    images = rex.sample(["a new1 dog", "a dog"], images_per_prompt=2, seed=3, steps=2)
    job = ["task=sample", f"run={run_folder}", "prompts=['a new1 dog','a dog']", "seed=3", "sampler.steps=2"]
    assert main([*job, "device=cpu", "output=out"]) == 0
    table = json.loads(Path("out/samples/prompts.json").read_text())
    for image, (name, entry) in zip(images, table.items(), strict=True):
        assert image.info["prompt"] == entry["prompt"]
        assert np.array_equal(np.asarray(image), np.asarray(Image.open(Path("out/samples", name))))
    with pytest.raises(UserError, match="'stpes'"):
        rex.sample("a dog", stpes=3)
    with pytest.raises(UserError, match="<new2>, which was not trained"):
        rex.sample("a <new2> dog")


def test_an_opened_run_scores(run_folder, monkeypatch, tmp_path):
    import cdiff.notebook as notebook

    fake = FakeScorer()
    monkeypatch.setattr(notebook, "open_metrics", lambda *_: [fake])
    monkeypatch.setenv("CDIFF_CACHE", str(tmp_path))
    rex = cdiff.open_run(run_folder, device="cpu")
    images = rex.sample("a <new1> dog on the beach", seed=3, steps=1)
    [row] = rex.score(images)
    assert set(row) == {"clip_t", "clip_i"} and np.isfinite(list(row.values())).all()
    assert fake.seen == ["a dog on the beach"]  # the token dropped
    with pytest.raises(UserError, match="1 images and 2 prompts"):
        rex.score(images, ["a", "b"])
