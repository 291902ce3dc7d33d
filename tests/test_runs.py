"""run.json tells the truth, whatever happens to the run."""

from __future__ import annotations

import json
import logging
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cdiff import runs
from cdiff.errors import UserError
from cdiff.finding import find_run
from cdiff.runs import Run, atomic_write
from cdiff.schema import ConceptConfig, Config


def config(output: str | None = None, concept: str = "dog", **values) -> Config:
    return Config(concepts={concept: ConceptConfig(class_word=concept)}, output=output, **values)


def done_run(folder: str, concept: str = "dog", task: str = "train") -> Run:
    run = Run.start(config(folder, concept), task)
    run.finish()
    return run


def on_disk(run: Run) -> dict:
    return json.loads((run.folder / "run.json").read_text(encoding="utf-8"))


def test_a_run_is_running_from_the_start_and_done_at_the_end():
    run = Run.start(config("outputs/a", seed=3), "train")
    info = on_disk(run)
    assert (info["status"], info["pid"], info["seed"], info["task"]) == ("running", os.getpid(), 3, "train")
    assert info["concepts"] == ["dog"] and info["versions"]["torch"] and info["started"]
    with run.timed("training"):
        pass
    run.note(device="cpu")
    run.finish({"steps": 3, "loss": math.nan, "folder": Path("x")})
    info = on_disk(run)
    assert info["status"] == "done" and info["device"] == "cpu" and "training" in info["timings"]
    assert info["result"] == {"steps": 3, "loss": None, "folder": "x"}
    assert info["seconds"] >= 0 and info["finished"] >= info["started"]


def test_what_has_ended_stays_as_it_ended():
    run = Run.start(config("outputs/a"), "train")
    run.fail("no memory")
    run.finish()
    assert on_disk(run)["status"] == "failed" and on_disk(run)["reason"] == "no memory"
    assert runs.active() is None


def test_the_configuration_comes_back():
    cfg = config("outputs/a", seed=9)
    cfg.loss.spl_weight = 0.125
    run = Run.start(cfg, "train")
    assert Run(run.folder).config() == cfg


def test_events_are_one_json_a_line():
    run = Run.start(config("outputs/a"), "train")
    run.event({"step": 1, "loss": 0.5})
    run.event({"step": 2, "loss": math.inf, "text": "ü"})
    lines = [json.loads(line) for line in (run.folder / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 0.5), (2, None)]
    assert all(line["time"] > 1e9 for line in lines)


def test_the_log_holds_what_was_said_and_logged_while_the_run_lasted(capsys):
    from cdiff import console

    run = Run.start(config("outputs/a"), "train")
    console.say("five pictures of [a dog]")
    logging.getLogger("cdiff.data").warning("one picture is tiny")
    console.summary("Trained", {"adapter": "here"})
    run.finish()
    logging.getLogger("cdiff").info("too late")
    log = (run.folder / "log.txt").read_text(encoding="utf-8")
    assert "five pictures of [a dog]" in log and "one picture is tiny" in log and "adapter: here" in log
    assert "too late" not in log
    assert "five pictures of [a dog]" in capsys.readouterr().out


def test_an_atomic_write_leaves_the_old_file_when_it_fails(tmp_path, monkeypatch):
    file = tmp_path / "run.json"
    atomic_write(file, "old")

    def broken(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError):
        atomic_write(file, "new")
    assert file.read_text(encoding="utf-8") == "old"
    assert [path.name for path in tmp_path.glob("*run.json*")] == ["run.json"] and len(
        list(tmp_path.glob(".run*"))
    ) == 0


def test_no_permission_names_the_folder(monkeypatch):
    def refused(self, *_, **__):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(UserError, match=r"Can't write the run's folder outputs/a: Permission denied; .* output=DIR"):
        Run.start(config("outputs/a"), "train")
    assert runs.active() is None


def test_a_folder_in_use_is_not_written_over():
    first, second = Run.start(config("outputs/a"), "train"), Run.start(config("outputs/a"), "train")
    assert (first.folder, second.folder) == (Path("outputs/a"), Path("outputs/a-2"))
    first.finish()
    second.finish()


def test_an_empty_folder_is_taken():
    Path("outputs/sweep/0").mkdir(parents=True)
    assert Run.start(config("outputs/sweep/0"), "train").folder == Path("outputs/sweep/0")


def test_latest_is_the_newest_finished_training_run_of_the_concept(monkeypatch):
    for name, concept, task in [
        ("a", "dog", "train"),
        ("b", "dog", "train"),
        ("c", "cat", "train"),
        ("d", "dog", "sample"),
    ]:
        done_run(f"outputs/{name}", concept, task)
    Run.start(config("outputs/e"), "train").fail("no memory")
    for number, name in enumerate("abcde"):
        run = Run(Path("outputs") / name)
        run.note(finished=f"2026-01-01T00:00:0{number}+00:00")
    assert find_run("latest", concept="dog").folder == Path("outputs/b")
    assert find_run("latest").folder == Path("outputs/c")
    assert find_run("latest", task="sample").folder == Path("outputs/d")


def test_latest_sees_a_sweeps_jobs_and_passes_over_damaged_neighbours():
    done_run("outputs/sweeps/s/0-x=1")
    damaged = done_run("outputs/z")
    (damaged.folder / "run.json").write_text('{"status": "do', encoding="utf-8")
    assert find_run("latest").folder == Path("outputs/sweeps/s/0-x=1")


def test_why_there_is_no_latest():
    with pytest.raises(UserError, match="make one: python -m cdiff task=train concept=dog"):
        find_run("latest", concept="dog")
    done_run("outputs/c", "cat")
    with pytest.raises(UserError, match="no finished train run of dog under outputs/; there are runs of cat"):
        find_run("latest", concept="dog")
    Run.start(config("outputs/d"), "train").fail("no memory")
    with pytest.raises(UserError, match=r"the newest, outputs/d, has failed \(no memory\)"):
        find_run("latest", concept="dog")


def test_a_named_run():
    run = done_run("outputs/a")
    assert find_run("outputs/a").info == run.info


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "is not the folder of a run: it has no run.json"),
        ("", "is damaged"),
        ('{"status": "done"', "is damaged"),
        ("[]", "is damaged: it lacks the status"),
    ],
)
def test_a_named_folder_that_is_no_good_run(content, words):
    Path("x").mkdir()
    if content is not None:
        Path("x/run.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=words):
        find_run("x")


def test_a_named_run_that_is_not_done():
    running = Run.start(config("outputs/a"), "train")
    with pytest.raises(UserError, match=rf"is still running \(process {os.getpid()}\)"):
        find_run("outputs/a")
    assert find_run("outputs/a", finished=False).status == "running"
    running.interrupt("Stopped before the end")
    with pytest.raises(UserError, match=r"was interrupted \(Stopped"):
        find_run("outputs/a")
    done_run("outputs/s", task="sample")
    with pytest.raises(UserError, match="a run of task=sample, not of task=train"):
        find_run("outputs/s")


def test_a_killed_process_leaves_a_run_that_is_known_as_killed():
    script = (
        "import os, signal\nfrom cdiff.runs import Run\nfrom cdiff.schema import Config\n"
        "Run.start(Config(output='outputs/k'), 'train')\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == -9
    with pytest.raises(UserError, match="outputs/k, was killed before it ended"):
        find_run("outputs/k")
    with pytest.raises(UserError, match="was killed before it ended"):
        find_run("latest")
