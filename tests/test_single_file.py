"""Single-file checkpoints: unpacked into the layout of their pipeline, every weight in its place."""

from __future__ import annotations

import shutil

import pytest
import torch
from checkpoints import write_checkpoint
from layouts import build
from safetensors.torch import load_file, save_file
from tiny_job import draw_pictures, words

from cdiff.cli import main
from cdiff.errors import UserError
from cdiff.models import find_base, load_base
from cdiff.schema import ModelConfig


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CDIFF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "checkpoints"


def configuration(folder, target):
    """The configuration files of a base and its tokenizers, no weights."""
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("*.safetensors"))
    return target


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_every_weight_of_a_checkpoint_arrives(name, tmp_path, cache):
    folder = build(name, tmp_path / name)
    file = write_checkpoint(folder, tmp_path / f"{name}.safetensors")
    conf = ModelConfig(path=str(file), config=str(configuration(folder, tmp_path / "config")))
    expected = load_base(ModelConfig(path=str(folder)), torch.float32, "cpu")
    found = load_base(conf, torch.float32, "cpu")
    assert found.folder.parent == cache and found.is_sdxl == (name == "sdxl")
    for ours, theirs in zip(expected.models(), found.models(), strict=True):
        theirs = theirs.state_dict()
        assert all(torch.equal(theirs[key], value) for key, value in ours.state_dict().items())
    assert found.scheduler.config.steps_offset == expected.scheduler.config.steps_offset
    [kept] = cache.iterdir()
    shutil.rmtree(tmp_path / "config")
    assert find_base(conf) == kept  # the second time from the cache


def test_a_checkpoint_is_trained_and_drawn(tmp_path):
    folder = build("sd15", tmp_path / "sd15")
    file = write_checkpoint(folder, tmp_path / "my model.safetensors")
    job = [*words(file, draw_pictures(tmp_path / "pictures", 1)), f"model.config={folder}"]
    assert main([*job, "train.steps=1", "images_per_prompt=1", f"output={tmp_path / 'run'}"]) == 0
    assert main(["task=sample", f"run={tmp_path / 'run'}", "prompt='a new1 dog'", "sampler.steps=2", "device=cpu"]) == 0


def test_another_content_is_another_folder(tmp_path, cache):
    folder = build("sd15", tmp_path / "sd15")
    file = write_checkpoint(folder, tmp_path / "a.safetensors")
    conf = ModelConfig(path=str(file), config=str(folder))
    first = find_base(conf)
    tensors = load_file(file)
    tensors["model.diffusion_model.out.2.bias"] += 1
    save_file(tensors, file)
    assert find_base(conf) != first and len(list(cache.iterdir())) == 2


def test_files_that_are_no_checkpoint(tmp_path, cache):
    file = tmp_path / "a.safetensors"
    save_file({"lora_unet_x.alpha": torch.ones(1)}, file)
    with pytest.raises(UserError, match="no whole checkpoint"):
        find_base(ModelConfig(path=str(file)))
    file.write_bytes(b"not at all")
    with pytest.raises(UserError, match="damaged"):
        find_base(ModelConfig(path=str(file)))
    pickled = tmp_path / "a.ckpt"
    torch.save({}, pickled)
    with pytest.raises(UserError, match="pickles may hold code"):
        find_base(ModelConfig(path=str(pickled)))
    with pytest.raises(UserError, match="no such folder"):
        find_base(ModelConfig(path="models/none.safetensors"))
    assert not cache.exists()


def test_without_a_configuration_and_a_network_the_way_out_is_named(tmp_path, cache):
    file = write_checkpoint(build("sd15", tmp_path / "sd15"), tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"model\.config"):
        find_base(ModelConfig(path=str(file)))
    assert not list(cache.iterdir())
