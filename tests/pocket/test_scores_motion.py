"""Measuring clips: what is rendered to move is seen to move, and by how much."""

from __future__ import annotations

import random

import pytest
import torch
from PIL import Image, ImageEnhance

from cdiff.displacement import displacement
from cdiff.models import load_base
from cdiff.pocket import WEIGHTS
from cdiff.pocket.pretrain.probe import build_probe
from cdiff.pocket.pretrain.scores import spoken
from cdiff.pocket.pretrain.scores_motion import (
    MOVES,
    clip_prompts,
    fresh_clip,
    is_right,
    pocket_clips,
    pocket_sampler,
    score_motion,
    steadiness,
)
from cdiff.pocket.probe import Seen
from cdiff.pocket.world.render import render
from cdiff.pocket.world.sample import FRESH
from cdiff.schema import ModelConfig
from cdiff.video.drawing import make_clip_pipeline
from cdiff.video.motion import animated, load_motion


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.mark.parametrize("index", range(6))
def test_the_measured_way_is_the_way_made(index):
    clip = fresh_clip(index, moving=True)
    way = displacement([render(frame) for frame in clip.frames])
    hops = clip.movement in ("hop", "fly", "drift")  # the way up and down counts too
    assert clip.frames[0].subjects[0].identity.seed >= FRESH
    assert way == pytest.approx(clip.distance, abs=0.05) or (hops and 0.9 * clip.distance < way < 2 * clip.distance)
    assert way > MOVES


def test_stillness_flicker_and_fading_are_no_movement():
    frame = render(fresh_clip(1, moving=False).frames[0])
    assert displacement([frame] * 16) == 0.0
    rng = random.Random(0)
    flicker = [ImageEnhance.Brightness(frame).enhance(rng.uniform(0.8, 1.2)) for _ in range(16)]
    assert displacement(flicker) < MOVES
    other = render(fresh_clip(2, moving=False).frames[0])
    assert displacement([Image.blend(frame, other, n / 15) for n in range(16)]) < MOVES


def test_steadiness_is_the_share_of_the_commonest_reading():
    dog = Seen("beach", ("dog",), (), {"dog": "red"})
    cat = Seen("beach", ("cat",), (), {"cat": "red"})
    assert steadiness([dog, dog, dog, cat]) == {"class": 0.75, "color": 1.0, "scene": 1.0}
    asked = {"kinds": {"dog"}, "scene": None, "accessories": set(), "colors": {}}
    assert is_right(asked, [dog, dog, cat]) and not is_right(asked | {"scene": "snow"}, [dog, dog, dog])


def test_prompts_name_the_movement():
    for text, asked in clip_prompts(30, moving=True):
        assert any(
            f" {v}" in text for v in "walking running hopping jumping flying driving rolling drifting".split()
        ) or ("moving" in text or "floating" in text)
        assert asked["kinds"]
    assert all("still" in text or "sitting" in text or "standing" in text for text, _ in clip_prompts(10, moving=False))


def test_the_scores_of_a_perfect_artist(tmp_path):
    """Clips rendered as asked: they all move, or don't; the probe here is untrained and reads the same everywhere."""
    build_probe([16, 16, 16, 16]).save_pretrained(tmp_path / "probe")
    calls = []

    def draw(prompts: list[str]) -> list[list[Image.Image]]:
        moving = not calls
        calls.append(prompts)
        return [[render(f) for f in fresh_clip(i, moving).frames] for i in range(len(prompts))]

    scores = score_motion(tmp_path, "cpu", draw, count=4)
    assert scores["moving_as_asked"] == scores["still_as_asked"] == 100.0
    assert scores["moving_clips"] == 4 and scores["still_clips"] == 1 and scores["moving_way_median"] > 0.2
    assert calls[0] == [text for text, _ in clip_prompts(4, True)]
    assert spoken(fresh_clip(0, True).frames[0], calls[0][0])["kinds"]


def test_pocket_clips_begin_where_the_noise_is_full():
    """The first noise is nothing but noise, which an earlier timestep than the last is not."""
    video, sampler, device = pocket_clips(WEIGHTS / "motion"), pocket_sampler(), torch.device("cpu")
    motion = load_motion(WEIGHTS / "motion", video, torch.float32)
    base = animated(load_base(ModelConfig(path="pocket"), torch.float32, device), motion)
    scheduler = make_clip_pipeline(base, motion, video, sampler, device).scheduler
    scheduler.set_timesteps(sampler.steps)
    assert scheduler.timesteps[0] == scheduler.config.num_train_timesteps - 1
