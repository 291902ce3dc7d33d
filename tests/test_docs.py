"""Every command and every Python block of README.md and docs/ runs, with settings that make it quick.

A command runs in this process, as written but for its paths (which get stand-ins) and for settings put behind it: the
tiny Stable Diffusion 1.5 as the base of whatever model is named, one step, one image.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from pathlib import Path

import pytest
from fake_scorer import FakeScorer
from hub_stand_in import stand_in
from tiny_job import draw_pictures

from cdiff.cli import main

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"python -m cdiff (?P<words>[^`\n]+)")
ONE_PROMPT = ["protocol.prompts=['a {}']", "protocol.live=[]", "protocol.object=[]", "protocol.images_per_prompt=1"]
DRAW = ["sampler.steps=1", "images_per_prompt=1"]
QUICK = {  # task -> settings that make it quick
    "train": [*DRAW, *ONE_PROMPT, "train.steps=1", "train.then=[]", "augment.views=2", "prior.count=2"],
    "sample": DRAW,
    "video": [*DRAW, "video.frames=3", "video.mp4=false", "evaluate.resamples=100"],
    "evaluate": ["sampler.steps=1", *ONE_PROMPT, "evaluate.resamples=100", "logger=none"],
}
TINY = ["model.resolution=64", "device=cpu"]
# Studies, reports, resuming and pretraining need what these pages do not make; they have tests of their own.
ELSEWHERE = ("task=report", "task=pretrain", "resume=", "experiment=", "hydra/", chr(92))


def commands() -> list[tuple[str, str]]:
    """(page, words behind `python -m cdiff`) of every command, each once, in the order of the pages."""
    found: dict[str, str] = {}
    for page in PAGES:
        for line in page.read_text(encoding="utf-8").splitlines():
            for match in COMMAND.finditer(line):
                words = re.split(r"\s+#|`", match["words"])[0].strip()
                if not any(word in words for word in ("STAGE", *ELSEWHERE)):
                    found.setdefault(words, page.name)
    return [(page, words) for words, page in found.items()]


def task_of(words: list[str]) -> str:
    return next((word.removeprefix("task=") for word in words if word.startswith("task=")), "train")


@pytest.fixture(scope="module")
def home(sd15_folder, motion_folder, tmp_path_factory) -> Path:
    """A folder with what the pages name: pictures, a concept file, finished runs, a folder of images."""
    folder = tmp_path_factory.mktemp("docs")
    pictures = draw_pictures(folder / "photos" / "rex", 2)
    (folder / "models").mkdir()
    (folder / "models" / "sd15").symlink_to(sd15_folder)
    (folder / "models" / "motion").symlink_to(motion_folder)
    concept = f"# @package concepts.rex\nclass_word: dog\nimages: {pictures}\n"
    (folder / "concepts" / "concept").mkdir(parents=True)
    (folder / "concepts" / "concept" / "rex.yaml").write_text(concept)
    before = Path.cwd()
    os.chdir(folder)
    try:
        for name, place in (("dog", "A"), ("teapot", "B")):
            job = [f"concept={name}", f"model.path={sd15_folder}", *TINY, *QUICK["train"], "logger=none"]
            job.remove("train.then=[]")
            assert main([*job, "train.then=[sample]", f"output=outputs/train/{name}/class_diffusion/{place}"]) == 0
        shutil.copytree("outputs/train/dog/class_diffusion/A", "outputs/train/dog/class_diffusion/C")
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def place(home, tmp_path, monkeypatch, sd15_folder):
    """A copy of that folder to stand in; the metric models and the hub are stand-ins."""
    from checkpoints import write_checkpoint

    from cdiff.evaluation import evaluating

    copy = shutil.copytree(home, tmp_path / "home", symlinks=True)
    write_checkpoint(sd15_folder, copy / "models" / "checkpoint.safetensors")
    monkeypatch.chdir(copy)
    monkeypatch.setenv("HOME", str(copy))
    monkeypatch.setenv("CDIFF_CACHE", str(home / "cache"))
    monkeypatch.setattr(evaluating, "open_metrics", lambda *_: [FakeScorer()])
    return copy


def quick(words: list[str], base: Path) -> list[str]:
    """The words with stand-ins for paths, and quick settings behind them."""
    task = task_of(words)
    names = ("dog/class_diffusion/A", "teapot/class_diffusion/B", "dog/class_diffusion/C")
    run_a, run_b, run_c = (f"outputs/train/{name}" for name in names)
    replaced = {
        "RUN_OF_THE_DOG": run_a,
        "RUN_OF_THE_TEAPOT": run_b,
        "RUN_A": run_a,
        "RUN_B": run_c,
        "outputs/sweeps/NAME": "outputs/train",
        "images=DIR references=DIR": f"images={run_a} references=photos/rex",
    }
    text = "\0".join(words)
    for name, value in replaced.items():
        text = text.replace(name.replace(" ", "\0"), value.replace(" ", "\0"))
    words = text.split("\0")
    if any(word in ("--help", "--version", "dry_run=true", "-sc") for word in words):
        return words
    extra = list(QUICK.get(task, []))
    if task == "train" or "run=base" in words:
        own = [] if any(word.startswith("model.path=") for word in words) else [f"model.path={base}"]
        extra += [*TINY, *own]
    if task == "train":
        extra.append("logger=none")
    if task == "video":
        extra.append("video.motion_adapter=models/motion")
    if any("prior=" in word for word in words) is False:
        extra = [word for word in extra if not word.startswith("prior.")]
    given = {word.split("=")[0] for word in words}
    overridden = {"train.steps", "prior.count"}  # what a page sets for a real run
    words = [word for word in words if word.split("=")[0] not in overridden]
    return words + [word for word in extra if word.split("=")[0] not in given - overridden]


@pytest.mark.parametrize(("page", "line"), commands(), ids=lambda value: value[:60])
def test_every_command_runs(page, line, place, sd15_folder, monkeypatch, tmp_path, capsys):
    words = quick(shlex.split(line), sd15_folder)
    if "push=true" in words:
        with stand_in(monkeypatch, tmp_path / "hub") as hub:
            assert main(words) == 0
        assert "README.md" in hub.repos["me/rex"]["main"]
        return
    if "concept=[dog,teapot]" in words and "task=sample" in words:  # docs/merge.md: after the merge of the line before
        merged = "runs=[outputs/train/dog/class_diffusion/A,outputs/train/teapot/class_diffusion/B]"
        assert main(["task=merge", merged, "merge.rename=true"]) == 0
    if task_of(words) == "merge" and "merge.rename=true" not in words:  # there the second run was trained as <new2>
        words.append("merge.rename=true")
    if "name=rex" in words:
        shutil.rmtree("concepts")
    assert main(words) == 0, capsys.readouterr().err


def test_there_are_commands_of_every_task_in_the_pages():
    tasks = {task_of(shlex.split(line)) for _, line in commands()}
    assert tasks >= {"train", "sample", "video", "evaluate", "merge", "export", "concept", "doctor"}
    assert len(commands()) >= 30


def blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.+?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def test_the_python_of_the_pages_runs(home, monkeypatch, tmp_path):
    """docs/python.md in its order, with the shipped base and metrics: one step of training and of drawing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CDIFF_CACHE", str(home / "cache"))
    job = ["concept=dog", "train.steps=1", "augment.views=2", "train.then=[]", "logger=none", "device=cpu"]
    assert main(job) == 0
    found = blocks(ROOT / "docs" / "python.md")
    assert len(found) == 2
    for code in found:
        exec(re.sub(r"steps=25", "steps=2", code), {})
    assert Path("beach.png").is_file()


def test_links_of_the_pages_lead_somewhere():
    broken = []
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if not target.startswith("http") and not (page.parent / target).exists():
                broken.append(f"{page.name}: {target}")
    assert not broken, broken
