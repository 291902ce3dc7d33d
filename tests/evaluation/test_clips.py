"""Scores of clips against plain computation."""

from __future__ import annotations

import itertools
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from fake_scorer import FakeScorer, text_score
from PIL import Image

from cdiff.displacement import displacement
from cdiff.evaluation.clips import ClipScorer, frame_consistency
from cdiff.evaluation.evaluating import Scoring
from cdiff.evaluation.rows import read_rows
from cdiff.sampling import Request
from cdiff.schema import Config

DOG = SimpleNamespace(name="rex", token="<new1>", class_word="dog")
CAT = SimpleNamespace(name="tom", token="<new2>", class_word="cat")
CLIPS = [
    (Request("a <new1> dog", 0, 5), [(10, 200, 30), (40, 180, 30), (90, 10, 60)]),
    (Request("a <new1> dog", 1, 6), [(10, 20, 30), (10, 20, 30), (10, 20, 30)]),
    (Request("a <new1> dog next to a <new2> cat", 0, 7), [(0, 20, 30), (90, 20, 30), (10, 200, 30)]),
]


class Clip(FakeScorer):
    """Features, and so cosines, that follow from the mean colour of a picture."""

    name = "clip"

    def __init__(self) -> None:
        super().__init__()
        self.place = SimpleNamespace(batch_size=2, device="cpu")


def picture(colour) -> Image.Image:
    return Image.new("RGB", (32, 32), colour)


def unit(colour) -> np.ndarray:
    found = np.array(colour, np.float64) + 1
    return found / np.linalg.norm(found)


@pytest.fixture
def scorer(monkeypatch, tmp_path) -> ClipScorer:
    monkeypatch.setenv("CDIFF_CACHE", str(tmp_path / "cache"))
    clip = Clip()
    reds, blues = [(250, 10, 10), (10, 250, 10)], [(10, 10, 250)]
    pictures = {"rex": [picture(colour) for colour in reds], "tom": [picture(colour) for colour in blues]}
    return ClipScorer(Config(), Scoring([clip], clip.metrics), [DOG, CAT], pictures, tmp_path)


def test_rows_and_metrics_are_means_over_frames(scorer, tmp_path):
    for number, (request, colours) in enumerate(CLIPS):
        file = tmp_path / f"{number}.gif"
        file.write_bytes(b"clip")
        scorer.add(request, [picture(colour) for colour in colours], file)
    result = scorer.result({"name": "clips", "image_folder": str(tmp_path)})
    rows = list(read_rows(result.rows_file))
    assert [row.concept for row in rows] == ["rex", "rex", "rex+tom"] and [row.seed for row in rows] == [5, 6, 7]
    assert {row.text for row in rows} == {"a dog", "a dog next to a cat"}
    for row, (_, colours) in zip(rows, CLIPS):
        text = [text_score(np.array(colour, np.float64), row.text) for colour in colours]
        assert row.values["clip_t"] == pytest.approx(np.mean(text), abs=1e-6)
        neighbours = [unit(a) @ unit(b) for a, b in itertools.pairwise(colours)]
        assert row.values["frame_consistency"] == pytest.approx(np.mean(neighbours), abs=1e-6)
        assert row.values["motion"] == 0.0  # one colour: nothing moves
    assert rows[1].values["frame_consistency"] == pytest.approx(1.0)
    found = json.loads((tmp_path / "evaluation" / "clips" / "metrics.json").read_text())
    assert found["of"] == "clips" and found["references"] == {"rex": 2, "rex+tom": 3} and found["images"]["scored"] == 3
    prompts = [np.mean([rows[0].values["clip_t"], rows[1].values["clip_t"]]), rows[2].values["clip_t"]]
    assert found["overall"]["clip_t"]["mean"] == pytest.approx(np.mean(prompts))
    assert set(found["overall"]) == {"clip_t", "clip_i", "frame_consistency", "motion"}
    assert found["models"]["frame_consistency"] == "fake/model" and "block matching" in found["models"]["motion"]
    assert found["published"]["rows"] == []  # papers measured images


def test_image_metrics_compare_with_the_concepts_of_the_prompt(scorer, tmp_path):
    (tmp_path / "a.gif").write_bytes(b"clip")
    own = [unit((250, 10, 10)), unit((10, 250, 10))]
    for request, real in ((CLIPS[0][0], own), (CLIPS[2][0], [*own, unit((10, 10, 250))])):
        values = scorer.add(request, [picture((200, 10, 10)), picture((10, 10, 200))], tmp_path / "a.gif")
        against = [np.mean([feature @ unit(colour) for feature in real]) for colour in ((200, 10, 10), (10, 10, 200))]
        assert values["clip_i"] == pytest.approx(np.mean(against), abs=1e-5)


def test_one_frame_has_neither_neighbours_nor_motion(scorer, tmp_path):
    (tmp_path / "a.gif").write_bytes(b"clip")
    values = scorer.add(CLIPS[0][0], [picture((1, 2, 3))], tmp_path / "a.gif")
    assert math.isnan(values["frame_consistency"]) and math.isnan(values["motion"])
    assert not math.isnan(values["clip_t"])


def test_without_clip_there_is_no_consistency(tmp_path):
    fake = FakeScorer()
    scorer = ClipScorer(Config(), Scoring([fake], fake.metrics), [DOG], {}, tmp_path)
    assert scorer.metrics == ("clip_t", "clip_i", "motion")


def test_consistency_does_not_depend_on_the_batch():
    frames = [picture(colour) for _, colours in CLIPS for colour in colours]
    whole = Clip()
    whole.place = SimpleNamespace(batch_size=64, device="cpu")
    assert frame_consistency(Clip(), frames) == pytest.approx(frame_consistency(whole, frames), abs=1e-12)


@pytest.mark.parametrize(("side", "step", "frames"), [(128, 6, 16), (256, 12, 16), (512, 24, 16), (128, 4, 4)])
def test_motion_is_a_share_of_the_side_at_any_size(side, step, frames):
    rng = np.random.default_rng(0)
    thing = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).resize((side // 4, side // 4))
    clip = []
    for number in range(frames):
        frame = Image.new("RGB", (side, side), (120, 120, 120))
        frame.paste(thing, (side // 16 + step * number // 2, side // 3))
        clip.append(frame)
    way = step / 2 * (frames - 1) / side
    assert displacement(clip) == pytest.approx(way, rel=0.12)
