"""Each launcher and sweeper runs truly, in processes of its own where it has some; skipped where not installed."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tiny_job import draw_pictures, words

from cdiff import gpus
from cdiff.cli import main
from cdiff.compose import compose
from cdiff.runs import Run
from cdiff.sweep_folder import job_runs

SWEEP = Path("outputs/sweeps/s")


def tiny_sweep(model: Path, pictures: Path) -> list[str]:
    """Two jobs of one step each."""
    job = [*words(model, pictures), "train.steps=1", "probes.every=0", "train.then=[]"]
    return ["-m", *job, "seed=1,2", "name=s"]


def states() -> list[tuple[str, int]]:
    return [(run.state, run.info["seed"]) for run in job_runs(SWEEP)[0]]


def test_joblib_gives_each_worker_a_gpu_of_its_own(sd15_folder, tmp_path, monkeypatch, capfd):
    """Two GPUs that do not exist: torch then finds none and stays on the CPU, but the workers must share them out."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # where the claims are
    command = [word for word in tiny_sweep(sd15_folder, draw_pictures(tmp_path / "pictures")) if word != "device=cpu"]
    assert main([*command, "hydra/launcher=gpus"]) == 0
    assert states() == [("done", 1), ("done", 2)]
    runs = job_runs(SWEEP)[0]
    if len({run.info["pid"] for run in runs}) == 2:  # a worker that was quick enough does both
        assert sorted(run.info["sweep"]["gpu"] for run in runs) == ["5", "7"]
    assert {run.info["pid"] for run in runs}.isdisjoint({os.getpid()})
    assert main([*command, "hydra/launcher=gpus"]) == 0
    assert "Job 1 was done before" in capfd.readouterr().out


def test_a_gpu_is_claimed_once_for_as_long_as_its_process_lives(tmp_path, monkeypatch):
    script = "import sys\nfrom cdiff import gpus\nprint(gpus.claim(), gpus.claim(), flush=True)\nsys.stdin.readline()"
    environment = {**os.environ, "TMPDIR": str(tmp_path), "CUDA_VISIBLE_DEVICES": "0,GPU-8f2a"}

    def worker() -> subprocess.Popen:
        command = [sys.executable, "-c", script]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True)

    first, second = worker(), worker()
    taken = {first.stdout.readline().strip(), second.stdout.readline().strip()}
    assert taken == {"0 0", "GPU-8f2a GPU-8f2a"}
    third = worker()
    assert third.stdout.readline().strip() == "None None"
    said = first.communicate("\n")
    assert not said[1] and first.returncode == 0
    fourth = worker()
    assert fourth.stdout.readline().strip() in taken
    for process in (second, third, fourth):
        process.communicate("\n")


def test_one_gpu_needs_no_claim(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert gpus.claim() is None and os.environ["CUDA_VISIBLE_DEVICES"] == "3"


def test_submitit_in_its_local_mode(sd15_folder, tmp_path, capfd):
    """One job fails for want of its pictures; the sweep again, with the pictures there, does that one alone."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    there, missing = draw_pictures(tmp_path / "there"), tmp_path / "missing"
    fixed = [w for w in tiny_sweep(sd15_folder, there) if not w.startswith(("concept.images", "seed"))]
    command = [*fixed, f"concept.images={there},{missing}", "hydra/launcher=local"]
    assert main(command) == 1
    assert [state for state, _ in states()] == ["done", "failed"]
    assert "missing, is a folder that does not exist" in capfd.readouterr().err.replace("\n", " ")
    first = job_runs(SWEEP)[0][0].info["pid"]
    draw_pictures(missing)
    assert main(command) == 0
    runs = job_runs(SWEEP)[0]
    assert [run.state for run in runs] == ["done", "done"]
    assert runs[0].info["pid"] == first and len({run.info["pid"] for run in runs} | {os.getpid()}) == 3


def test_ray(sd15_folder, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_ray_launcher")
    command = tiny_sweep(sd15_folder, draw_pictures(tmp_path / "pictures"))
    cpu = ["hydra.launcher.ray.remote.num_gpus=0", "hydra.launcher.ray.remote.num_cpus=1"]
    assert main([*command, "hydra/launcher=ray_cluster", *cpu]) == 0
    assert states() == [("done", 1), ("done", 2)]


def test_optuna_maximises_the_objective_and_goes_on_where_it_stopped(task):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")

    def body(cfg):
        Run.start(cfg, "train")
        return {"objective": -abs(cfg.loss.spl_weight - 0.7)}

    seen = task(body)
    command = ["-m", "hydra/sweeper=search", "hydra.sweeper.n_trials=6", "loss.spl_weight=interval(0,1)", "name=s"]
    assert main(command) == 0
    found = yaml.safe_load((SWEEP / "optimization_results.yaml").read_text())
    assert found["best_value"] == max(-abs(cfg.loss.spl_weight - 0.7) for cfg in seen) > -0.3
    assert len(seen) == len(job_runs(SWEEP)[0]) == 6
    first = {cfg.loss.spl_weight for cfg in seen}
    seen = task(body)
    assert main([*command, "hydra.sweeper.n_trials=7"]) == 0
    assert len(seen) == 1 and not first & {cfg.loss.spl_weight for cfg in seen}


def test_an_interval_is_checked_at_both_ends(task, capsys):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    seen = task(lambda cfg: {})
    assert main(["-m", "hydra/sweeper=search", "loss.spl_weight=interval(-1,1)", "name=s"]) == 2
    assert "loss.spl_weight must be at least 0, got -1" in capsys.readouterr().err and not seen


@pytest.mark.parametrize(
    ("choice", "plugin", "extra"),
    [("hydra/launcher=gpus", "joblib", "joblib"), ("hydra/launcher=ray_cluster", "ray", "ray"),
     ("hydra/sweeper=search", "optuna", "optuna")],
)  # fmt: skip
def test_a_launcher_that_is_not_installed_is_named(choice, plugin, extra, capsys, monkeypatch):
    from hydra.core.config_store import ConfigStore

    compose([])  # Hydra looks for plugins once
    without = copy.deepcopy(ConfigStore.instance().repo)
    without["hydra"][choice.split("/")[1].split("=")[0]].pop(f"{plugin}.yaml", None)
    monkeypatch.setattr(ConfigStore.instance(), "repo", without)
    assert main(["-m", choice, "seed=1,2", "name=s"]) == 2
    assert f"pip install 'cdiff[{extra}]'" in capsys.readouterr().err and not Path("outputs").exists()


def test_slurms_settings_are_those_that_submitit_takes():
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    launcher = compose(["hydra/launcher=slurm", "hydra.launcher.partition=gpu"]).hydra.launcher
    assert (launcher.gpus_per_node, launcher.partition) == (1, "gpu") and "SlurmLauncher" in launcher._target_
    assert json.dumps(str(launcher.submitit_folder)).endswith('/.submitit/%j"')
