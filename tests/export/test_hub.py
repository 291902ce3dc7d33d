"""format=hub against a local stand-in of the hub: the card, the upload, and bases that come from there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest_export import PROMPT
from hub_stand_in import stand_in
from PIL import Image
from tiny_job import GUIDANCE, GUIDED, draw_pictures, words

from cdiff.cli import main
from cdiff.errors import UserError
from cdiff.models import find_base
from cdiff.schema import ModelConfig

SECRET = "hf_secretsecretsecret"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with stand_in(monkeypatch, tmp_path / "hub") as server:
        yield server


def code_of(card: str) -> str:
    """The Python of a model card."""
    return re.search(r"```python\n(.+?)```", card, re.DOTALL)[1]


def front_matter(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def test_a_local_base_makes_a_whole_pipeline_and_a_dry_run_of_the_upload(run_folder, tmp_path, hub, capsys):
    folder = tmp_path / "out"
    assert main(["task=export", f"run={run_folder}", "format=hub", "repo=me/rex", f"export.folder={folder}"]) == 0
    assert "nothing was uploaded" in capsys.readouterr().out and not hub.seen
    card = (folder / "README.md").read_text()
    facts = front_matter(card)
    assert facts["license"] == "other" and facts["instance_prompt"] == "<new1> dog" and "base_model" not in facts
    assert (folder / "unet").is_dir() and "This run has not been evaluated." in card
    pictures = list((folder / "images").iterdir())
    assert len(pictures) == 4 and all(f"(images/{p.name})" in card for p in pictures)
    assert str(run_folder.parent) not in card and str(Path.home()) not in card  # no path of this machine
    assert len(code_of(card).splitlines()) <= 5


def test_from_the_hub_and_back(sd15_folder, tmp_path, hub, monkeypatch, capsys):
    """A base at a pinned revision is trained; the LoRA goes up; the card's own lines draw cdiff's image from there."""
    hub.add("me/tiny", sd15_folder, "v1")
    hub.add("me/tiny", sd15_folder.parent / "nothing", "main")  # another revision, without files
    pictures = draw_pictures(tmp_path / "pictures")
    job = [word for word in words(Path("me/tiny"), pictures) if not word.startswith("optimizer")]
    job += ["model.revision=v1", "optimizer.learning_rate=5e-2", "images_per_prompt=1", f"output={tmp_path / 'run'}"]
    assert main(job) == 0
    result = {"overall": {"clip_t": {"mean": 0.25, "low": 0.2, "high": 0.3, "prompts": 5, "images": 10}}}
    (tmp_path / "run" / "evaluation" / "quick").mkdir(parents=True)
    (tmp_path / "run" / "evaluation" / "quick" / "metrics.json").write_text(json.dumps(result))
    assert main(["task=export", f"run={tmp_path / 'run'}", "format=hub", "repo=me/rex", "push=true"]) == 0

    there, here = hub.repos["me/rex"]["main"], tmp_path / "run" / "export" / "hub"
    assert there == {str(p.relative_to(here)): p.read_bytes() for p in here.rglob("*") if p.is_file()}
    assert set(there) > {"README.md", "pytorch_lora_weights.safetensors", "new1.safetensors"}
    card = there["README.md"].decode()
    assert front_matter(card)["base_model"] == "me/tiny"
    assert "| quick | clip_t | 0.250 | 0.200 to 0.300 | 5 | 10 |" in card

    said = capsys.readouterr()
    texts = [said.out, said.err, *(p.read_text(errors="replace") for p in tmp_path.rglob("*") if p.is_file())]
    assert not any(SECRET in text for text in texts)  # the token is printed nowhere and stored nowhere
    assert any(authorization == f"Bearer {SECRET}" for _, _, authorization in hub.seen)  # but it was used

    job = ["task=sample", f"run={tmp_path / 'run'}", f"prompt='{PROMPT}'", "sampler.steps=3", GUIDED, "device=cpu"]
    assert main([*job, "sampler.batch_size=1", "images_per_prompt=1", "output=own"]) == 0
    [(file, image)] = json.loads(Path("own/samples/prompts.json").read_text()).items()
    own = np.asarray(Image.open(Path("own/samples", file))).astype(int)
    found = np.asarray(run_card(code_of(card), image["seed"], hub, tmp_path)).astype(int)
    assert np.abs(found - own).max() <= 2


def run_card(code: str, seed: int, hub, folder: Path) -> Image.Image:
    """The card's own lines, in a process that cannot import cdiff and takes the stand-in for the hub."""
    assert len(code.strip().splitlines()) == 5
    job = folder / "card.json"
    job.write_text(json.dumps({"code": code, "seed": seed, "guidance": GUIDANCE, "out": str(folder / "card.png")}))
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "0"}
    script = [sys.executable, str(Path(__file__).with_name("card_run.py")), str(job)]
    done = subprocess.run(script, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return Image.open(folder / "card.png")


@pytest.mark.parametrize(
    ("read_only", "token", "said"), [(True, SECRET, "lets you not write"), (False, "", "log in with")]
)
def test_an_upload_that_is_refused_keeps_the_folder(
    run_folder, tmp_path, hub, monkeypatch, capsys, read_only, token, said
):
    hub.read_only = read_only
    if not token:
        from huggingface_hub import constants

        monkeypatch.delenv("HF_TOKEN")
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    job = ["task=export", f"run={run_folder}", "format=hub", "repo=me/rex", "push=true"]
    assert main([*job, f"export.folder={tmp_path / 'out'}"]) == 2
    text = capsys.readouterr().err.replace("\n", " ")
    assert said in text and "hf upload me/rex" in text and "Traceback" not in text
    assert (tmp_path / "out" / "README.md").is_file()


def test_bases_that_the_hub_does_not_give(sd15_folder, hub):
    hub.add("me/tiny", sd15_folder)
    hub.repos["me/secret"] = {"main": {}}
    hub.gated.add("me/secret")
    for options, said in (
        ({"path": "me/none"}, "no public model of this name"),
        ({"path": "me/tiny", "revision": "v9"}, "not this revision"),
        ({"path": "me/secret"}, "is gated: accept its licence"),
    ):
        with pytest.raises(UserError, match=said) as caught:
            find_base(ModelConfig(**options))
        assert SECRET not in str(caught.value)
