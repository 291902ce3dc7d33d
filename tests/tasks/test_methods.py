"""Each method from the command line to pictures, on the tiny Stable Diffusion 1.5; drawn again from its adapter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_job import draw_pictures, words

from cdiff.cli import main

JOBS = {
    "dreambooth": ["method.train_text_encoder=true", "loss.spl_weight=1"],
    "lora": ["method.rank=2"],
    "textual_inversion": ["concept.initializer=random"],
}


@pytest.mark.parametrize("method", JOBS)
def test_a_run_and_the_same_images_from_its_adapter(method, sd15_folder, tmp_path):
    if method == "lora":
        pytest.importorskip("peft")
    pictures = draw_pictures(tmp_path / "pictures")
    common = ["images_per_prompt=1", "prompts=[a new1 dog]"]
    job = [*words(sd15_folder, pictures), f"method={method}", *JOBS[method], *common, "output=run", "train.steps=2"]
    assert main(job) == 0
    info = json.loads(Path("run/adapter/adapter.json").read_text())
    assert info["method"] == method
    assert info["concepts"][0]["initializer"] == ("random" if method == "textual_inversion" else "ktn")
    assert main([*words(sd15_folder), "task=sample", "run=run", *common, "output=again"]) == 0
    (image,) = json.loads(Path("again/samples/prompts.json").read_text())
    assert Path("again/samples", image).read_bytes() == Path("run/samples", image).read_bytes()


def test_spl_without_a_token_that_trains_is_refused_before_anything_starts(sd15_folder, tmp_path, capsys):
    job = [*words(sd15_folder, draw_pictures(tmp_path / "pictures")), "method=lora", "loss.spl_weight=1", "output=run"]
    assert main(job) == 2
    assert "class_diffusion, custom_diffusion, textual_inversion, dreambooth" in capsys.readouterr().err
    assert not Path("run").exists()
