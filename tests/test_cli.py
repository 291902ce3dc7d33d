"""The command line as a user meets it: exit codes, sentences, run folders, sweeps."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from cdiff import catalog
from cdiff.__main__ import ENVIRONMENT, set_environment
from cdiff.cli import main
from cdiff.errors import UserError
from cdiff.plan import own_prompts
from cdiff.runs import Run


def started(cfg) -> dict:
    Run.start(cfg, cfg.task)
    return {"adapter": "adapter"}


def state(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))


def run_folders() -> list[Path]:
    return sorted(file.parent for file in Path("outputs").glob("**/run.json"))


def test_help_names_tasks_groups_options_and_examples(capsys):
    assert main(["--help"]) == 0
    page = capsys.readouterr().out
    for group, options in catalog.groups().items():
        if group not in ("task", "recipe"):
            assert f"{group}=" in page and all(option in page for option in options)
    assert "python -m cdiff task=train concept=dog" in page and "task=sample" in page


def test_help_of_a_cold_process_is_quick():
    """The figure is 1.0 s on a quiet machine; a loaded one gets room."""
    command = [sys.executable, "-m", "cdiff", "--help"]
    best = 9.0
    for _ in range(3):
        start = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
        best = min(best, time.monotonic() - start)
        assert done.returncode == 0 and "Usage" in done.stdout
    assert best < 1.5


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["train.step=3"], "There is no setting 'train.step'; did you mean 'train.steps'?"),
        (["spl_weight=3"], "There is no setting 'spl_weight'; did you mean 'loss.spl_weight'?"),
        (["+train.stpes=3"], "There is no setting 'train.stpes'; did you mean 'train.steps'?"),
        (["concpt=dog"], "There is no setting or group 'concpt'; did you mean 'concept='"),
        (["sampler=ddmi"], "sampler=ddmi is unknown; did you mean 'ddim' (there is: ddim, ddim100, dpmpp, euler,"),
        (["precision=bf61"], "precision=bf61 is unknown; did you mean 'bf16'"),
        (["task=trian"], "task=trian is unknown; did you mean 'train'"),
        (["concept=[dog,tepot]"], "concept=tepot is unknown; did you mean 'teapot'"),
        (["concept=[dog,teapot,dog]"], "concept=[...] names dog twice; name each once."),
        (["-m", "concept=[cat,cat],[dog]"], "concept=[...] names cat twice; name each once."),
        (["model=./sd15"], "say model=sd15 model.path=./sd15"),
        (["concept=./photos"], "say concept=folder concept.images=./photos"),
        (["prompt=a <new1> dog"], "quote it twice, \"prompt='a <new1> dog'\""),
        (["prompt='a <new1> dog"], "quote it twice"),
        (["prompt=a dog, on a beach"], "prompt has a comma: quote it twice, \"prompt='a dog, on a beach'\""),
        (["prompt='a dog's hat'"], 'quote it twice, "prompt=\\"a dog\'s hat\\""'),
        (["prompts=[a <new1> dog, b]"], "quote it twice, \"prompts=['a <new1> dog', 'b']\""),
        (["prompt=${nowhere}"], "${...} in a text is read as another setting's value"),
        (["train.steps=many"], "train.steps must be a whole number, got the text 'many'"),
        (["train.steps=0"], "train.steps must be at least 1, got 0"),
        (["train.steps=1,2"], "add -m to try each of them"),
        (["loss.spl_weight=-1"], "loss.spl_weight must be at least 0, got -1"),
        (["loss.spl_weight=nan"], "loss.spl_weight must be at least 0, got nan"),
        (["model.resolution=100"], "must be a positive multiple of 8, got 100; the nearest is 96"),
        (["train=5"], "train is a group of settings"),
        (["concept"], "'concept' is not a setting: write KEY=VALUE"),
        (["--confg"], "There is no option --confg; did you mean '--cfg'"),
        (["--config-dir=nowhere"], "there is none called 'nowhere'"),
        (["concept=folder"], "Concept folder needs its class word"),
        (["task=sample"], "There is no finished train run under outputs/; make one: python -m cdiff task=train"),
        (["task=sample", "run=nowhere"], "There is no run folder nowhere"),
        (["task=pretrain"], "pretrain.stage=NAME"),
    ],
)
def test_bad_input_gets_a_sentence_and_exit_code_2(words, sentence, capsys):
    assert main(words) == 2
    shown = capsys.readouterr()
    assert sentence in shown.err.replace("\n", " ")
    assert "Traceback" not in shown.err and "hydra.cc" not in shown.err
    assert not list(Path().iterdir()), "something was written"


def test_the_advice_on_quoting_works(task):
    seen = task(started)
    assert main(["prompt='a <new1> dog, wearing a hat'"]) == 0
    assert main(['prompt="a dog\'s hat"']) == 0
    assert [cfg.prompt for cfg in seen] == ["a <new1> dog, wearing a hat", "a dog's hat"]


def test_several_mistakes_are_told_at_once(capsys):
    assert main(["train.step=3", "sampler=ddmi", "concpt=dog"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 3


def test_a_dry_run_shows_everything_and_creates_nothing(capsys):
    assert main(["dry_run=true", "train.steps=30", "train.batch_size=4", "images_per_prompt=3"]) == 0
    shown = capsys.readouterr().out
    settings = yaml.safe_load(re.split("╭|Dry run", shown)[0])
    assert settings["train"]["steps"] == 30 and settings["concepts"]["dog"]["class_word"] == "dog"
    assert "30 steps of batch 4: 120 samples" in shown and "12 (4 prompts x 3)" in shown
    assert "outputs/train/dog/class_diffusion/" in shown
    assert not list(Path().iterdir())


def test_the_plan_counts_the_prompts_that_would_be_drawn():
    from cdiff.drawing import default_prompts

    subjects = [SimpleNamespace(token=f"<new{i}>", class_word="dog") for i in (1, 2, 3)]
    assert all(own_prompts(n) == len(default_prompts(subjects[:n])) for n in (1, 2, 3))


def test_a_task_runs_in_its_folder_and_is_done(task):
    seen = task(started)
    assert main(["task=train", "concept=[dog,teapot]", "seed=7"]) == 0
    [folder] = run_folders()
    assert folder.parts[:4] == ("outputs", "train", "dog_teapot", "class_diffusion")
    info = state(folder)
    assert (info["status"], info["seed"], info["concepts"]) == ("done", 7, ["dog", "teapot"])
    assert info["result"] == {"adapter": "adapter"}
    assert str(folder) == seen[0].output
    assert Run(folder).config() == seen[0]
    assert not (folder / ".hydra").exists()


def test_two_runs_of_the_same_second_keep_apart(task):
    task(started)
    for _ in range(3):
        assert main(["output=here"]) == 0
    assert sorted(path.name for path in Path().iterdir()) == ["here", "here-2", "here-3"]


def test_a_users_mistake_within_a_task(task, capsys):
    def body(cfg):
        Run.start(cfg, "train")
        raise UserError("The folder photos holds no pictures.")

    task(body)
    assert main([]) == 2
    assert "The folder photos holds no pictures." in capsys.readouterr().err
    [folder] = run_folders()
    assert state(folder)["status"] == "failed" and "photos" in state(folder)["reason"]
    assert "photos" in (folder / "log.txt").read_text(encoding="utf-8")


def test_a_bug_is_called_a_bug_and_its_traceback_is_kept(task, capsys):
    def body(cfg):
        Run.start(cfg, "train")
        raise ZeroDivisionError("no reason")

    task(body)
    assert main([]) == 1
    shown = capsys.readouterr().err
    [folder] = run_folders()
    log = (folder / "log.txt").read_text(encoding="utf-8")
    assert "bug" in shown and "Traceback" not in shown and "log.txt" in shown.replace("\n", "")
    assert "Traceback" in log and "no reason" in log
    assert state(folder)["status"] == "failed"


def test_the_traceback_is_shown_on_demand(task, capsys, monkeypatch):
    monkeypatch.setenv("CDIFF_DEBUG", "1")
    task(lambda cfg: 1 / 0)
    assert main([]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupted_run_says_so(task, capsys):
    def body(cfg):
        Run.start(cfg, "train")
        raise KeyboardInterrupt

    task(body)
    assert main([]) == 130
    [folder] = run_folders()
    assert state(folder)["status"] == "interrupted"
    assert "Stopped before the end" in capsys.readouterr().err


def test_a_terminated_process_is_interrupted_too(task):
    def body(cfg):
        Run.start(cfg, "train")
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    task(body)
    before = signal.getsignal(signal.SIGTERM)
    assert main([]) == 130
    assert state(run_folders()[0])["status"] == "interrupted"
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_folder_that_cannot_be_written(task, capsys):
    task(started)
    Path("blocked").write_text("a file stands where the folder should be", encoding="utf-8")
    assert main(["output=blocked/run"]) == 2
    assert "Can't write the run's folder blocked/run" in capsys.readouterr().err.replace("\n", " ")


def test_sampling_takes_model_method_and_concepts_from_the_run(task):
    task(started)
    assert main(["concept=cat", "method=custom_diffusion", "model=sd15", "model.path=here"]) == 0
    [trained] = run_folders()
    seen = task(started, "sample")
    assert main(["task=sample", "model.resolution=256"]) == 0
    assert main(["task=sample", f"run={trained}", "model=pocket"]) == 0
    first, second = seen
    assert first.run == second.run == str(trained)
    assert list(first.concepts) == ["cat"] and first.method.name == "custom_diffusion"
    assert (first.model.path, first.model.resolution) == ("here", 256)
    assert second.model.path == "pocket"
    assert all("outputs/sample/cat/custom_diffusion" in cfg.output for cfg in seen)


def test_the_base_model_alone_needs_no_run(task):
    seen = task(started, "sample")
    assert main(["task=sample", "run=base", "concept=dog", "prompt='a dog'"]) == 0
    assert seen[0].run == "base" and list(seen[0].concepts) == ["dog"]


def test_the_latest_run_of_a_concept(task, capsys):
    task(started)
    assert main(["concept=cat"]) == 0 and main(["concept=dog"]) == 0
    seen = task(started, "sample")
    assert main(["task=sample", "concept=cat"]) == 0
    assert list(seen[0].concepts) == ["cat"]
    assert main(["task=sample", "concept=teapot"]) == 2
    assert (
        "There is no finished train run of teapot under outputs/; there are runs of cat, dog" in capsys.readouterr().err
    )


def test_a_sweep_makes_a_folder_for_each_job_named_by_what_is_swept(task, capsys):
    seen = task(started)
    assert main(["-m", "concept=dog", "loss.spl_weight=0,1", "train.steps=5", "name=weights"]) == 0
    assert [cfg.loss.spl_weight for cfg in seen] == [0.0, 1.0]
    assert [f.as_posix() for f in run_folders()] == [
        "outputs/sweeps/weights/0-loss.spl_weight=0",
        "outputs/sweeps/weights/1-loss.spl_weight=1",
    ]
    assert {state(folder)["status"] for folder in run_folders()} == {"done"}
    assert "Job 1: loss.spl_weight=1" in capsys.readouterr().out


def test_a_sweep_over_prompts_makes_folder_names_of_plain_signs(task):
    task(started)
    assert main(["-m", "prompt='a <new1> dog','b/c'", "name=p"]) == 0
    assert sorted(p.name for p in Path("outputs/sweeps/p").iterdir() if p.is_dir()) == [
        "0-prompt=a_new1_dog",
        "1-prompt=b_c",
    ]


def test_a_sweep_goes_on_after_a_failed_job_and_tells_its_sentence(task, capsys):
    def body(cfg):
        Run.start(cfg, "train")
        if cfg.train.steps == 2:
            raise UserError("Two steps are too few.")
        return {}

    seen = task(body)
    assert main(["-m", "train.steps=1,2,3", "name=s"]) == 1
    assert len(seen) == 3
    assert [state(folder)["status"] for folder in run_folders()] == ["done", "failed", "done"]
    shown = capsys.readouterr().err
    assert "Two steps are too few." in shown and "Traceback" not in shown


def test_a_mistake_that_all_jobs_share_stops_the_sweep_before_it_starts(task, capsys):
    seen = task(started)
    assert main(["-m", "train.steps=1,2", "train.batch_size=0"]) == 2
    assert main(["-m", "train.stpes=1,2"]) == 2
    assert not seen and not Path("outputs").exists()


def test_a_dry_sweep_creates_nothing(task, capsys):
    seen = task(started)
    assert main(["-m", "train.steps=1,2", "dry_run=true", "name=s"]) == 0
    shown = capsys.readouterr().out
    assert "outputs/sweeps/s/0-train.steps=1/" in shown and "outputs/sweeps/s/1-train.steps=2/" in shown
    assert not seen and not list(Path().iterdir())


def test_hydras_own_flags_still_work(capsys):
    assert main(["--cfg", "job", "train.steps=3"]) == 0
    assert "steps: 3" in capsys.readouterr().out


def test_a_true_process_reports_its_exit_code():
    command = [sys.executable, "-m", "cdiff", "train.step=3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    assert done.returncode == 2
    assert done.stderr.strip() == "Error: There is no setting 'train.step'; did you mean 'train.steps'?"


MOVED = """
import sys
from cdiff import __main__, cli

def products(words):
    assert "torch" not in sys.modules, "too late: torch has read the environment"
    import torch
    row, matrix = torch.randn(1, 32), torch.randn(64, 32)
    wanted = row @ matrix.T
    for offset in range(16):
        moved = torch.empty(64 * 32 + 16)[offset : offset + 64 * 32].view(64, 32)
        if not torch.equal(row @ moved.copy_(matrix).T, wanted):
            return 3
    return 0

cli.main = products
__main__.entry()
"""


def test_the_bits_of_a_product_do_not_depend_on_where_in_memory_it_lies():
    environment = {name: value for name, value in os.environ.items() if name not in ENVIRONMENT}
    done = subprocess.run([sys.executable, "-c", MOVED], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_what_the_user_set_for_the_libraries_stands(monkeypatch):
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    set_environment()
    assert os.environ["MKL_CBWR"] == "COMPATIBLE"


def test_bash_completes_tasks_groups_and_settings(tmp_path):
    """Hydra's completion, through the installed command."""
    script = tmp_path / "complete.sh"
    script.write_text(
        """
        eval "$(cdiff -sc install=bash)"
        for line in "cdiff task=ex" "cdiff model=sdx" "cdiff train.st"; do
            COMP_LINE="$line"; COMP_POINT=${#line}; COMP_WORDS=($line); COMP_CWORD=1; COMPREPLY=()
            hydra_bash_completion cdiff
            echo "${COMPREPLY[@]}"
        done
        """
    )
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", script], capture_output=True, text=True, env={**os.environ, "PATH": path}, timeout=60
    )
    assert done.stdout.split() == ["task=export", "model=sdxl", "train.steps="], done.stderr
