"""task=export: what it refuses, and what it writes for every method."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_job import draw_pictures, words

from cdiff.adapter import load_adapter
from cdiff.cli import main


def exported(run: Path, *more: str) -> int:
    return main(["task=export", f"run={run}", *more])


@pytest.fixture(scope="module")
def runs(sd15_folder, tmp_path_factory):
    """Makes a run of a method, once each."""
    home, made = tmp_path_factory.mktemp("methods"), {}
    pictures = draw_pictures(home / "pictures", 1)

    def run(*chosen: str) -> Path:
        if chosen not in made:
            folder = home / str(len(made))
            job = [*words(sd15_folder, pictures), *chosen, "train.steps=1", "train.then=[]", f"output={folder}"]
            assert main(job) == 0
            made[chosen] = folder
        return made[chosen]

    return run


METHODS = {
    "dreambooth": (["method=dreambooth"], "diffusers, hub", "whole UNet"),
    "textual_inversion": (["method=textual_inversion"], "diffusers, kohya, release, hub", "a token alone"),
    "crossattn": (["method=custom_diffusion", "method.train_unet=crossattn"], "diffusers, release, hub", "biases"),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_run_that_is_no_lora_says_which_formats_fit(runs, name, capsys):
    chosen, fitting, why = METHODS[name]
    run = runs(*chosen)
    assert exported(run, "format=lora") == 2
    said = capsys.readouterr().err.replace("\n", " ")
    assert f"Formats that fit: {fitting}." in said and why in said
    assert not (run / "export").exists()


def test_dreambooth_as_a_pipeline(runs, tmp_path):
    run = runs("method=dreambooth")
    assert exported(run, "format=diffusers", f"export.folder={tmp_path / 'out'}", "export.precision=fp16") == 0
    stored = load_file(tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors")
    trained = load_adapter(run).unet
    assert stored.keys() == trained.keys()
    assert all(torch.equal(stored[name], tensor.half()) for name, tensor in trained.items())


def test_a_trained_lora_goes_out_as_it_is(runs, tmp_path):
    run = runs("method=lora", "method.rank=3")
    assert exported(run, "format=lora", f"export.folder={tmp_path / 'out'}") == 0
    trained, written = load_adapter(run), load_adapter(tmp_path / "out" / "pytorch_lora_weights.safetensors")
    assert trained.unet.keys() == written.unet.keys()
    assert all(torch.equal(written.unet[name], tensor) for name, tensor in trained.unet.items())
    assert exported(run, "format=lora", "export.rank=1", f"export.folder={tmp_path / 'one'}") == 0
    told = json.loads((tmp_path / "one" / "export.json").read_text())
    assert told["rank"] == 1 and max(told["errors"].values()) <= 1


def test_an_embedding_alone(runs, tmp_path):
    assert exported(runs("method=textual_inversion"), "format=kohya", f"export.folder={tmp_path / 'out'}") == 0
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"embeddings", "export.json"}


def test_the_release_files_are_read_back_bit_for_bit(trained, tmp_path):
    assert exported(trained, "format=release", f"export.folder={tmp_path / 'out'}") == 0
    ours, theirs = load_adapter(trained / "adapter"), load_adapter(tmp_path / "out")
    assert ours.unet.keys() == theirs.unet.keys() and ours.tokens.keys() == theirs.tokens.keys()
    for mine, other in ((ours.unet, theirs.unet), (ours.tokens, theirs.tokens)):
        assert all(torch.equal(mine[name], tensor) for name, tensor in other.items())
    kept = torch.load(tmp_path / "out" / "pytorch_custom_diffusion_weights.bin", weights_only=True)
    assert sum(value == {} for value in kept.values() if isinstance(value, dict)) == 16  # self-attention


def test_a_lower_rank_is_reported_and_warned_of(trained, tmp_path, capsys):
    assert exported(trained, "format=lora", "export.rank=2", f"export.folder={tmp_path / 'out'}") == 0
    told = json.loads((tmp_path / "out" / "export.json").read_text())
    assert told["rank"] == 2 and len(told["errors"]) == 32 and all(0.05 < e < 1 for e in told["errors"].values())
    assert exported(trained, "format=lora", "export.tolerance=0.2", f"export.folder={tmp_path / 'tol'}") == 0
    told = json.loads((tmp_path / "tol" / "export.json").read_text())
    assert max(told["errors"].values()) <= 0.2 and 2 < told["rank"] <= 16
    assert "leaves out up to" in capsys.readouterr().err


def test_an_unfinished_run_is_refused(trained, tmp_path, capsys):
    run = shutil.copytree(trained, tmp_path / "run")
    info = json.loads((run / "run.json").read_text())
    for status, word in (("running", "killed before it ended"), ("failed", "has failed"), ("interrupted", "interr")):
        (run / "run.json").write_text(json.dumps({**info, "status": status, "pid": 2**22 + 1}))
        assert exported(run, "format=lora") == 2
        assert word in capsys.readouterr().err
    assert not (run / "export").exists()


def test_what_is_there_already_stays(trained, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    assert exported(trained, "format=lora", f"export.folder={tmp_path / 'out'}") == 2
    assert "exists already and is left as it is" in capsys.readouterr().err
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


def test_nothing_half_written_is_left(trained, tmp_path, monkeypatch):
    import cdiff.export.writing as writing

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing, "save_file", full)
    assert exported(trained, "format=lora", f"export.folder={tmp_path / 'out'}") == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("more", "words_of_it"),
    [
        (["format=onnx"], "format=onnx is unknown"),
        (["format=lora", "export.rank=4", "export.tolerance=0.1"], "not both"),
        (["format=diffusers", "export.rank=4"], "works with format=lora, kohya or hub"),
        (["format=hub"], "repo=OWNER/NAME"),
        (["format=hub", "repo=me"], "is no name on the hub"),
        (["format=lora", "push=true"], "work with format=hub alone"),
        (["run=base"], "nothing to export"),
        (["run=nowhere"], "There is no run folder nowhere"),
    ],
)
def test_words_that_make_no_export(trained, more, words_of_it, capsys):
    assert main(["task=export", *([] if "run=" in more[0] else [f"run={trained}"]), *more]) == 2
    assert words_of_it in capsys.readouterr().err.replace("\n", " ")


def test_another_base_is_told_by_the_tensor_that_does_not_fit(trained, capsys):
    assert exported(trained, "format=lora", "model=pocket") == 2
    said = capsys.readouterr().err
    assert "Error" in said and "base model" in said
