"""task=train from the command line to the pictures, on the tiny Stable Diffusion 1.5."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tiny_job import draw_pictures, words

from cdiff.adapter import apply_adapter, load_adapter
from cdiff.cli import main
from cdiff.grids import read_metadata
from cdiff.models import load_base
from cdiff.schema import ModelConfig


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_a_finished_run_holds_everything(trained):
    info = read_json(trained / "run.json")
    assert info["status"] == "done" and info["precision"] == "fp32" and info["device"] == "cpu"
    assert set(info["timings"]) == {"load", "encode", "train", "sample"}
    assert info["result"]["losses"].keys() == {"loss/total", "loss/recon", "loss/spl"}
    prompts = read_json(trained / "samples" / "prompts.json")
    assert len(prompts) == 8 and {row["prompt"] for row in prompts.values()} == {
        "a photo of a <new1> dog",
        "a <new1> dog wearing headphones",
        "a <new1> dog on the beach",
        "a <new1> dog in the snow",
    }
    for name, row in prompts.items():
        found = read_metadata(trained / "samples" / name)
        assert found["prompt"] == row["prompt"] and int(found["seed"]) == row["seed"] and found["sampler"] == "dpmpp"
    assert (trained / "samples" / "grid.png").is_file()
    assert {p.name for p in (trained / "validation").iterdir()} == {"step-000000", "step-000002", "step-000004"}
    log = (trained / "log.txt").read_text()
    assert "learning rate 0.004" in log and str(trained / "adapter") in log


def test_losses_and_images_reach_the_events(trained):
    events = [json.loads(line) for line in (trained / "events.jsonl").read_text().splitlines()]
    scalars = {row["step"]: row for row in events if "loss/total" in row}
    assert list(scalars) == [1, 2, 4]
    names = {"loss/total", "loss/recon", "loss/spl", "lr", "grad_norm", "token_norm", "images_per_second"}
    assert all(names <= set(row) and None not in row.values() for row in scalars.values())
    assert [(row["name"], row["step"]) for row in events if row["event"] == "images"] == [
        ("validation", 0),
        ("validation", 2),
        ("validation", 4),
        ("samples", 4),
    ]


def test_the_adapter_says_what_it_is_and_changes_the_base(trained, sd15_folder):
    adapter = load_adapter(trained / "adapter")
    assert adapter.info["concepts"] == [
        {"name": "folder", "token": "<new1>", "class_word": "dog", "initializer": "dog"}
    ]
    assert adapter.info["base_model"] == str(sd15_folder) and adapter.info["steps"] == 4
    base = load_base(ModelConfig(path=str(sd15_folder)), torch.float32, "cpu")
    before = {name: tensor.clone() for name, tensor in base.unet.state_dict().items()}
    apply_adapter(base, adapter)
    changed = {name for name, tensor in base.unet.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if name.endswith((".attn2.to_k.weight", ".attn2.to_v.weight"))}


def test_prompts_of_the_user_and_no_samples(sd15_folder, tmp_path):
    pictures = draw_pictures(tmp_path / "pictures")
    job = [*words(sd15_folder, pictures), "images_per_prompt=1"]
    assert main([*job, "output=a", "prompts=[a new1 dog, a dog]", "loss.spl_weight=0"]) == 0
    assert {row["prompt"] for row in read_json(Path("a/samples/prompts.json")).values()} == {
        "a <new1> dog",
        "a dog",
    }
    assert main([*job, "output=b", "train.then=[]"]) == 0
    assert Path("b/adapter").is_dir() and not Path("b/samples").exists()


def test_the_same_command_gives_the_same_adapter_and_images(sd15_folder, trained):
    pictures = trained.parent / "pictures"
    assert main([*words(sd15_folder, pictures), "output=again", "images_per_prompt=1"]) == 0
    first, second = load_adapter(trained / "adapter"), load_adapter("again/adapter")
    assert all(torch.equal(first.unet[name], second.unet[name]) for name in first.unet)
    assert torch.equal(first.tokens["<new1>"], second.tokens["<new1>"])
    name = "samples/a-new1-dog-in-the-snow-0.png"
    images = [np.asarray(Image.open(folder / name)).astype(int) for folder in (trained, Path("again"))]
    assert np.abs(images[0] - images[1]).max() <= 2  # drawn in batches of 8 and of 4


def test_mistakes_leave_no_run_that_looks_done(sd15_folder, tmp_path, capsys, monkeypatch):
    job = words(sd15_folder, draw_pictures(tmp_path / "pictures"))
    assert main([*job, "output=a", "prompt='a <new7> dog'"]) == 2
    assert "<new7>" in capsys.readouterr().err
    monkeypatch.setattr("cdiff.engine.reconstruction_loss", lambda prediction, *_: prediction.sum() * float("inf"))
    assert main([*job, "output=b"]) == 2
    assert "step 1: loss/recon is" in capsys.readouterr().err
    for folder in (Path("a"), Path("b")):
        assert read_json(folder / "run.json")["status"] == "failed"
        assert not (folder / "adapter").exists() and not (folder / "samples").exists()
