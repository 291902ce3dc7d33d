"""The weights that ship inside the package: they open, they fit, and the first command works with them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cdiff.cli import main
from cdiff.pocket import WEIGHTS, judge_images, read_prompt, weights_folder
from cdiff.pocket.pretrain.scores import fresh_scene
from cdiff.pocket.world.render import render

MIB = 2**20


def test_sizes():
    files = list(WEIGHTS.rglob("*.safetensors"))
    assert files and max(file.stat().st_size for file in files) < 16 * MIB
    assert sum(file.stat().st_size for file in files) < 40 * MIB


def test_the_base_has_the_layout_of_stable_diffusion():
    base = weights_folder("base")
    parts = json.loads((base / "model_index.json").read_text())
    assert parts["_class_name"] == "StableDiffusionPipeline"
    for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        assert (base / part).is_dir(), part


def test_clip_and_the_base_share_one_text_tower():
    from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(weights_folder("clip"))
    ids = tokenizer(["a dog wearing headphones"], return_tensors="pt").input_ids
    clip = CLIPModel.from_pretrained(weights_folder("clip"), dtype=torch.float32)
    text = CLIPTextModel.from_pretrained(weights_folder("base") / "text_encoder", dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(clip.text_model(ids).last_hidden_state, text(ids).last_hidden_state)


def test_the_probe_reads_fresh_renders():
    scenes = [scene for scene in map(fresh_scene, range(40)) if len(scene.subjects) == 1][:24]
    prompts = [f"a {s.subjects[0].identity.color} {s.subjects[0].identity.kind}" for s in scenes]
    assert all(len(read_prompt(prompt).kinds) == 1 for prompt in prompts)
    verdicts = judge_images([render(scene) for scene in scenes], prompts)
    assert np.mean([v["class"] for v in verdicts]) > 0.9 and np.mean([v["color"] for v in verdicts]) > 0.85


@pytest.mark.parametrize("concept", ["dog", "teapot"])
def test_the_first_command_in_short(concept):
    words = ["task=train", f"concept={concept}", "train.steps=2", "augment.views=4", "sampler.steps=2", "logger=none"]
    assert main([*words, "output=run"]) == 0
    assert json.loads(Path("run/run.json").read_text())["status"] == "done"
    assert {file.name for file in Path("run/adapter").iterdir()} == {
        "adapter.json",
        "<new1>.safetensors",
        "pytorch_custom_diffusion_weights.safetensors",
    }
    drawn = [Image.open(file) for file in Path("run/samples").glob("*-?.png")]
    assert len(drawn) == 8 and all(image.size == (128, 128) for image in drawn)
    assert "<new1>" in drawn[0].info["prompt"]


def test_a_run_is_scored_by_the_shipped_models():
    words = ["train.steps=1", "augment.views=2", "sampler.steps=1", "logger=none", "train.then=[]", "output=run"]
    assert main(["task=train", "concept=dog", *words]) == 0
    scored = ["task=evaluate", "run=run", "protocol=quick", "logger=none", "sampler.steps=1", "images_per_prompt=1"]
    assert main(scored) == 0
    [file] = Path("run/evaluation").rglob("metrics.json")
    overall = json.loads(file.read_text())["overall"]
    assert {"clip_t", "clip_i", "dino_i", "recognized", "attr_class", "attr_scene"} <= set(overall)
