"""A corpus of bad inputs: each gets exit code 2, one sentence that names the culprit, no traceback, nothing done."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from bad_files import ADAPTERS, IMAGES, LAUGHS, picture, zipped
from tiny_world import assert_same_bits

from cdiff.cli import main


@pytest.fixture(autouse=True)
def nothing_done(working_directory):
    """No run in the working folder claims to be done, no code of a file ran, and what a token names stays inside."""
    yield
    for file in working_directory.rglob("run.json"):
        assert json.loads(file.read_text())["status"] in ("failed", "interrupted"), file
    assert not (working_directory / "ran").exists(), "code of a file ran"
    assert not list(working_directory.parent.glob("x*.safetensors"))


# ---- words of the command line ----

WORDS = {
    "nul": (['output="a\0b"'], "output holds a NUL character"),
    "token=../../x": (["concept.token=../../x"], r"\.\./\.\./x"),
    "token=<new1>/..": (["concept.token='<new1>/..'"], "<new1>/"),
    "a token that is a word": (["concept.token=photo"], "photo"),
    "a token with a colon": (["concept.token='a:b'"], "a:b"),
    "a concept's name that leaves": (["+concepts.'../../x'.class_word=dog"], r"x"),
    "a study's name that leaves": (["name=.."], "name may hold"),
    "a protocol's name that leaves": (["protocol.name=../../x"], "protocol.name"),
    "an evaluation's name that leaves": (["evaluate.name=../x"], "evaluate.name"),
    "a class word of signs": (["concept.class_word='<dog>'"], "<dog>"),
    "an empty class word": (["concept.class_word=''"], "class word"),
    "pictures that are no folder": (["concept.images=/dev/null"], "/dev/null"),
    "pictures nowhere": (["concept.images=nowhere/at/all"], "nowhere/at/all"),
    "a model nowhere": (["model.path=./nowhere"], r"model.path=\./nowhere"),
    "a model that is a file": (["model.path=/dev/null"], "/dev/null"),
    "steps below 1": (["train.steps=0"], "train.steps"),
    "a step count of 10^30": (["train.steps=many"], "train.steps"),
    "a rate that is no number": (["optimizer.learning_rate=nan"], "optimizer.learning_rate"),
    "an infinite weight": (["loss.spl_weight=inf"], "loss.spl_weight"),
    "a seed too large": (["seed=99999999999999999999"], "seed"),
    "checkpoints of none": (["checkpoints.keep=0"], "checkpoints.keep"),
    "checkpoints every -1": (["checkpoints.every=-1"], "checkpoints.every"),
    "skip -1": (["train.skip_not_finite=-1"], "train.skip_not_finite"),
    "templates nowhere": (["train.prompt_templates=nowhere.txt"], "nowhere.txt"),
    "templates of a folder": (["train.prompt_templates=/"], "/"),
    "an interpolation without end": (["prompt=${prompt}"], "interpolation"),
    "a resolver that does not exist": (["prompt='${eval:1+1}'"], "eval"),
    "resume of nothing": (["resume=latest"], "resume=latest: no training run"),
    "resume of a folder that is no run": (["resume=/"], "/ is not the folder of a run"),
    "resume in a sweep": (["-m", "seed=1,2", "resume=latest"], "resume= goes on with one run"),
    "resume of another task": (["task=sample", "resume=latest"], "task=train"),
    "resume.allow of no setting": (["resume=x", "resume.allow=[train.stpes]"], "x"),
}


@pytest.mark.parametrize("case", WORDS)
def test_words(case, job, refused):
    words, culprit = WORDS[case]
    refused(
        [*[word for word in job if word.partition("=")[0] not in {w.partition("=")[0] for w in words}], *words], culprit
    )


def test_code_by_a_class_of_hydras(job, refused):
    words = ["hydra.launcher._target_=subprocess.Popen", "+hydra.launcher.args=['touch','ran']"]
    refused(["-m", *job, "seed=1,2", *words], "hydra.launcher._target_=subprocess.Popen")
    words = ["hydra.launcher._target_=cdiff.runs.os.system", "+hydra.launcher.command='touch ran'"]
    refused(["-m", *job, "seed=1,2", *words], "hydra.launcher._target_=cdiff.runs.os.system")
    words = ["+hydra.callbacks.x._target_=os.system", "+hydra.callbacks.x.command='touch ran'"]
    refused(["-m", *job, "seed=1,2", *words], "os.system")


# ---- files of configuration ----

FILES = {
    "python objects": "!!python/object/apply:os.system ['touch ran']",
    "a python name": "class_word: !!python/name:os.system",
    "laughs": LAUGHS,
    "a loop": "a: &a [*a]",
    "too deep": "[" * 5000,
    "bytes": "\x00\x01\x02",
    "tabs": "a:\n\t- b",
    "two colons": "a: b: c",
    "a date that is none": "class_word: 2026-99-99",
    "a list": "- 1\n- 2",
    "an unknown key": "# @package concepts.rex\nclass_wrod: dog",
    "another type": "# @package concepts.rex\nclass_word: [1, 2]",
    "a name that leaves": "# @package concepts.'../../x'\nclass_word: dog",
}


@pytest.mark.parametrize("case", FILES)
def test_configuration_files(case, job, refused, tmp_path):
    (tmp_path / "concept").mkdir()
    (tmp_path / "concept" / "rex.yaml").write_text(FILES[case], encoding="utf-8")
    words = [word for word in job if not word.startswith("concept")]
    refused(["--config-dir", str(tmp_path), *words, "concept=rex"], r"rex\.yaml|class_wrod|class_word|concepts\.")


# ---- pictures ----


def alone(job, folder: Path) -> list[str]:
    return [*[word for word in job if not word.startswith("concept.images=")], f"concept.images={folder}"]


@pytest.mark.parametrize("name", IMAGES)
def test_pictures(name, job, refused, tmp_path):
    (tmp_path / name).write_bytes(IMAGES[name])
    refused(alone(job, tmp_path), name)


def test_pictures_that_are_links_archives_or_folders(job, refused, tmp_path):
    outside = tmp_path / "outside.png"
    outside.write_bytes(picture("PNG"))
    for name in ("links", "archives", "folders", "empty"):
        (tmp_path / name).mkdir()
    (tmp_path / "links" / "a.png").symlink_to(outside)
    (tmp_path / "links" / "b.png").symlink_to("/etc/passwd")
    refused(alone(job, tmp_path / "links"), r"a\.png is a link to .*outside\.png, outside of its folder")
    (tmp_path / "archives" / "photos.zip").write_bytes(zipped(**{"..__..__a.png": picture("PNG")}))
    refused(alone(job, tmp_path / "archives"), "archives holds no pictures")
    refused(alone(job, tmp_path / "archives" / "photos.zip"), r"photos\.zip, is a file")
    (tmp_path / "folders" / "a.png").mkdir()
    refused(alone(job, tmp_path / "folders"), "folders holds no pictures")
    refused(alone(job, tmp_path / "empty"), "empty is empty")


# ---- adapters and prompts ----


@pytest.fixture
def finished(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "runs" / "finished"))


def sampling(run: Path, *more: str) -> list[str]:
    return ["task=sample", f"run={run}", "sampler.steps=1", "images_per_prompt=1", "logger=none", "output=drawn", *more]


@pytest.mark.parametrize("case", ADAPTERS)
def test_adapters(case, finished, refused):
    change, culprit = ADAPTERS[case]
    change(finished / "adapter")
    refused(sampling(finished), culprit)


PROMPTS = {
    "empty": b"",
    "remarks alone": b"# nothing\n\n",
    "bytes": bytes(range(256)),
    "utf-16": "a photo of a dog".encode("utf-16"),
    "a token that was not trained": b"a <new9> dog",
}


@pytest.mark.parametrize("case", PROMPTS)
def test_prompt_files(case, finished, refused, tmp_path):
    (tmp_path / "prompts.txt").write_bytes(PROMPTS[case])
    refused(sampling(finished, f"prompt_file={tmp_path}/prompts.txt"), r"prompts\.txt|<new9>")


def test_prompt_files_that_are_none(finished, refused):
    refused(sampling(finished, "prompt_file=nowhere.txt"), r"nowhere\.txt")
    refused(sampling(finished, "prompt_file=/"), "prompt_file=/")


# ---- runs and their checkpoints ----


def resume(run: Path, *more: str) -> list[str]:
    return ["task=train", f"resume={run}", *more]


RUN_FILES = {
    "run.json": (
        "",
        "[]",
        '{"status": "failed", "resumed": 5}',
        '{"status": "failed", "concepts": [[]]}',
        '{"status": "interr',
        "[" * 100_000,
        "\x00",
    ),
    "config.yaml": ("", "[", "[]", "a: &a [*a]", "!!python/object/apply:os.system ['touch ran']", LAUGHS, "train: 5"),
}


@pytest.mark.parametrize("name", RUN_FILES)
def test_files_of_a_run(name, stopped, refused):
    for content in RUN_FILES[name]:
        (stopped / name).write_text(content)
        refused(resume(stopped), name.replace(".", r"\."))


def test_a_run_of_a_stranger_cannot_write_elsewhere(finished, refused):
    settings = (finished / "config.yaml").read_text()
    for old, new, culprit in (
        ("  folder:\n", "  ../../../x:\n", r"\.\./\.\./\.\./x"),
        ("name: class_diffusion", "name: ../../x", "method.name"),
    ):
        assert old in settings
        (finished / "config.yaml").write_text(settings.replace(old, new, 1))
        words = [word for word in sampling(finished) if not word.startswith("output=")]
        refused(words, culprit)


def test_what_cannot_go_on(finished, stopped, refused):
    refused(resume(finished), "is done: there is nothing to resume")
    refused(resume(stopped / "checkpoints" / "step-000099"), "step-000099: there is no such checkpoint")
    refused(resume(stopped, "train.steps=30", "seed=7"), r"seed was 42 and is 7.*resume.allow=\[")
    refused(resume(stopped, "method=textual_inversion"), "method.name was class_diffusion and is textual_inversion")
    refused(resume(stopped, "resume.allow=[seeed]"), "seeed")
    flipped = stopped / "checkpoints" / "step-000012" / "weights.safetensors"
    flipped.write_bytes(flipped.read_bytes()[:-1] + b"x")
    refused(resume(flipped.parent), r"weights\.safetensors is damaged")


def damage_kinds(file: Path) -> dict[str, bytes | None]:
    data = file.read_bytes()
    middle = len(data) // 2
    return {"gone": None, "empty": b"", "cut": data[:middle], "flipped": data[:middle] + b"\xff" + data[middle + 1 :]}


def test_each_file_of_a_stopped_run_in_turn(stopped_once, whole, tmp_path, capfd):
    """Whatever is damaged: the run goes on to the very same end, or is refused with a sentence. Never in between."""
    files = [file.relative_to(stopped_once) for file in sorted(stopped_once.rglob("*")) if file.is_file()]
    kinds = ("gone", "empty", "cut", "flipped")
    assert len(files) >= 14
    for number, name in enumerate(files):
        run = Path(shutil.copytree(stopped_once, tmp_path / str(number)))
        kind = kinds[number % len(kinds)]
        data = damage_kinds(run / name)[kind]
        (run / name).unlink() if data is None else (run / name).write_bytes(data)
        code = main(resume(run))
        said = capfd.readouterr()
        assert "Traceback" not in said.err and code in (0, 2), f"{name} {kind}: {said.err}"
        if code == 2:
            assert name.name in ("run.json", "config.yaml") and name.name in said.err, f"{name} {kind}: {said.err}"
        else:
            assert_same_bits(run, whole, logs=name.name != "events.jsonl")
            if name.parts[0] == "checkpoints" and "step-000012" in name.parts:
                assert "The checkpoint of step 12 is not used" in said.err.replace("\n", " ")
        shutil.rmtree(run)


def test_the_corpus_is_large_enough():
    assert sum(map(len, (WORDS, FILES, IMAGES, ADAPTERS, PROMPTS))) + sum(map(len, RUN_FILES.values())) >= 60
