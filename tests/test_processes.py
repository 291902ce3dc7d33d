"""Several processes of one command: the training, the resumed training and the pictures of one, and one run folder."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_job import draw_pictures, plain_environment, words

from cdiff import processes
from cdiff.cli import main
from cdiff.runs import Run

# Adam's epsilon damps steps made of gradients that are rounding alone.
TRAINING = ["train.then=[]", "optimizer.epsilon=1e-2", "lr_schedule=linear", "checkpoints.every=2"]
PROMPTS = ["prompts=['a photo of a <new1> dog','a <new1> dog on the beach']", "images_per_prompt=3"]


def launch(*command: str) -> subprocess.CompletedProcess:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    return subprocess.run(
        [*launcher, "-m", "cdiff", *command],
        env=plain_environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {
        name: tensor
        for file in sorted((folder / "adapter").glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


@pytest.fixture(scope="module")
def job(sd15_folder, tmp_path_factory) -> list[str]:
    return [*words(sd15_folder, draw_pictures(tmp_path_factory.mktemp("two") / "pictures")), *TRAINING]


@pytest.fixture(scope="module")
def run(job, tmp_path_factory) -> Path:
    """A run that two processes trained."""
    folder = tmp_path_factory.mktemp("runs") / "two"
    done = launch(*job, f"output={folder}", "train.batch_size=1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Done") == 1  # the first speaks
    return folder


def test_two_processes_take_the_steps_of_one_with_the_joined_batch(run, job, tmp_path):
    assert main([*job, f"output={tmp_path / 'one'}", "train.batch_size=2"]) == 0
    found, wanted = weights(run), weights(tmp_path / "one")
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=3e-5)
    (one, two) = (json.loads((f / "run.json").read_text())["result"]["losses"] for f in (tmp_path / "one", run))
    assert two == pytest.approx(one, rel=1e-4)


def test_one_process_writes(run):
    assert sorted(path.name for path in run.parent.iterdir()) == ["two"]
    assert Run(run).status == "done" and Run(run).checkpoints() == ["step-000002", "step-000004"]
    steps = [json.loads(line).get("step") for line in (run / "events.jsonl").read_text().splitlines()]
    assert [step for step in steps if step is not None].count(4) == 2  # the losses, and the drift of the token


def test_two_processes_go_on_in_the_same_bits(run, tmp_path):
    whole = weights(run)
    again = tmp_path / "again"
    shutil.copytree(run, again)
    shutil.rmtree(again / "adapter")
    shutil.rmtree(again / "checkpoints" / "step-000004")
    info = json.loads((again / "run.json").read_text()) | {"status": "interrupted"}
    (again / "run.json").write_text(json.dumps(info))
    done = launch("task=train", f"resume={again}")
    assert done.returncode == 0, done.stderr
    found = weights(again)
    assert found.keys() == whole.keys() and all(torch.equal(found[name], whole[name]) for name in whole)


def test_two_processes_draw_the_pictures_of_one(run, sd15_folder, tmp_path):
    drawing = [*words(sd15_folder), "task=sample", f"run={run}", *PROMPTS, "sampler.batch_size=2"]
    assert main([*drawing, f"output={tmp_path / 'one'}"]) == 0
    done = launch(*drawing, f"output={tmp_path / 'two'}")
    assert done.returncode == 0, done.stderr
    files = sorted(path.name for path in (tmp_path / "one" / "samples").iterdir())
    assert len(files) == 8 and files == sorted(path.name for path in (tmp_path / "two" / "samples").iterdir())
    for name in files:
        if name.endswith(".png"):
            one, two = (Image.open(tmp_path / which / "samples" / name) for which in ("one", "two"))
            assert one.tobytes() == two.tobytes(), name


def test_a_mistake_is_told_once(job, tmp_path):
    taken = tmp_path / "file"
    taken.write_text("in the way")
    done = launch(*job, f"output={taken / 'run'}")
    assert done.returncode != 0
    assert done.stderr.count("Can't write the run's folder") == 1


def test_alone_nothing_is_shared(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")  # of a scheduler, without a launcher
    monkeypatch.delenv("RANK", raising=False)
    assert processes.count() == 1 and processes.is_first()
    assert processes.from_first("a") == "a" and processes.together([1, 2]) == processes.in_turns([1, 2]) == [1, 2]
