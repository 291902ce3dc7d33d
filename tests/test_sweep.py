"""Sweeps as a user meets them: done again, killed half-way, with jobs that fail, with folders that are not theirs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_job import draw_pictures, plain_environment, words

from cdiff import models, shared
from cdiff.cli import main
from cdiff.errors import UserError
from cdiff.evaluation.runs import sweep_runs
from cdiff.runs import Run
from cdiff.sweep_folder import job_runs

SWEEP = Path("outputs/sweeps/s")
COMMAND = ["-m", "train.steps=1,2,3", "name=s", "logger=none"]


def state(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))


def folders() -> list[str]:
    return sorted(path.name for path in SWEEP.iterdir() if path.is_dir())


def body_that_fails(*steps: int):
    def body(cfg):
        Run.start(cfg, "train")
        if cfg.train.steps in steps:
            raise UserError(f"{cfg.train.steps} steps are too few.")
        return {"objective": cfg.train.steps / 10}

    return body


def test_failed_jobs_are_told_in_the_end_with_reason_and_log(task, capsys):
    seen = task(body_that_fails(2))
    assert main(COMMAND) == 1
    assert [cfg.train.steps for cfg in seen] == [1, 2, 3]
    said = capsys.readouterr().err
    closing = said[said.index("1 of 3 jobs in outputs/sweeps/s are not done:") :].replace("\n", " ")
    assert "1-train.steps=2 (failed): 2 steps are too few." in closing
    assert "log: outputs/sweeps/s/1-train.steps=2/log.txt" in closing
    assert "too few" in (SWEEP / "1-train.steps=2" / "log.txt").read_text(encoding="utf-8")
    assert state(SWEEP / "2-train.steps=3")["sweep"] == {
        "resume": True, "name": "s", "job": 2, "swept": {"train.steps": "3"}, "gpu": None,
    }  # fmt: skip


def test_a_job_that_fails_before_its_run_starts_is_recorded_too(task, capsys):
    def body(cfg):
        if cfg.train.steps == 1:
            raise ZeroDivisionError("of no use")
        return body_that_fails()(cfg)

    task(body)
    assert main(COMMAND) == 1
    info = state(SWEEP / "0-train.steps=1")
    assert info["status"] == "failed" and info["reason"] == "ZeroDivisionError: of no use"
    assert "ZeroDivisionError" in (SWEEP / "0-train.steps=1" / "log.txt").read_text(encoding="utf-8")
    assert "0-train.steps=1 (failed): ZeroDivisionError" in capsys.readouterr().err


def test_the_same_sweep_again_repeats_what_failed_and_nothing_else(task, capsys):
    task(body_that_fails(2))
    assert main(COMMAND) == 1
    seen = task(body_that_fails())
    assert main(COMMAND) == 0
    assert [cfg.train.steps for cfg in seen] == [2]
    assert folders() == ["0-train.steps=1", "1-train.steps=2", "2-train.steps=3", "attempts"]
    assert state(SWEEP / "1-train.steps=2")["status"] == "done"
    assert state(SWEEP / "attempts/1-train.steps=2/1")["reason"] == "2 steps are too few."
    assert "Job 0 was done before: outputs/sweeps/s/0-train.steps=1" in capsys.readouterr().out
    assert [run.folder.name for run in sweep_runs(SWEEP)] == folders()[:3], "an evaluation takes no earlier attempt"
    seen = task(body_that_fails())
    assert main(COMMAND) == 0 and not seen
    calls = json.loads((SWEEP / "sweep.json").read_text())["calls"]
    assert [call["command"] for call in calls] == [f"python -m cdiff {' '.join(COMMAND)}"] * 3


def test_a_value_more_does_only_that_one(task):
    task(body_that_fails())
    assert main(["-m", "train.steps=1,3", "name=s"]) == 0
    seen = task(body_that_fails())
    assert main(["-m", "train.steps=1,2,3", "name=s"]) == 0
    assert [cfg.train.steps for cfg in seen] == [2]
    assert folders() == ["0-train.steps=1", "1-train.steps=2", "1-train.steps=3"]


@pytest.mark.parametrize(
    ("again", "sentence"),
    [
        (["train.log_every=3"], "was done with other settings (train.log_every 10, now 3): choose another name="),
        (["seed=1,2"], "holds another sweep, over train.steps, and this one is over seed, train.steps"),
        (["sweep.resume=false"], "holds a sweep already: sweep.resume=true goes on with it"),
    ],
)
def test_two_sweeps_do_not_share_a_folder(again, sentence, task, capsys):
    task(body_that_fails())
    assert main(COMMAND) == 0
    before = sorted(SWEEP.rglob("*"))
    seen = task(body_that_fails())
    assert main([*COMMAND, *again]) == 2
    assert sentence in capsys.readouterr().err.replace("\n", " ")
    assert not seen and sorted(SWEEP.rglob("*")) == before


def test_a_folder_that_is_no_sweeps_is_left_alone(task, capsys):
    (SWEEP / "thesis").mkdir(parents=True)
    seen = task(body_that_fails())
    assert main(COMMAND) == 2 and not seen
    assert "exists and is no sweep's folder (thesis ...)" in capsys.readouterr().err.replace("\n", " ")


def test_dead_running_and_foreign_folders(task, capsys):
    task(body_that_fails())
    assert main(COMMAND) == 0
    (SWEEP / "notes").mkdir()
    (SWEEP / "notes" / "ideas.txt").write_text("more steps")
    change(SWEEP / "1-train.steps=2", status="running", pid=2**22 + 1)  # no such process
    seen = task(body_that_fails())
    assert main(COMMAND) == 0
    assert [cfg.train.steps for cfg in seen] == [2], "a dead run is done again"
    (SWEEP / "1-train.steps=2" / ".lock").unlink(missing_ok=True)  # without one the number of the process decides
    change(SWEEP / "1-train.steps=2", status="running", pid=os.getpid())
    assert main(COMMAND) == 2
    assert "is still running (process" in capsys.readouterr().err.replace("\n", " ")
    assert (SWEEP / "notes" / "ideas.txt").read_text() == "more steps"
    (SWEEP / "1-train.steps=2" / "run.json").write_text("{")
    assert main(COMMAND) == 0
    runs, foreign = job_runs(SWEEP)
    assert [run.state for run in runs] == ["done"] * 3 and foreign == ["notes"]


def change(folder: Path, **facts) -> None:
    (folder / "run.json").write_text(json.dumps(state(folder) | facts))


def test_a_swept_value_that_no_job_could_take_is_told_before_the_first_job(task, capsys):
    seen = task(body_that_fails())
    assert main(["-m", "train.steps=1,2,0", "seed=1,2", "name=s"]) == 2
    said = capsys.readouterr().err
    assert "No job was started." in said and "train.steps must be at least 1, got 0" in said
    assert main(["-m", "loss.spl_weight=0,much", "name=s"]) == 2
    assert "loss.spl_weight=much: loss.spl_weight must be a number, got the text 'much'" in capsys.readouterr().err
    assert main(["-m", "method=lora,class_diffusion", "loss.spl_weight=0,1", "name=s"]) == 2
    assert "method=lora, loss.spl_weight=1: loss.spl_weight needs method.train_token=true" in capsys.readouterr().err
    assert main(["-m", "train.steps=1,2", "output=here"]) == 2
    assert not seen and not Path("outputs").exists()


def test_two_processes_do_not_work_on_one_sweep(task, capsys):
    import fcntl

    task(body_that_fails())
    assert main(COMMAND) == 0
    with (SWEEP / ".lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        assert main(COMMAND) == 2
    assert "Another process works on the sweep outputs/sweeps/s" in capsys.readouterr().err


def test_a_launcher_that_breaks_is_no_bug_of_cdiff(task, capsys, monkeypatch):
    from hydra._internal.core_plugins.basic_launcher import BasicLauncher

    def launch(self, job_overrides, initial_job_idx):
        raise MemoryError("a worker was killed")

    monkeypatch.setattr(BasicLauncher, "launch", launch)
    task(body_that_fails())
    assert main(COMMAND) == 1
    said = capsys.readouterr().err
    assert "The sweep stopped: MemoryError: a worker was killed" in said and "bug" not in said
    assert not SWEEP.exists(), "no job has started: nothing is left"


def test_a_dry_sweep_of_a_sweep_that_exists_changes_nothing(task):
    task(body_that_fails())
    assert main(COMMAND) == 0
    before = {path: path.stat().st_mtime_ns for path in SWEEP.rglob("*")}
    assert main([*COMMAND, "dry_run=true"]) == 0
    assert {path: path.stat().st_mtime_ns for path in SWEEP.rglob("*")} == before


# --- with a true model ----------------------------------------------------------------------------------------------


def job_words(model: Path, pictures: Path) -> list[str]:
    job = words(model, pictures)
    return [*job, "train.steps=2", "train.log_every=1", "images_per_prompt=1", "prompts=['a <new1> dog on the beach']"]


def numbers(folder: Path) -> dict[str, bytes | list]:
    """All that a job computed: weights, pictures, losses at every step."""
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    changing = ("time", "images_per_second", "timings")
    logged = [{k: v for k, v in e.items() if k not in changing} for e in events]
    files = [*folder.glob("adapter/*.safetensors"), *folder.glob("samples/*.png")]
    return {"events": logged} | {str(file.relative_to(folder)): file.read_bytes() for file in files}


def test_the_order_of_jobs_changes_no_number_and_the_base_is_read_once(sd15_folder, tmp_path, monkeypatch):
    """Each method leaves other parts of the model changed: none of it may reach the next job."""
    reads = []
    read = models._read_base
    monkeypatch.setattr(models, "_read_base", lambda *a: reads.append(a) or read(*a))
    common = job_words(sd15_folder, draw_pictures(tmp_path / "pictures"))
    found = []
    for name, order in (("ab", "class_diffusion,dreambooth,lora"), ("ba", "lora,dreambooth,class_diffusion")):
        assert main(["-m", *common, f"method={order}", f"name={name}", "optimizer.learning_rate=1e-2"]) == 0
        runs = job_runs(Path("outputs/sweeps", name))[0]
        found.append({run.info["method"]: numbers(run.folder) for run in runs})
        assert len(reads) == 1, "the base is read once for all jobs of a process"
        assert not shared.keeping(), "nothing is kept after the sweep"
        reads.clear()
    assert found[0] == found[1] and len(found[0]) == 3


def test_a_sweep_killed_half_way_goes_on(sd15_folder, tmp_path):
    common = job_words(sd15_folder, draw_pictures(tmp_path / "pictures"))
    command = [sys.executable, "-m", "cdiff", "-m", *common, "seed=1,2", "name=s"]
    process = subprocess.Popen(command, env=plain_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (SWEEP / "1-seed=2" / "run.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    first = (SWEEP / "0-seed=1" / "run.json").read_bytes()
    assert [run.state for run in job_runs(SWEEP)[0]] == ["done", "dead"]
    assert main(command[3:]) == 0
    runs = job_runs(SWEEP)[0]
    assert [run.state for run in runs] == ["done"] * 2
    assert (SWEEP / "0-seed=1" / "run.json").read_bytes() == first
