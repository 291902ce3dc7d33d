"""The recorded studies, truly run: on a tiny stand-in of Stable Diffusion 1.5's layout, few steps, then reported."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_scorer import FakeScorer
from PIL import Image
from tiny_job import draw_pictures, plain_environment

import cdiff
from cdiff.cli import main
from cdiff.evaluation import evaluating
from cdiff.grids import grid
from cdiff.sweep_folder import job_runs

EXPERIMENTS = Path(__file__).parents[1] / "experiments"


@pytest.fixture(autouse=True)
def scorer(monkeypatch):
    monkeypatch.setattr(evaluating, "open_metrics", lambda *_: [FakeScorer()])


def script(name: str):
    """A script of experiments/ as a module."""
    spec = importlib.util.spec_from_file_location(Path(name).stem, EXPERIMENTS / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stand_in(model: Path, pictures: Path) -> list[str]:
    """The base and the concepts' pictures by small ones, and less of everything; nothing else of the study changes."""
    few = ["train.steps=1", "sampler.steps=2", "protocol.images_per_prompt=1", "protocol.prompts=['a {} in the snow']"]
    few += ["protocol.live=[]", "protocol.object=[]", "logger=none", "evaluate.resamples=100"]
    return [f"model.path={model}", "model.resolution=64", "device=cpu", f"concept.images={pictures}", *few]


def test_the_paper_end_to_end_and_its_table_beside_the_published_figures(sd15_folder, tmp_path):
    small = stand_in(sd15_folder, draw_pictures(tmp_path / "pictures"))
    chosen = ["concept=vase", "method=class_diffusion,lora"]
    assert main(["-m", "experiment=paper", "name=paper", *chosen, *small]) == 0
    runs = job_runs(Path("outputs/sweeps/paper"))[0]
    assert [(run.info["method"], run.info["concepts"]) for run in runs] == [
        ("class_diffusion", ["vase"]),
        ("lora", ["vase"]),
    ]
    config = runs[1].config()
    assert (
        config.protocol.name == "paper" and config.sampler.eta == 1.0 and config.concepts["vase"].class_word == "vase"
    )
    assert main(["task=report", "run=outputs/sweeps/paper", "output=out"]) == 0
    page = Path("out/report.html").read_text(encoding="utf-8")
    published = page.split("published (not measured here)")[1]
    assert "ClassDiffusion" in published and "0.300" in published
    assert "ClassDiffusion" not in page.split('id="settings"')[1].split("published (not measured here)")[0]


def test_the_sweep_of_the_weight_ends_in_a_report(sd15_folder, tmp_path, monkeypatch):
    small = [*stand_in(sd15_folder, draw_pictures(tmp_path / "pictures")), "model=sd15", "validation.every=1"]
    command = ["-m", "experiment=spl_sweep", "concept=dog", "loss.spl_weight=0,10", "name=spl", "validation.steps=2"]
    assert main([*command, *small]) == 0
    runs = job_runs(Path("outputs/sweeps/spl"))[0]
    assert len(runs) == 2 and (runs[0].folder / "probes" / "attention-dog.png").is_file()
    assert main(["task=report", "run=outputs/sweeps/spl", "output=out"]) == 0
    page = Path("out/report.html").read_text(encoding="utf-8")
    assert "dog: “a photo of a &lt;new1&gt; dog”, seed 42" in page and "step 0</th>" in page and "step 1</th>" in page
    words = ["grid.py", "outputs/sweeps/spl", "grid.png", "--word", "photo", "--steps", "0", "1"]
    monkeypatch.setattr(sys, "argv", words)
    script("weight_step/grid.py").main()
    cell = script("weight_step/grid.py").cell
    photo = [[cell(run.folder / "validation" / f"step-{step:06d}", "photo") for step in (0, 1)] for run in runs]
    with Image.open("grid.png") as made:  # a row a weight, a column a step, each cell the very picture
        images = [Image.open(file).convert("RGB") for row in photo for file in row]
        labels = ["loss.spl_weight=0, after 0, 1 steps", "loss.spl_weight=10, after 0, 1 steps"]
        assert np.array_equal(np.asarray(made), np.asarray(grid(images, 2, labels)))
    assert photo[1][1].parts[-3:-1] == ("validation", "step-000001") and "photo" in photo[1][1].name


def test_where_the_forgetting_sits_is_asked_of_weights_and_words_apart(sd15_folder, tmp_path, monkeypatch):
    small = [*stand_in(sd15_folder, draw_pictures(tmp_path / "pictures")), "concept=dog", "train.then=[]"]
    assert main(["task=train", "model=sd15", *small, "optimizer.learning_rate=0.1", "output=runs/one"]) == 0
    where, asked = script("claim/where.py"), []

    def judged(opened, prompts, images_per_prompt):
        key = next(value for name, value in opened.base.unet.named_parameters() if name.endswith("attn2.to_k.weight"))
        asked.append((key.detach().clone(), prompts, images_per_prompt))
        return {"attr_class": len(asked) / 4}

    monkeypatch.setattr(where, "judged", judged)
    monkeypatch.setattr(sys, "argv", ["where.py", "runs/one", "runs/nothing", "--images", "2", "--out", "results"])
    where.main()
    (base, bare, _), (base_again, worded, _), (tuned, bare_again, _), (tuned_again, worded_again, number) = asked
    assert torch.equal(base, base_again) and torch.equal(tuned, tuned_again) and not torch.equal(base, tuned)
    assert bare == bare_again and worded == worded_again and number == 2
    assert "a photo of a dog" in bare and "a photo of a <new1> dog" in worded and len(bare) == len(worded) == 25
    table = Path("results/where.csv").read_text(encoding="utf-8").splitlines()
    assert table[0] == "run,keys and values,prompt,attr_class" and table[4] == "one,run,new word,1.0"


def test_ways_of_drawing_a_clip(monkeypatch, capsys):
    """Each way is drawn as it says and judged by what the model card is."""
    steady, drawn = script("video/steady.py"), []

    def score(folder, device, draw, count):
        [frames] = draw(["a dog running on the beach"])
        drawn.append(np.stack([np.asarray(frame) for frame in frames]))
        keys = ("as_asked", "all_stay", "class_stays", "color_stays", "scene_stays", "right")
        moving = {f"moving_{key}": 10.0 * len(drawn) + count for key in keys}
        return moving | {"still_as_asked": 0.0, "still_all_stay": 0.0}

    monkeypatch.setattr(steady, "score_motion", score)
    ways = {name: (guidance, 1, told) for name, (guidance, _, told) in steady.WAYS.items()}
    monkeypatch.setattr(steady, "WAYS", ways)
    line = ["steady.py", "--device", "cpu", "--clips", "3", "--ways", "plain", "guidance_3", "free_init_2"]
    monkeypatch.setattr(sys, "argv", line)
    steady.main()
    plain, guided, refined = drawn
    assert plain.shape[0] == 16
    assert not np.array_equal(plain, guided) and not np.array_equal(plain, refined)
    rows = [row for row in capsys.readouterr().out.splitlines() if row.startswith(("| plain", "| free"))]
    assert rows[0].startswith("| plain | 13 | 13 |") and rows[1].startswith("| free_init_2 | 33 |")


def test_an_experiment_runs_alone_once_its_values_are_chosen(capsys):
    values = ["concept=dog", "loss.spl_weight=0.1"]
    assert main(["experiment=spl_sweep", *values, "dry_run=true"]) == 0
    assert "SPL weight 0.1" in capsys.readouterr().out
    assert main(["experiment=spl_sweep", values[0], "dry_run=true"]) == 2
    assert "is a sweep (loss.spl_weight=" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arm", "expected"),
    [("plain", (0.0, "none", 0.0)), ("spl_1", (1.0, "none", 0.0)), ("prior", (0.0, "generated", 0.0)),
     ("adjust", (0.0, "none", 0.5))],
)  # fmt: skip
def test_the_arms_of_the_claim(arm, expected):
    from cdiff.compose import compose, to_checked_config

    values = [f"arm={arm}", "train.steps=1000", "concept=rabbit", "seed=1"]
    config = to_checked_config(compose(["experiment=claim", *values]))
    assert (config.loss.spl_weight, config.prior.name, config.sampler.token_adjust.alpha) == expected
    assert config.train.steps == 1000 and config.protocol.name == "pocket"


def test_a_recipe_is_chosen_by_likeness_and_composition_together():
    import pandas as pd

    choose = script("recipes/choose.py")
    scores = {  # learning rate: likeness on two concepts, composition
        1e-4: ((0.1, 0.1), 1.0),
        3e-4: ((0.9, 0.5), 0.8),
        1e-3: ((1.0, 1.0), 0.2),
    }
    jobs = pd.DataFrame(
        {
            "method": "lora",
            "learning_rate": rate,
            "steps": 150,
            "shrink": 0.0,
            "concept": concept,
            "seconds": 1.0,
            "recognized": like,
        }
        | {"dino_i": 0.2, "clip_t": 0.3, "attr_scene": kept, "attr_accessory": kept, "attr_color": kept}
        for rate, (likes, kept) in scores.items()
        for concept, like in zip(("dog", "teapot"), likes)
    )
    ranked = choose.rank(jobs)
    assert ranked["learning_rate"].tolist() == [3e-4, 1e-3, 1e-4] and set(ranked["concepts"]) == {2}
    assert ranked["worth"][0] == pytest.approx((0.7 * 0.8) ** 0.5)


def test_the_methods_side_by_side(sd15_folder, tmp_path, monkeypatch, capsys):
    """Two jobs truly run, then the table of more: means, and the spread over seeds alone."""
    import pandas as pd

    table = script("methods/table.py")
    small = stand_in(sd15_folder, draw_pictures(tmp_path / "pictures"))
    words = ["experiment=methods", "method=custom_diffusion", "concept=vase", "seed=1,2", "name=methods_custom"]
    assert main(["-m", *words, *small, "train.then=[evaluate]"]) == 0
    monkeypatch.setattr(sys, "argv", ["table.py", "outputs/sweeps", "--out", "results"])
    assert table.main() == 0 and "custom_diffusion" in capsys.readouterr().out
    assert len(Path("results/jobs.csv").read_text(encoding="utf-8").splitlines()) == 3
    with Image.open("results/grid.jpg") as picture:
        assert picture.width > 50  # one prompt of the four it looks for, of one seed
    scores = {("dog", 1): 0.2, ("cat", 1): 0.4, ("dog", 2): 0.4, ("cat", 2): 0.6}
    rows = [
        {"method": "lora", "concept": concept, "seed": seed, **dict.fromkeys(table.METRICS, value)}
        for (concept, seed), value in scores.items()
    ]
    compared = table.compare(pd.DataFrame(rows), ["method"])
    assert compared["recognized"].tolist() == ["0.400 ± 0.141"] and compared["runs"].tolist() == [4]
    monkeypatch.setattr(sys, "argv", ["table.py", str(tmp_path), "--out", "results"])
    assert table.main() == 2 and "holds no finished job" in capsys.readouterr().err


NOTED = """#!/bin/sh
echo "$@" >>"$NOTES"
case "$*" in
*stage=pictures*) mkdir -p "$FOLDER/pictures" && echo {} >"$FOLDER/pictures/pictures.json" ;;
*stage=clips*) mkdir -p "$FOLDER/clips" && echo {} >"$FOLDER/clips/clips.json" ;;
esac
"""


def test_a_second_pass_goes_on_from_a_base_as_it_ships(tmp_path):
    """What the script starts, by a python3 that only takes notes."""
    python, folder, notes = tmp_path / "bin" / "python3", tmp_path / "made", tmp_path / "notes"
    python.parent.mkdir()
    python.write_text(NOTED)
    python.chmod(0o755)
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "NOTES": str(notes), "FOLDER": str(folder)}
    line = ["bash", str(EXPERIMENTS / "pocket" / "second_pass.sh"), str(folder), "60", "pretrain.pictures=8"]
    folder.mkdir()
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2 and "holds no unet to go on from" in done.stderr and not notes.exists()
    (folder / "weights").symlink_to(Path(cdiff.__file__).parent / "pocket" / "weights")
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 and "failed" not in done.stdout, done.stdout + done.stderr
    started = {noted.split("pretrain.stage=")[1].split()[0]: noted for noted in notes.read_text().splitlines()}
    assert sorted(started) == ["blip", "clips", "identity", "motion", "pictures", "scores", "unet"]
    assert "pretrain.settings.unet.warm_start=true" in started["unet"]
    for noted in started.values():
        assert f"pretrain.folder={folder}" in noted and "pretrain.pictures=8" in noted
        assert "pretrain.settings.pictures.pair=0.3" in noted
    notes.unlink()
    subprocess.run(line, env=environment | {"STAGES": "motion"}, capture_output=True, timeout=60, check=True)
    assert sorted(noted.split("pretrain.stage=")[1].split()[0] for noted in notes.read_text().splitlines()) == [
        "clips", "motion", "pictures", "scores", "unet",
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "jobs"), [("recipes/search.sh", 10), ("methods/run.sh", 15), ("claim/run.sh", 36)])
def test_a_study_starts_a_process_for_each_of_its_parts(tmp_path, name, jobs):
    python, notes = tmp_path / "bin" / "python3", tmp_path / "notes"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\ncase "$1" in -c) exec "$REAL" "$@" ;; esac\necho "$@" >>"$NOTES"\n')
    python.chmod(0o755)
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "NOTES": str(notes), "REAL": sys.executable}
    line = ["bash", str(EXPERIMENTS / name), "device=cpu"]
    done = subprocess.run(line, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 and not done.stdout, done.stdout + done.stderr
    started = [noted for noted in notes.read_text().splitlines() if "analyse.py" not in noted]
    names = {word for noted in started for word in noted.split() if word.startswith("name=")}
    assert len(started) == len(names) == jobs
    assert all(noted.startswith("-m cdiff -m ") and noted.endswith("device=cpu") for noted in started)
    rates = {noted.split("optimizer.learning_rate=")[1].split()[0] for noted in started if "learning_rate=" in noted}
    assert not rates or "1.50e-04,3.00e-04,6.00e-04" in rates
    ours = [noted for noted in started if "method=class_diffusion " in noted]  # as the others start
    assert len(ours) == jobs // 5 * (name != "claim/run.sh")
    assert all("method.initializer=class_word" in noted for noted in ours)
    assert sum("method.initializer=" in noted for noted in started) == len(ours)


def test_the_speed_script_measures_what_it_names(tmp_path, monkeypatch):
    """Tiny, on a CPU: the arms that a table of speed needs, their derived columns, and a budget that is kept."""
    named = ["cdiff", "release fp32"]
    command = [str(EXPERIMENTS / "speed" / "speed.py"), "--tiny", "--device", "cpu", "--out", str(tmp_path)]
    command += ["--work", str(tmp_path / "work")]  # the second finds the model of the first
    line = [sys.executable, *command, "--minutes", "5", "--arms", *named]
    done = subprocess.run(line, env=plain_environment(), capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "speed.json").read_text())
    arms = found["arms"]
    assert list(arms) == named and found["tflop_step"] > found["tflop_forward"] > 0
    ratio = arms["release fp32"]["ms_per_step"] / arms["cdiff"]["ms_per_step"]
    assert abs(arms["cdiff"]["times release fp32"] - ratio) < 0.01
    assert arms["cdiff"]["losses"] and "| release fp32 |" in (tmp_path / "speed.md").read_text()
    monkeypatch.setattr(sys, "argv", [*command, "--minutes", "0.1", "--arms", "cdiff"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert script("speed/speed.py").main() == 0
    assert json.loads((tmp_path / "speed.json").read_text())["arms"]["cdiff"] == {"left_out": "no time was left"}


def claim_runs(**arms):
    """Runs of two concepts and two seeds; arms: name -> {steps: (likeness, composition)}."""
    import pandas as pd

    return pd.DataFrame(
        {"arm": arm, "steps": steps, "concept": concept, "seed": seed, "dino_i": like, "composition": kept + seed / 100}
        for arm, points in arms.items()
        for steps, (like, kept) in points.items()
        for concept in ("dog", "teapot")
        for seed in (1, 2)
    )


def test_the_claim_is_judged_at_equal_likeness():
    analyse = script("claim/analyse.py")
    runs = claim_runs(
        plain={300: (0.2, 1.0), 1000: (0.3, 0.8), 3000: (0.5, 0.5)},
        spl_1={300: (0.1, 1.0), 1000: (0.2, 0.9), 3000: (0.4, 0.7)},
    )
    found = analyse.matched(runs, resamples=200)
    at_plain, at_its = found[:3].set_index("plain's steps"), found[3:].set_index("its steps")
    assert at_plain.loc[300, "points"] == pytest.approx(-10) and at_plain.loc[300, "its steps"] == 1000
    assert at_plain.loc[1000, "points"] == pytest.approx(0)
    assert at_plain.loc[1000, "its steps"] == 2000  # half of the way
    assert at_plain.loc[1000, "low"] == pytest.approx(at_plain.loc[1000, "high"]) and at_plain.loc[1000, "pairs"] == 4
    assert "it is never as like: 0.100 to 0.400" in found.note[2] and not found.points[2] > 0
    assert "plain is never as like: 0.200 to 0.500" in at_its.loc[300, "note"]
    assert at_its.loc[3000, "points"] == pytest.approx(5) and at_its.loc[3000, "plain's steps"] == 2000
    assert set(found.arm) == {"spl_1"}
    runs.loc[(runs.arm == "plain") & (runs.steps == 3000), "dino_i"] = 0.25  # likeness that falls again
    control = analyse.matched(runs, resamples=200).set_index("arm").loc["plain, stopped earlier"]
    assert control["its steps"] == 650 and control["points"] == pytest.approx(40)
    same = analyse.at_equal_steps(runs, resamples=200).set_index("steps")
    assert same.loc[1000, "points"] == pytest.approx(10) and same.loc[1000, "likeness"] == pytest.approx(-0.1)


class Probe(FakeScorer):
    """The stand-in's numbers under the names that the claim is about."""

    metrics = ("attr_scene", "dino_i")

    def score_prepared(self, prepared, prompts, references):
        return dict(zip(self.metrics, super().score_prepared(prepared, prompts, references).values(), strict=True))


def test_the_claim_is_read_from_the_sweep(sd15_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluating, "open_metrics", lambda *_: [Probe()])
    analyse = script("claim/analyse.py")
    small = [*stand_in(sd15_folder, draw_pictures(tmp_path / "pictures")), "model=sd15", "concept=dog", "seed=1"]
    small += ["evaluate.objective=dino_i"]
    assert main(["-m", "experiment=claim", "name=claim", "arm=plain,spl_10", "train.steps=1", *small]) == 0
    runs = analyse.runs_of(analyse.read_images([Path("outputs/sweeps/claim")]))
    assert list(runs.arm) == ["plain", "spl 10"] and list(runs.steps) == [1, 1] and list(runs.concept) == ["dog"] * 2
    scored = json.loads(next(Path("outputs/sweeps/claim").glob("0*/evaluation/*/metrics.json")).read_text())["overall"]
    assert runs.composition[0] == pytest.approx(scored["attr_scene"]["mean"], abs=1e-6)
    assert runs.dino_i[0] == pytest.approx(scored["dino_i"]["mean"], abs=1e-6)
    monkeypatch.setattr(sys, "argv", ["analyse.py", "outputs/sweeps/claim", "--out", "results"])
    assert analyse.main() == 0
    assert "at equal steps" in Path("results/claim.md").read_text(encoding="utf-8")
    assert len(Path("results/runs.csv").read_text(encoding="utf-8").splitlines()) == 3
    assert Path("results/claim.png").stat().st_size and "before" in Path("results/drift.csv").read_text()
    monkeypatch.setattr(sys, "argv", ["analyse.py", "results/rows.parquet", "--out", "again"])
    assert analyse.main() == 0
    assert Path("again/runs.csv").read_text() == Path("results/runs.csv").read_text()
    folders = [str(run.folder) for run in job_runs(Path("outputs/sweeps/claim"))[0]]
    monkeypatch.setattr(sys, "argv", ["picture.py", "sheet.png", *folders, "--words", "snow"])
    picture = script("claim/picture.py")
    picture.main()
    files = [file for folder in folders for file in picture.row(Path(folder), ["snow"])]
    assert picture.row(Path(folders[0]), ["jungle"]) == []
    images, labels = [Image.open(file).convert("RGB") for file in files], ["arm=plain: snow", "arm=spl_10: snow"]
    with Image.open("sheet.png") as made:
        assert len(files) == 2 and np.array_equal(np.asarray(made), np.asarray(grid(images, 1, labels)))
    monkeypatch.setattr(sys, "argv", ["analyse.py", "nothing", "--out", "results"])
    assert analyse.main() == 2 and "no finished and scored run" in capsys.readouterr().err
