"""task=merge on runs of the tiny Stable Diffusion 1.5, from the command line to the pictures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from cdiff.adapter import adapter_name, apply_adapter, load_adapter
from cdiff.cli import main
from cdiff.finding import find_run
from cdiff.models import load_base
from cdiff.schema import ModelConfig
from cdiff.tokens import PromptEncoder


def merge(*runs: Path, extra: tuple[str, ...] = ()) -> int:
    return main(["task=merge", "device=cpu", f"runs=[{','.join(map(str, runs))}]", "output=merged", *extra])


def copied(run: Path, folder: Path, **changes) -> Path:
    """The run's adapter alone, with other words in adapter.json."""
    shutil.copytree(run / "adapter", folder)
    info = json.loads((folder / "adapter.json").read_text())
    (folder / "adapter.json").write_text(json.dumps(info | changes))
    return folder


def test_a_merged_run_keeps_what_each_run_learned(trained, second, sd15_folder, capsys):
    assert merge(trained, second) == 0
    assert "residual" in capsys.readouterr().out
    info = json.loads(Path("merged/run.json").read_text())
    assert info["status"] == "done" and info["concepts"] == ["folder", "folder-2"]
    assert 0 < info["result"]["residual"] < 1e-4
    report = json.loads(Path("merged/merge.json").read_text())
    assert report["prompts"] == ["a photo of a {}", "a {}"] and report["constraints"] == 12  # of 32 dimensions
    assert report["residual_max"] == info["result"]["residual"] and report["general_captions"] > 300
    merged = load_adapter("merged/adapter")
    assert len(report["residuals"]) == len(merged.unet) and report["rank"] <= report["constraints"]
    for run, token, word in ((trained, "<new1>", "dog"), (second, "<new2>", "cat")):
        own = load_adapter(run / "adapter")
        assert torch.equal(own.tokens[token], merged.tokens[token])
        base = load_base(ModelConfig(path=str(sd15_folder)), torch.float32, "cpu")
        before = {
            adapter_name(n): p.clone() for n, p in base.unet.named_parameters() if n.endswith("attn2.to_v.weight")
        }
        apply_adapter(base, own)
        hidden = PromptEncoder(base).encode_sample([f"a photo of a {token} {word}"]).hidden[0, 5:8]
        for name, untouched in before.items():
            wanted = hidden @ own.unet[name].T
            error = (hidden @ merged.unet[name].T - wanted).norm() / wanted.norm()
            assert error < 1e-4 < (hidden @ untouched.T - wanted).norm() / wanted.norm()


def test_a_merged_run_is_sampled_like_any_other(trained, second, sd15_folder):
    extra = ("concepts={}",)
    assert main(["task=merge", "device=cpu", f"runs=[{trained},{second}]", "output=outputs/merge/x"]) == 0, extra
    config = yaml.safe_load(Path("outputs/merge/x/config.yaml").read_text())
    assert [c["token"] for c in config["concepts"].values()] == ["<new1>", "<new2>"]
    assert config["model"]["path"] == str(sd15_folder)
    assert find_run("latest", concept=["folder", "folder-2"]).folder == Path("outputs/merge/x")
    job = ["task=sample", "run=latest", "device=cpu", "sampler.steps=2", "images_per_prompt=1", "output=out"]
    assert main([*job, "prompt='a new1 dog next to a new2 cat'", "sampler.token_adjust.alpha=0.5"]) == 0
    assert Path("out/samples/a-new1-dog-next-to-a-new2-cat-0.png").is_file()
    assert merge(Path("outputs/merge/x"), trained, extra=("merge.rename=true",)) == 0  # and merged again
    assert list(load_adapter("merged").tokens) == ["<new1>", "<new2>", "<new3>"]


def test_the_same_token_twice(trained, second, tmp_path, capsys):
    twin = copied(trained, tmp_path / "twin")
    assert merge(trained, twin) == 2
    error = capsys.readouterr().err
    assert "the same token <new1>" in error and "merge.rename=true" in error and not Path("merged").exists()
    assert merge(trained, twin, second, extra=("merge.rename=true",)) == 0
    merged = load_adapter("merged")
    assert list(merged.tokens) == ["<new1>", "<new3>", "<new2>"]  # <new2> is the third run's own
    assert torch.equal(merged.tokens["<new1>"], merged.tokens["<new3>"])
    info = json.loads(Path("merged/run.json").read_text())
    assert info["result"]["residual"] < 1e-4  # the twin's constraints repeat the first one's


def test_captions_and_prompts_of_the_user(trained, second, tmp_path):
    file = tmp_path / "captions.txt"
    file.write_text("a bear\na car on the beach\n", encoding="utf-8")
    assert merge(trained, second, extra=(f"merge.captions={file}", "merge.prompts=['a {}']")) == 0
    report = json.loads(Path("merged/merge.json").read_text())
    assert report["general_captions"] == 2 and report["constraints"] == 6 and report["prompts"] == ["a {}"]


@pytest.mark.parametrize(
    ("changes", "text"),
    [({"base_model": "else"}, "different base models"), ({"revision": "v2"}, "different base models"),
     ({"concepts": []}, "no adapter.json that tells")],
)  # fmt: skip
def test_adapters_that_do_not_belong_together(trained, second, tmp_path, capsys, changes, text):
    assert merge(trained, copied(second, tmp_path / "other", **changes)) == 2
    error = capsys.readouterr().err
    assert text in error and len(error.strip().splitlines()) == 1 and not Path("merged").exists()


def test_a_method_without_keys_and_values(trained, second, tmp_path, capsys):
    other = copied(second, tmp_path / "other", unet_tensors=0, method="textual_inversion")
    (other / "pytorch_custom_diffusion_weights.safetensors").unlink()
    assert merge(trained, other) == 2
    assert "method=textual_inversion" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (["runs=[a]"], "two runs or more"),
        ([], "two runs or more"),
        (["runs=[a,a]"], "runs names a twice"),
        (["runs=[a,b]"], "no run folder a"),
        (["runs=[a,b]", "merge.prompts=[a dog]"], "has no {} for the concept"),
    ],
)
def test_mistakes_are_one_sentence(given, text, capsys):
    assert main(["task=merge", *given]) == 2
    assert text in capsys.readouterr().err


def test_a_missing_captions_file_and_an_unfinished_run(trained, second, tmp_path, capsys):
    assert merge(trained, second, extra=("merge.captions=nowhere.txt",)) == 2
    assert "nowhere.txt can't be read" in capsys.readouterr().err
    failed = shutil.copytree(second, tmp_path / "failed")
    info = json.loads((failed / "run.json").read_text())
    (failed / "run.json").write_text(json.dumps(info | {"status": "failed"}))
    assert merge(trained, failed) == 2
    assert "has failed" in capsys.readouterr().err


def test_a_dry_run_says_what_would_be_done(trained, second, capsys):
    assert merge(trained, second, extra=("dry_run=true",)) == 0
    assert "merge.json" in capsys.readouterr().out and not Path("merged").exists()
