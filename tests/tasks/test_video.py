"""task=video from the command line to clips, on the tiny Stable Diffusion 1.5 with a tiny motion adapter."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from diffusers import AnimateDiffPipeline, DDIMScheduler, MotionAdapter
from fake_scorer import FakeScorer
from layouts import build
from motion_adapter import build_motion_adapter, video_words
from PIL import Image
from tiny_job import draw_pictures, words

from cdiff.adapter import load_adapter, parameter_name
from cdiff.cli import main
from cdiff.evaluation import evaluating
from cdiff.evaluation.rows import read_rows
from cdiff.tasks import video

PROMPT = "prompt='a <new1> dog on the beach'"
STEM = "a-new1-dog-on-the-beach-0"


@pytest.fixture
def job(trained, sd15_folder, motion_folder) -> list[str]:
    return [*words(sd15_folder), "task=video", f"run={trained}", *video_words(motion_folder)]


@pytest.fixture
def unets(monkeypatch) -> list:
    """The motion UNets that clips are drawn with."""
    seen, real = [], video.make_clip_pipeline

    def watched(base, *rest):
        seen.append(base.unet)
        return real(base, *rest)

    monkeypatch.setattr(video, "make_clip_pipeline", watched)
    return seen


def index_of(folder: str) -> dict[str, dict]:
    return json.loads(Path(folder, "clips", "prompts.json").read_text(encoding="utf-8"))


def frames_of(folder: str, stem: str = STEM) -> list[np.ndarray]:
    return [np.asarray(Image.open(file)).astype(int) for file in sorted(Path(folder, "frames").glob(f"{stem}-*.png"))]


def test_a_run_folder_of_clips(job, capsys):
    prompts = "prompts=['a new1 dog running','a <new1> dog: on/the beach']"
    assert main([*job, "output=out", prompts, "images_per_prompt=2"]) == 0
    index = index_of("out")
    assert list(index) == [f"{s}-{i}.gif" for s in ("a-new1-dog-running", "a-new1-dog-on-the-beach") for i in (0, 1)]
    for name, entry in index.items():
        with Image.open(Path("out/clips", name)) as clip:
            assert clip.n_frames == 4 and clip.size == (64, 64)
        assert entry["frames"] == 4 and entry["sampler"] == "ddim" and entry["steps"] == 2
        assert entry["negative_prompt"] == "bad quality, worse quality" and entry["guidance_scale"] == 7.5
    assert Path("out/clips/sheet.png").is_file() and not Path("out/frames").exists()
    info = json.loads(Path("out/run.json").read_text())
    assert info["status"] == "done" and info["task"] == "video" and set(info["timings"]) == {"load", "video"}
    assert info["result"]["clips"] == "out/clips" and "sheet.png" in capsys.readouterr().out
    config = yaml.safe_load(Path("out/config.yaml").read_text())
    assert config["video"]["name"] == "animatediff" and config["video"]["schedule"]["beta_schedule"] == "linear"


def test_its_own_prompt_names_a_movement(job):
    assert main([*job, "output=out"]) == 0
    assert [entry["prompt"] for entry in index_of("out").values()] == ["a <new1> dog running on the beach"]


def test_the_motion_unet_has_the_adapters_weights(job, trained, motion_folder, unets):
    assert main([*job, "output=out", PROMPT]) == 0
    adapter, found = load_adapter(trained / "adapter"), unets[0].state_dict()
    assert adapter.unet
    for name, value in adapter.unet.items():
        assert torch.equal(found[parameter_name(name)], value.float()), name
    motion = MotionAdapter.from_pretrained(motion_folder).state_dict()
    assert all(torch.equal(found[name], value) for name, value in motion.items())


def test_the_frames_are_those_of_the_exported_pipeline(job, trained, motion_folder, sd15_folder):
    assert main([*job, "output=out", PROMPT, "video.keep_frames=true"]) == 0
    assert main(["task=export", f"run={trained}", "format=diffusers", "export.folder=exported", "device=cpu"]) == 0
    pipe = AnimateDiffPipeline.from_pretrained(
        "exported",
        motion_adapter=MotionAdapter.from_pretrained(motion_folder, torch_dtype=torch.float32),
        torch_dtype=torch.float32,
    )
    pipe.scheduler = DDIMScheduler.from_pretrained(
        sd15_folder, subfolder="scheduler", clip_sample=False, beta_schedule="linear", steps_offset=1
    )
    pipe.set_progress_bar_config(disable=True)
    entry = index_of("out")[f"{STEM}.gif"]
    theirs = pipe(
        entry["prompt"],
        negative_prompt=entry["negative_prompt"],
        num_frames=4,
        height=64,
        width=64,
        num_inference_steps=2,
        guidance_scale=7.5,
        generator=torch.Generator().manual_seed(entry["seed"]),
    ).frames[0]
    ours = frames_of("out")
    assert len(ours) == 4 and all(np.array_equal(a, np.asarray(b)) for a, b in zip(ours, theirs))


def test_the_base_alone_differs_and_drops_the_token(job, sd15_folder, motion_folder):
    assert main([*job, "output=tuned", PROMPT, "video.keep_frames=true"]) == 0
    base = [*words(sd15_folder), "task=video", "run=base", "concept=dog", *video_words(motion_folder)]
    assert main([*base, "output=base", PROMPT, "video.keep_frames=true"]) == 0
    [ours], [theirs] = index_of("tuned").values(), index_of("base").values()
    assert theirs["prompt"] == "a dog on the beach" and theirs["seed"] == ours["seed"]
    pairs = zip(frames_of("tuned"), frames_of("base", "a-dog-on-the-beach-0"), strict=True)
    assert all(np.abs(a - b).max() > 0 for a, b in pairs)


def test_a_turned_token_changes_the_frames(job):
    assert main([*job, "output=plain", PROMPT, "video.keep_frames=true"]) == 0
    turned = "sampler.token_adjust.alpha=1"
    assert main([*job, "output=turned", PROMPT, "video.keep_frames=true", turned]) == 0
    assert any(np.abs(a - b).max() > 0 for a, b in zip(frames_of("plain"), frames_of("turned")))
    assert index_of("turned")[f"{STEM}.gif"]["token_adjust"] == "1.0, None"


def test_a_merged_run(trained, second, sd15_folder, motion_folder, unets):
    assert main(["task=merge", "device=cpu", f"runs=[{trained},{second}]", "output=merged"]) == 0
    two = "prompt='a <new1> dog next to a <new2> cat'"
    assert main([*words(sd15_folder), "task=video", "run=merged", *video_words(motion_folder), two, "output=out"]) == 0
    assert [e["prompt"] for e in index_of("out").values()] == ["a <new1> dog next to a <new2> cat"]
    found, adapter = unets[0].state_dict(), load_adapter("merged/adapter")
    assert all(torch.equal(found[parameter_name(name)], value.float()) for name, value in adapter.unet.items())


@pytest.mark.parametrize("method", ["lora", "dreambooth", "textual_inversion"])
def test_runs_of_other_methods(method, sd15_folder, motion_folder, tmp_path, unets):
    pictures = draw_pictures(tmp_path / "pictures")
    made = [*words(sd15_folder, pictures), f"method={method}", "train.then=[]", "train.steps=2", "output=run"]
    assert main([*made, "optimizer.learning_rate=1e-2"]) == 0
    drawn = [*words(sd15_folder), "task=video", "run=run", *video_words(motion_folder), "output=out"]
    assert main([*drawn, "prompt='a dog'"]) == 0
    found = unets[0].state_dict()
    from cdiff.adapter import apply_adapter
    from cdiff.models import load_base
    from cdiff.schema import ModelConfig

    base = load_base(ModelConfig(path=str(sd15_folder)), torch.float32, "cpu")
    untouched = {name: value.clone() for name, value in base.unet.state_dict().items()}
    apply_adapter(base, load_adapter("run/adapter"))
    own = base.unet.state_dict()
    assert all(torch.equal(found[name], value) for name, value in own.items())
    changed = any(not torch.equal(own[name], value) for name, value in untouched.items())
    assert changed is (method != "textual_inversion")


class Clip(FakeScorer):
    name = "clip"

    def __init__(self) -> None:
        super().__init__()
        from types import SimpleNamespace

        self.place = SimpleNamespace(batch_size=4, device="cpu")


def test_clips_are_scored(job, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("CDIFF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(evaluating, "open_metrics", lambda *_: [Clip()])
    more = ["video.then=[evaluate]", "evaluate.objective=frame_consistency", "images_per_prompt=2"]
    assert main([*job, "output=out", PROMPT, *more]) == 0
    found = json.loads(Path("out/evaluation/clips/metrics.json").read_text())
    rows = list(read_rows(Path("out/evaluation/clips/rows.csv")))
    assert found["schema"] == "cdiff.metrics/1" and found["of"] == "clips" and found["frames"] == 4
    assert found["references"] == {"folder": 3} and [row.file for row in rows] == list(index_of("out"))
    result = json.loads(Path("out/run.json").read_text())["result"]
    assert result["objective"] == found["overall"]["frame_consistency"]["mean"]
    assert result["overall"]["clip_t"] == pytest.approx(np.mean([row.values["clip_t"] for row in rows]))
    assert "frame_consistency" in capsys.readouterr().out
    assert main(["task=report", "run=out", "output=report"]) == 0
    page = Path("report/report.html").read_text(encoding="utf-8")
    section = page.split('id="clips"')[1].split("</section>")[0]
    assert section.count("data:image/webp") == 2 and f"{result['objective']:.4f}" in section
    assert "a &lt;new1&gt; dog on the beach (seed " in section


def test_clips_of_the_base_are_scored_without_pictures(sd15_folder, motion_folder, monkeypatch):
    monkeypatch.setattr(evaluating, "open_metrics", lambda *_: [Clip()])
    base = [*words(sd15_folder), "task=video", "run=base", *video_words(motion_folder)]
    assert main([*base, "prompt='a dog'", "video.then=[evaluate]", "output=out"]) == 0
    found = json.loads(Path("out/evaluation/clips/metrics.json").read_text())
    assert set(found["overall"]) == {"clip_t", "frame_consistency", "motion"} and list(found["concepts"]) == ["any"]


def test_missing_ffmpeg_is_one_sentence(job, monkeypatch, capsys):
    monkeypatch.setattr(video, "find_ffmpeg", lambda: None)
    assert main([*job, "output=out", PROMPT]) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert told.count("no MP4") == 1 and "pip install 'cdiff[video]'" in told
    assert Path("out/clips", f"{STEM}.gif").is_file() and not list(Path("out").rglob("*.mp4"))


def test_no_mp4_where_none_is_asked_for(job, capsys):
    assert main([*job, "output=out", PROMPT, "video.mp4=false"]) == 0
    assert "MP4" not in capsys.readouterr().err and not list(Path("out").rglob("*.mp4"))


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["video.frames=0"], "video.frames must be from 1 to"),
        (["video.frames=9"], "8 frames at most"),
        (["video.fps=0"], "video.fps must be"),
        (["video.schedule.beta_schedule=linaer"], "did you mean"),
        (["video.anchor=midle"], "did you mean 'middle'"),
        (["video.then=[sample]"], "video.then=sample is unknown"),
        (["video.free_noise=4", "sampler.batch_size=2"], "sampler.batch_size=1, not 2"),
        (["video.free_noise=4", "video.free_noise_stride=5"], "must not be above video.free_noise"),
        (["video.motion_adapter=' '"], "video.motion_adapter is empty"),
        (["video.motion_adapter=./nowhere"], "no such folder"),
        (["video.frame=4"], "video.frames"),
        (["video.cpu_offload=true"], "needs a GPU"),
        (["precision=fp16"], "precision=fp16 needs a GPU"),
        (["run=nowhere"], "nowhere"),
        (["prompt='a <new2> dog'"], "<new2>"),
        (["prompt=' '"], "prompt is empty"),
        (["prompt_file=nowhere.txt"], "nowhere.txt"),
        (["run=[a,b]"], "one run"),
        (["video.then=[evaluate]", "metrics.names=[dino_i]", "metrics.dino=nowhere"], "metrics.dino"),
        (["video.then=[evaluate]", "evaluate.objective=motoin"], "did you mean"),
    ],
)
def test_mistakes_start_no_run(job, more, sentence, capsys):
    said = {word.split("=")[0] for word in more}
    kept = [word for word in job if word.split("=")[0] not in said]
    assert main([*kept, "output=out", *more]) == 2
    assert sentence in capsys.readouterr().err and not Path("out").exists()


def test_bases_and_adapters_that_do_not_fit(job, sd15_folder, motion_folder, tmp_path, capsys):
    other = build_motion_adapter(tmp_path / "other", block_out_channels=(16, 16, 16, 32))
    fixed = [word for word in job if not word.startswith("video.motion_adapter=")]
    assert main([*fixed, f"video.motion_adapter={other}", "output=out"]) == 2
    assert "does not fit the base" in capsys.readouterr().err
    xl = build("sdxl", tmp_path / "sdxl")
    base = ["model=sdxl", f"model.path={xl}", "device=cpu", "task=video", "run=base", *video_words(motion_folder)]
    assert main([*base, "prompt='a dog'", "output=out"]) == 2
    assert "is an SDXL" in capsys.readouterr().err and not Path("out").exists()


def test_a_killed_video_leaves_its_finished_clips(job, monkeypatch):
    real, drawn = video.draw_clips, []

    def stops(*rest, **named):
        for pair in real(*rest, **named):
            if drawn:
                raise KeyboardInterrupt
            drawn.append(pair)
            yield pair

    monkeypatch.setattr(video, "draw_clips", stops)
    assert main([*job, "output=out", PROMPT, "images_per_prompt=2"]) == 130
    assert list(index_of("out")) == [f"{STEM}.gif"] and json.loads(Path("out/run.json").read_text())["status"] != "done"


def test_a_dry_run(job, capsys):
    assert main([*job, "dry_run=true", PROMPT, "video.then=[evaluate]", "video.keep_frames=true"]) == 0
    shown = capsys.readouterr().out
    assert "4 frames each at 8 a second" in shown and "evaluation/" in shown and "frames/" in shown
    assert not Path("outputs").exists()


def test_the_pocket_base_has_settings_of_its_own(capsys):
    found = {}
    for model in ("pocket", "sd15"):
        assert main(["task=video", "run=base", f"model={model}", "prompt='a dog'", "dry_run=true"]) == 0
        found[model] = yaml.safe_load(capsys.readouterr().out.split("Dry run")[0].rsplit("╭", 1)[0])
    assert found["pocket"]["video"]["name"] == found["pocket"]["video"]["motion_adapter"] == "pocket"
    assert found["pocket"]["video"]["schedule"]["beta_schedule"] is None
    assert found["pocket"]["sampler"]["guidance_scale"] == 5.0 and found["pocket"]["sampler"]["negative_prompt"] == ""
    assert found["sd15"]["video"]["name"] == "animatediff" and found["sd15"]["sampler"]["guidance_scale"] == 7.5
    words_ = ["task=video", "run=base", "prompt='a dog'", "dry_run=true", "sampler.guidance_scale=3", "video.frames=8"]
    assert main(words_) == 0
    said = yaml.safe_load(capsys.readouterr().out.split("Dry run")[0].rsplit("╭", 1)[0])
    assert said["sampler"]["guidance_scale"] == 3 and said["video"]["frames"] == 8
    assert main(["task=video", "run=base", "prompt='a dog'", "dry_run=true", "video=animatediff"]) == 0
    assert "guyoww" not in (shown := capsys.readouterr().out) and "guoyww/animatediff" in shown


def test_the_pocket_adapter_is_asked_for_in_one_sentence(monkeypatch, tmp_path, capsys):
    from cdiff import pocket

    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "base").symlink_to(pocket.WEIGHTS / "base")
    monkeypatch.setattr(pocket, "WEIGHTS", weights)
    assert main(["task=video", "run=base", "prompt='a dog'", "output=out"]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "pretrain.stage=motion pretrain.settings.motion.base=shipped" in told and not Path("out").exists()


def test_wandb_gets_the_clips_as_videos(job, monkeypatch, tmp_path, caplog):
    for name in ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb-home"))
    with caplog.at_level(logging.WARNING):
        assert main([*job, "output=out", PROMPT, "logger=wandb", "logger.mode=offline"]) == 0
    sent = list(Path("out").glob("wandb/*run-*/files/media/videos/*.gif"))
    assert len(sent) == 1 and sent[0].read_bytes() == Path("out/clips", f"{STEM}.gif").read_bytes()
    assert not [record for record in caplog.records if "stopped working" in record.message]
