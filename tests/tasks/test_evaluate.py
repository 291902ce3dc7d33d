"""task=evaluate from the command line to metrics.json, on the tiny Stable Diffusion 1.5; most with exact numbers."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from fake_scorer import FakeScorer, coloured
from PIL import Image
from tiny_job import draw_pictures, words

from cdiff.cli import main
from cdiff.evaluation import drawn, evaluating
from cdiff.evaluation.rows import read_rows


@pytest.fixture
def scorer(monkeypatch, tmp_path) -> FakeScorer:
    """The only scorer that there is."""
    fake = FakeScorer()
    monkeypatch.setattr(evaluating, "open_metrics", lambda *_: [fake])
    monkeypatch.setenv("CDIFF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    return fake


@pytest.fixture
def run_folder(trained, tmp_path) -> Path:
    """A copy of the trained run, so that evaluations of one test are not found by the next."""
    return Path(shutil.copytree(trained, tmp_path / "runs" / "a"))


@pytest.fixture
def job(sd15_folder) -> list[str]:
    own = ["task=evaluate", "protocol.prompts=['a photo of a {}','a {} on the beach']", "protocol.live=[]"]
    return [*words(sd15_folder), *own, "sampler.batch_size=1", "metrics.batch_size=2"]


def read_json(*parts) -> dict:
    return json.loads(Path(*parts).read_text(encoding="utf-8"))


def anybodys(folder: Path, count: int = 6) -> Path:
    index = {}
    for i in range(count):
        coloured(folder / "samples" / f"{i:04d}.png", (40 * i, 10, 99))
        index[f"{i:04d}"] = f"a <new1> {'dog' if i % 2 else 'cat'}"
    (folder / "prompts.json").write_text(json.dumps(index))
    return folder


def test_a_run_is_drawn_scored_and_averaged(job, run_folder, scorer, capsys):
    assert main([*job, f"run={run_folder}", "output=out"]) == 0
    target = run_folder / "evaluation" / "quick"
    found = read_json(target, "metrics.json")
    assert found["schema"] == "cdiff.metrics/1" and found["kind"] == "result" and found["method"] == "class_diffusion"
    rows = list(read_rows(target / "rows.csv"))
    assert len(rows) == 4 and {row.text for row in rows} == {"a photo of a dog", "a dog on the beach"}
    assert found["images"] == {"scored": 4, "bad": 0, "bad_files": []} and found["references"] == {"folder": 3}
    by_hand = [sum(r.values["clip_t"] for r in rows[i : i + 2]) / 2 for i in (0, 2)]
    assert found["overall"]["clip_t"]["mean"] == pytest.approx(sum(by_hand) / 2)
    assert [p["values"]["clip_t"] for p in found["prompts"]] == pytest.approx(by_hand)
    assert found["models"] == {"clip_t": "fake/model", "clip_i": "fake/model"}
    assert found["published"]["label"].startswith("published") and (target / "rows.parquet").is_file()
    shown = capsys.readouterr().out
    assert "published (not measured here)" in shown and "ClassDiffusion .300" in shown
    assert f"{found['overall']['clip_t']['mean']:.4f}" in shown
    info = read_json("out", "run.json")
    assert info["status"] == "done" and info["result"]["objective"] == found["overall"]["clip_t"]["mean"]
    collection = read_json("out", "metrics.json")
    assert collection["kind"] == "collection" and collection["comparison"] is None


def test_images_and_scores_are_reused(job, run_folder, scorer, monkeypatch, capsys):
    assert main([*job, f"run={run_folder}"]) == 0
    target = run_folder / "evaluation" / "quick"
    before = (target / "rows.csv").read_bytes()
    scorer.seen.clear()
    monkeypatch.setattr(drawn, "sample_together", None)  # nothing may be drawn
    assert main([*job, f"run={run_folder}"]) == 0
    assert scorer.seen == [] and (target / "rows.csv").read_bytes() == before


def test_a_killed_evaluation_goes_on(job, run_folder, scorer):
    """Half the images gone, a row torn in two: the same images and the same rows come back."""
    assert main([*job, f"run={run_folder}"]) == 0
    target = run_folder / "evaluation" / "quick"
    rows = (target / "rows.csv").read_bytes()
    index = read_json(target, "images", "prompts.json")
    pixels = {name: (target / "images" / name).read_bytes() for name in index}
    for name in list(index)[2:]:
        (target / "images" / name).unlink()
    (target / "images" / "prompts.json").write_text(json.dumps({name: index[name] for name in list(index)[:3]}))
    (target / "rows.csv").write_bytes(rows[:-30])
    scorer.seen.clear()
    assert main([*job, f"run={run_folder}"]) == 0
    assert (target / "rows.csv").read_bytes() == rows and len(scorer.seen) == 2
    assert {name: (target / "images" / name).read_bytes() for name in index} == pixels


def test_other_settings_draw_again_and_other_models_score_again(job, run_folder, scorer, capsys):
    assert main([*job, f"run={run_folder}"]) == 0
    scorer.seen.clear()
    assert main([*job, f"run={run_folder}", "sampler.steps=2"]) == 0
    assert len(scorer.seen) == 4 and "sampler.steps" in capsys.readouterr().out
    scorer.seen.clear()
    scorer.mark = "2"
    assert main([*job, f"run={run_folder}", "sampler.steps=2"]) == 0
    assert len(scorer.seen) == 4


def test_two_runs_are_compared_pair_by_pair(job, run_folder, scorer, tmp_path, capsys):
    other = Path(shutil.copytree(run_folder, tmp_path / "runs" / "b"))
    assert main([*job, f"run=['{run_folder}','{other}']", "output=out"]) == 0
    comparison = read_json("out", "metrics.json")["comparison"]
    assert (comparison["a"], comparison["b"], comparison["pairs"]) == ("a", "b", 4)
    clip_t = comparison["metrics"]["clip_t"]
    assert clip_t["difference"]["mean"] == 0 and clip_t["win_rate"]["mean"] == 0.5
    assert "B wins" in capsys.readouterr().out
    assert main([*job, f"run=['{run_folder}','{run_folder}']"]) == 2 and "twice" in capsys.readouterr().err


def test_a_sweep_takes_its_finished_runs(job, run_folder, scorer, capsys):
    sweep = run_folder.parent
    for name, status in (("10-x", "done"), ("2-x", "done"), ("3-x", "running")):
        folder = Path(shutil.copytree(run_folder, sweep / name))
        info = read_json(folder, "run.json") | {"status": status}
        (folder / "run.json").write_text(json.dumps(info))
    shutil.rmtree(run_folder)
    config = (sweep / "10-x" / "config.yaml").read_text().replace("spl_weight: 1.0", "spl_weight: 0.5")
    (sweep / "10-x" / "config.yaml").write_text(config)
    assert main([*job, f"run={sweep}", "output=out"]) == 0
    shown = capsys.readouterr()
    assert "3-x (running)" in shown.err + shown.out
    found = read_json("out", "metrics.json")
    assert [r["name"] for r in found["results"]] == ["2-x", "10-x"] and found["comparison"] is None
    assert set(found["settings"]) == {"loss.spl_weight=1.0", "loss.spl_weight=0.5"}


def test_anybodys_images(scorer, tmp_path, sd15_folder, capsys):
    folder = anybodys(tmp_path / "theirs")
    pictures = draw_pictures(tmp_path / "real")
    assert main(["task=evaluate", "logger=none", f"images={folder}", f"references={pictures}", "output=out"]) == 0
    found = read_json(folder, "evaluation", "images", "metrics.json")
    assert found["images"]["scored"] == 6 and set(found["overall"]) == {"clip_t", "clip_i"}
    assert {prompt["prompt"] for prompt in found["prompts"]} == {"a <new1> dog", "a <new1> cat"}
    assert main(["task=evaluate", "logger=none", f"images={folder}", "output=out2"]) == 0
    assert "clip_i left out" in capsys.readouterr().out
    assert set(read_json(folder, "evaluation", "images", "metrics.json")["overall"]) == {"clip_t"}


def test_wrong_pictures_score_lower(scorer, tmp_path):
    """The concept's own pictures come out on top of the image metric."""
    own, other = tmp_path / "own", tmp_path / "other"
    for i in range(4):
        coloured(own / "samples" / f"{i}.png", (200, 90 + i, 10))
        coloured(other / "samples" / f"{i}.png", (10, 90 + i, 200))
    for folder in (own, other):
        (folder / "prompts.json").write_text(json.dumps({str(i): "a dog" for i in range(4)}))
        assert main(["task=evaluate", "logger=none", f"images={folder}", f"references={own / 'samples'}"]) == 0
    score = [read_json(f, "evaluation", "images", "metrics.json")["overall"]["clip_i"]["mean"] for f in (own, other)]
    assert score[0] > 0.99 > score[1]


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda f: (f / "samples" / "0002.png").unlink(), "names 0002, and there is no such image"),
        (lambda f: coloured(f / "samples" / "new.png", (1, 1, 1)), "has no prompt for new.png"),
        (lambda f: [(f / "samples" / f"000{i}.png").write_bytes(b"") for i in (1, 2)], "2 of 6 images can't be read"),
        (lambda f: shutil.rmtree(f), "no folder that exists"),
    ],
)
def test_images_that_can_not_be_scored(scorer, tmp_path, spoil, sentence, capsys):
    folder = anybodys(tmp_path / "theirs")
    spoil(folder)
    assert main(["task=evaluate", "logger=none", f"images={folder}", "output=out"]) == 2
    error = capsys.readouterr().err
    assert sentence in error and "Traceback" not in error


def test_one_bad_image_is_named_and_left_out(scorer, tmp_path, capsys):
    folder = anybodys(tmp_path / "theirs")
    (folder / "samples" / "0003.png").write_bytes(b"no image")
    assert main(["task=evaluate", "logger=none", f"images={folder}"]) == 0
    assert "0003.png" in capsys.readouterr().err
    found = read_json(folder, "evaluation", "images", "metrics.json")["images"]
    assert found == {"scored": 5, "bad": 1, "bad_files": ["0003.png"]}
    assert main(["task=evaluate", "logger=none", f"images={folder}", "evaluate.max_bad_share=0.1"]) == 2


def test_runs_that_can_not_be_scored(job, run_folder, scorer, tmp_path, capsys):
    folder = anybodys(tmp_path / "theirs")
    empty = tmp_path / "empty"
    empty.mkdir()
    running = read_json(run_folder, "run.json") | {"status": "running", "pid": os.getpid()}
    cases = [
        ([f"images={folder}", f"references={empty}"], "is empty"),
        (["run=nowhere"], "no run folder nowhere"),
        (["run=base"], "task=sample run=base"),
        ([f"run={run_folder}", "evaluate.objective=clip_x"], "evaluate.objective=clip_x is unknown"),
        ([f"run={run_folder}", f"references={empty}"], "is empty"),
    ]
    for more, sentence in cases:
        assert main([*job, *more]) == 2, more
        assert sentence in capsys.readouterr().err
    shutil.rmtree(run_folder / "adapter")
    assert main([*job, f"run={run_folder}"]) == 2 and "adapter" in capsys.readouterr().err
    (run_folder / "run.json").write_text(json.dumps(running))
    (run_folder / ".lock").unlink(missing_ok=True)  # without one the number of the process decides
    assert main([*job, f"run={run_folder}"]) == 2 and "still running" in capsys.readouterr().err


def test_train_then_evaluate_returns_the_objective(sd15_folder, scorer, tmp_path, monkeypatch):
    """The model that was trained is the one in memory: nothing is loaded, and a later evaluation draws nothing."""
    pictures = draw_pictures(tmp_path / "pictures")
    protocol = ["protocol.prompts=['a {} in the snow']", "protocol.live=[]"]
    job = [*words(sd15_folder, pictures), *protocol, "train.then=[evaluate]", "evaluate.objective=clip_i"]
    assert main([*job, "output=run"]) == 0
    result = read_json("run", "run.json")["result"]
    found = read_json("run", "evaluation", "quick", "metrics.json")
    assert result["objective"] == found["overall"]["clip_i"]["mean"] and not Path("run", "samples").exists()
    events = [json.loads(line) for line in Path("run/events.jsonl").read_text().splitlines()]
    assert any(e["event"] == "summary" and "evaluation/clip_i" in e for e in events)
    assert any(e["event"] == "table" and e["rows"] == 1 for e in events)
    later = [*words(sd15_folder), *protocol, "task=evaluate", "run=run"]
    with monkeypatch.context() as patch:
        patch.setattr(drawn, "sample_together", None)
        assert main(later) == 0
    images = Path("run/evaluation/quick/images")
    in_memory = {file.name: file.read_bytes() for file in images.glob("*.png")}
    shutil.rmtree(images)
    assert main(later) == 0
    assert {file.name: file.read_bytes() for file in images.glob("*.png")} == in_memory and len(in_memory) == 2


def test_a_mistake_of_the_evaluation_is_told_before_training(sd15_folder, scorer, tmp_path, capsys):
    job = [*words(sd15_folder, draw_pictures(tmp_path / "pictures")), "train.then=[evaluate]", "output=run"]
    assert main([*job, "evaluate.objective=dino_i"]) == 2
    assert "evaluate.objective=dino_i is not measured here" in capsys.readouterr().err
    assert not Path("run/adapter").exists()


def test_dry_run(job, run_folder, capsys):
    assert main([*job, f"run={run_folder}", "dry_run=true"]) == 0
    assert "quick, 2 images a prompt" in capsys.readouterr().out and not (run_folder / "evaluation").exists()


def test_the_lines_of_a_real_scorer(job, run_folder, sd15_folder, tmp_path, monkeypatch, capsys):
    """A random CLIP of the published class, through the true metrics."""
    import torch
    from transformers import CLIPConfig, CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    monkeypatch.setenv("CDIFF_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    narrow = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {**narrow, "vocab_size": 49_408, "max_position_embeddings": 77, "eos_token_id": 2}
    vision = {**narrow, "image_size": 32, "patch_size": 8}
    clip = tmp_path / "clip"
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)).save_pretrained(clip)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(clip)
    for file in (sd15_folder / "tokenizer").iterdir():
        shutil.copy(file, clip)
    real = [*job, f"run={run_folder}", f"metrics.clip={clip}", "metrics.names=[clip_t,clip_i]"]
    assert main(real) == 0
    target = run_folder / "evaluation" / "quick"
    rows = (target / "rows.csv").read_bytes()
    found = read_json(target, "metrics.json")
    assert set(found["overall"]) == {"clip_t", "clip_i"} and -1 <= found["overall"]["clip_i"]["mean"] <= 1
    (target / "rows.csv").unlink()
    assert main(real) == 0 and (target / "rows.csv").read_bytes() == rows
    assert str(clip) in found["models"]["clip_t"]
    assert main([*real, f"metrics.clip={sd15_folder / 'vae'}"]) == 2
    error = capsys.readouterr().err
    assert "vae" in error and "bug" not in error
    assert Image.open(next((target / "images").glob("*.png"))).size == (64, 64)


def test_every_field_is_documented(job, run_folder, scorer):
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert main([*job, f"run={run_folder}", "output=out"]) == 0
    for file in (run_folder / "evaluation" / "quick" / "metrics.json", Path("out/metrics.json")):
        assert [key for key in read_json(file) if f"`{key}`" not in page] == []
    columns = (run_folder / "evaluation" / "quick" / "rows.csv").read_text().splitlines()[0].split(",")
    assert [name for name in columns if f"`{name}`" not in page] == []
